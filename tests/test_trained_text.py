"""Text that SAEs were trained on is neither scored nor measured, unless the user asks for it."""

import random
import shutil
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scalar_sae.corpora import load_corpus, passages, share_in, sketch, windows
from scalar_sae.errors import UserError
from scalar_sae.evaluation.run import spread_prompts
from scalar_sae.io import Events
from scalar_sae.lm.model import LanguageModel
from scalar_sae.own_text import evaluation_text
from scalar_sae.records.results import Results
from scalar_sae.saes.export import export
from scalar_sae.saes.store import find_saes, load_sae, load_saes
from scalar_sae.scoring.circuit import score_circuit
from scalar_sae.scoring.config import ScoreConfig, Texts, held_out
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.score import score
from scalar_sae.sites import Site
from scalar_sae.tokenizer import Ascii
from scalar_sae.training.config import TrainConfig, validated
from scalar_sae.training.loop import text_to_choose_on, train
from tests.helpers import seal_again, tiny_lm
from tests.test_study import scalar

CONTEXT = 40
SITES = ["resid_pre.0", "resid_mid.0", "resid_post.0"]


def letters(n: int, seed: int) -> str:
    """A text in which no passage occurs twice."""
    return "".join(random.Random(seed).choices(string.ascii_lowercase + " ", k=n))


TEXT, OTHER = letters(20_000, 0), letters(4_000, 1)
FEW: dict[str, Any] = {"prompts": 2, "rank_prompts": 2, "context": CONTEXT, "edges": "1,100"}


def trained(folder: Path, corpus: Path, n: int) -> Path:
    """A run of three SAEs on the first n tokens of a text, and a ninth more that is held out."""
    lm = tiny_lm(d_vocab=128, context=CONTEXT)
    lm.save(folder / "lm")
    content: dict[str, Any] = {
        "corpus": str(corpus), "tokens": 4096, "batch_tokens": 1024, "buffer_tokens": 4096, "context": CONTEXT,
        "warmup_steps": 1, "validations": 0, "saes": [{"method": "topk", "sites": SITES, "k": 2, "expansion": 2}],
    }  # fmt: skip
    train(validated(TrainConfig, content, "train"), lm, load_corpus(str(corpus), lm, n_train=n), folder, Events(None))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "ids.npy"
    np.save(path, np.frombuffer(TEXT.encode(), np.uint8))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    return trained(tmp_path_factory.mktemp("run"), text, 12_000)


@pytest.fixture
def lm(run: Path) -> LanguageModel:
    return LanguageModel.load(run / "lm")


def ids(text: str) -> Tensor:
    return torch.tensor(list(text.encode()))


def spans(tokens: Tensor) -> set[tuple[int, ...]]:
    """All passages of some prompts, one by one."""
    rows = tokens.reshape(-1, tokens.shape[-1]).tolist()
    return {tuple(row[i : i + 32]) for row in rows for i in range(len(row) - 31)}


def test_the_share_of_one_text_in_another_is_that_of_its_passages():
    first, second = ids(TEXT[:900] + "ab" * 60), windows(ids(TEXT[600:1500] + OTHER[:300] + "ab" * 40), 60)
    expected = len(spans(second) & spans(first)) / len(spans(second))
    assert 0.2 < expected < 0.4
    assert share_in(second, sketch(first)) == expected
    assert share_in(first, sketch(first)) == 1
    assert share_in(second[:, :34], sketch(first)) is not None
    assert share_in(second[:, :31], sketch(first)) is None  # shorter than a passage
    for empty in (torch.zeros(0, dtype=torch.long), torch.zeros(0, 40, dtype=torch.long)):
        assert share_in(empty, sketch(first)) is None
        assert len(sketch(empty)) == 0


@pytest.mark.parametrize("block", [256, 2**18])
def test_of_a_long_text_a_sample_tells_the_share(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(passages, "KEPT", 2000)
    monkeypatch.setattr(passages, "_BLOCK", block)
    known = sketch(ids(TEXT))
    assert len(known) == 2000
    mixed = ids(TEXT[1003:4003] + OTHER[:1000])
    share = share_in(mixed, known)
    assert share is not None
    assert abs(share - 0.75) < 0.07  # 400 passages are in the sample: three standard errors
    assert share_in(ids(OTHER), known) == 0


@pytest.mark.parametrize("form", ["slice.txt", "rows.npy", "longer.txt"])
def test_training_text_in_another_file_is_refused(form: str, run: Path, tmp_path: Path):
    path, part = tmp_path / form, TEXT[1234:5678]
    if form == "rows.npy":
        np.save(path, np.frombuffer(part.encode(), np.uint8)[:4440].reshape(-1, CONTEXT))
    else:
        path.write_text(part + (OTHER[:2000] if form == "longer.txt" else ""))
    where = ("score", "--saes", run, "--block", "ff_block.0", "--tokens", path, "--edges", "1,100")
    where = (*where, "--prompts", "2", "--rank-prompts", "2", "--context", str(CONTEXT))
    done = scalar(*where, "--out", tmp_path / "out.json", check=False)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert f"{form}: " in done.stderr
    assert "of its passages are in the text that the SAEs were trained on; give other text, or" in done.stderr
    assert "--allow-trained-text" in done.stderr
    assert not (tmp_path / "out.json").exists()
    if form == "slice.txt":
        done = scalar(*where, "--out", tmp_path / "out.json", "--allow-trained-text")
        assert "slice.txt (80 tokens; training text of the SAEs)" in done.stdout
        assert "The SAEs were trained on the text that was ranked or scored" in done.stdout
        [record] = Results.read(tmp_path / "out.json").records
        assert (record.data["seen"], record.config["allow_trained_text"]) == ("trained on", True)


def test_measuring_and_circuits_refuse_it_too(run: Path, lm: LanguageModel, tmp_path: Path):
    (tmp_path / "slice.txt").write_text(TEXT[1234:5678])
    for verb in (["measure", run], ["features", run], ["circuit", "--saes", run, "--sites", ",".join(SITES)]):
        out = ["--out", tmp_path / "out"]
        done = scalar(*verb, "--tokens", tmp_path / "slice.txt", "--prompts", "2", *out, check=False)
        assert done.returncode == 2
        assert "slice.txt: 100 % of its passages are in the text that the SAEs were trained on" in done.stderr
        assert not (tmp_path / "out").exists()
    _, about = spread_prompts(str(tmp_path / "slice.txt"), lm, [run], CONTEXT, 2, allow_trained_text=True)
    assert str(about).endswith("training text of the SAEs)")


def test_prompts_from_python_are_compared_too(run: Path, lm: LanguageModel):
    saes, corpus = load_saes(run)["topk"], evaluation_text(lm, [run])
    pair, new = Pair.between(lm, "ff_block.0", saes), windows(ids(OTHER), CONTEXT)[:2]
    seen = windows(corpus.train, CONTEXT)[3:5]
    for ranking, scoring, what in ((seen, new, "rank"), (new, seen, "score")):
        texts = Texts(ranking, scoring, corpus.describe())
        with pytest.raises(UserError, match=f"text to {what} on: 100 % of its passages .*allow_trained_text=True"):
            score(pair, texts, ScoreConfig(**FEW))
        with pytest.raises(UserError, match=f"text to {what} on: 100 % of its passages"):
            score_circuit(lm, saes, [Site.parse(site) for site in SITES], texts, ScoreConfig(**FEW))
        record = score(pair, texts, ScoreConfig(**FEW, allow_trained_text=True))
        assert record.data["seen"] == "trained on"
    for texts in (Texts(new, new, {}), held_out(corpus, ScoreConfig(**FEW))):
        assert score(pair, texts, ScoreConfig(**FEW)).data.get("seen") != "trained on"


def test_what_one_run_held_out_another_may_have_trained_on(run: Path, text: Path, lm: LanguageModel, tmp_path: Path):
    """Both read the same file, and the second read more of it."""
    longer = trained(tmp_path / "longer", text, 16_000)
    assert evaluation_text(lm, [run], str(text)).seen == "held out"
    with pytest.raises(UserError, match=r"^ids.npy: \d+ % of its passages are in the text that the SAEs were trained"):
        evaluation_text(lm, [run, longer], str(text))


def test_files_keep_what_tells_training_text_apart(run: Path, text: Path, tmp_path: Path):
    sae, _ = load_sae(run / "saes" / "topk" / "resid_mid.0")
    assert sae.text is not None
    export(list(find_saes(run)), "scalar", tmp_path / "copy")
    again, _ = load_sae(tmp_path / "copy" / "topk" / "resid_mid.0")
    assert again.text is not None
    assert torch.equal(again.text.passages, sae.text.passages)
    assert again.text.fingerprint == sae.text.fingerprint == load_corpus(str(text), Ascii(), n_train=12_000).fingerprint


def test_passages_that_are_no_sketch_are_refused(run: Path, tmp_path: Path):
    folder = tmp_path / "sae"
    shutil.copytree(run / "saes" / "topk" / "resid_mid.0", folder)
    tensors = load_file(folder / "sae.safetensors")
    for wrong in (tensors["training_passages"].flip(0), -tensors["training_passages"], torch.rand(3)):
        save_file(tensors | {"training_passages": wrong.contiguous()}, folder / "sae.safetensors")
        seal_again(folder)
        with pytest.raises(UserError, match=r"training_passages (is not a list of rising|holds float32)"):
            load_sae(folder)


@pytest.mark.parametrize("n_tokens", [600, 40_000])
def test_weights_are_chosen_on_text_that_is_neither_scored_nor_measured(
    n_tokens: int, lm: LanguageModel, tmp_path: Path
):
    (tmp_path / "text.txt").write_text(letters(n_tokens * 10, 2))
    corpus = load_corpus(str(tmp_path / "text.txt"), lm)
    chosen = spans(text_to_choose_on(corpus, CONTEXT))
    assert chosen
    n = n_tokens // 2 // CONTEXT
    scored = held_out(corpus, ScoreConfig(**{**FEW, "prompts": n})).scoring
    measured = windows(replace(corpus, seen="held out").to_measure, CONTEXT)
    assert len(scored) == len(measured) == n
    assert not chosen & (spans(scored) | spans(measured))
