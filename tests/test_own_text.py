"""Which text SAEs are evaluated on: what was held out of their own, unless another one is named."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from scalar_sae import console
from scalar_sae.corpora import Corpus, load_corpus
from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.blind import Pairs
from scalar_sae.evaluation.run import prepare_blind
from scalar_sae.io import Events
from scalar_sae.lm.model import LanguageModel
from scalar_sae.own_text import evaluation_text, say_unlike, trained_on
from scalar_sae.records.results import Results
from scalar_sae.saes.export import export
from scalar_sae.saes.store import SaeCard, find_saes, load_saes, save_sae
from scalar_sae.scoring.config import ScoreConfig, held_out
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.score import score
from scalar_sae.sites import Block, Site
from scalar_sae.tokenizer import Ascii, Pretrained, byte_pairs
from scalar_sae.training.config import TrainConfig, validated
from scalar_sae.training.loop import train
from tests.helpers import random_sae, tiny_lm
from tests.test_study import scalar

SITES = ["resid_pre.0", "resid_mid.0", "resid_post.0"]
TEXT = "".join(f"line {number * number % 997} of a text\n" for number in range(1500))
"""A text in which every stretch is different."""
DOCUMENTS = [TEXT[i : i + 150] for i in range(0, len(TEXT), 150)]


def trained(folder: Path, corpus: str, tokens: int = 8192) -> Path:
    """A run of two SAEs on a tiny model."""
    lm = tiny_lm(d_vocab=128)
    lm.save(folder / "lm")
    content: dict[str, Any] = {
        "corpus": corpus, "tokens": tokens, "batch_tokens": 1024, "buffer_tokens": 4096, "context": 16,
        "warmup_steps": 1, "validations": 0, "saes": [{"method": "topk", "sites": SITES, "k": 2, "expansion": 2}],
    }  # fmt: skip
    config = validated(TrainConfig, content, "train")
    train(config, lm, load_corpus(corpus, lm, n_train=tokens), folder, Events(None))
    return folder


def bare(folder: Path) -> Path:
    """SAEs whose files say nothing of a text."""
    for seed, site in enumerate(SITES):
        sae = random_sae(16, 20, 4, seed)
        save_sae(sae, SaeCard.of(sae, "topk", "topk", Site.parse(site), {}), folder / "saes" / "topk" / site)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    return trained(tmp_path_factory.mktemp("run"), str(text))


@pytest.fixture
def lm(run: Path) -> LanguageModel:
    return LanguageModel.load(run / "lm")


def characters(corpus: Corpus) -> str:
    return Ascii().decode(corpus.val.flatten().tolist())


def test_it_is_what_was_held_out_of_the_text_of_the_run(run: Path, text: Path, lm: LanguageModel):
    n_train = int(0.9 * len(TEXT)) // 256 * 256
    for saes in ([run], [run / "saes" / "topk"], [f"resid_mid.0={run / 'saes' / 'topk' / 'resid_mid.0'}"]):
        corpus = evaluation_text(lm, saes)
        assert characters(corpus) == TEXT[n_train:]
        assert (corpus.seen, corpus.source) == ("held out", str(text))


def test_named_by_the_user_it_is_still_what_was_held_out(
    run: Path, text: Path, lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "copy.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    monkeypatch.chdir(text.parent)
    for spec in (str(text), text.name, str(tmp_path / "copy.txt.gz")):
        corpus = evaluation_text(lm, [run], spec)
        assert corpus.seen == "held out"
        assert torch.equal(corpus.val, evaluation_text(lm, [run]).val)


def test_of_another_text_all_is_read(run: Path, lm: LanguageModel, tmp_path: Path):
    (tmp_path / "other.txt").write_text("another text " * 100)
    corpus = evaluation_text(lm, [run], str(tmp_path / "other.txt"))
    assert (corpus.seen, characters(corpus)) == ("another text", "another text " * 100)
    corpus = evaluation_text(lm, [bare(tmp_path / "bare")], str(tmp_path / "other.txt"))
    assert (corpus.seen, characters(corpus)) == ("unknown", "another text " * 100)


@pytest.mark.parametrize("form", ["table.jsonl", "folder", "ids.npy", "rows.npy"])
def test_of_a_text_that_was_read_in_part_the_same_part_is_held_out(form: str, lm: LanguageModel, tmp_path: Path):
    import numpy as np

    ids = np.frombuffer(TEXT.encode(), np.uint8)
    if form == "ids.npy":
        np.save(tmp_path / form, ids)
    elif form == "rows.npy":
        np.save(tmp_path / form, ids[: len(ids) // 64 * 64].reshape(-1, 64))
    else:
        path = tmp_path / form / "a.jsonl" if form == "folder" else tmp_path / form
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"text": document}) + "\n" for document in DOCUMENTS))
    run = trained(tmp_path / "run", str(tmp_path / form), 4096)
    asked = load_corpus(str(tmp_path / form), lm, n_train=4096)
    assert 4096 <= asked.train.numel() < 6000
    for spec in (None, str(tmp_path / form)):
        corpus = evaluation_text(lm, [run], spec)
        assert corpus.seen == "held out"
        assert torch.equal(corpus.val, asked.val)


@pytest.mark.parametrize("source", ["x" * 5000, "hf://", "a\nb\x1b[31m", "\ud800", "a\0b"])
def test_a_card_whose_text_cannot_exist_is_refused_in_one_line(
    source: str, run: Path, lm: LanguageModel, tmp_path: Path
):
    shutil.copytree(run, tmp_path / "run")
    for path in (tmp_path / "run").rglob("sae.json"):
        card = json.loads(path.read_text())
        card["recipe"]["data"]["source"] = source
        path.write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"no text that the SAEs were trained on: .*name one with --tokens") as refusal:
        evaluation_text(lm, [tmp_path / "run"])
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("lost", [("recipe",), ("recipe", "data"), ("recipe", "data", "n_train")])
def test_where_a_card_lost_its_text_the_refusal_of_the_run_s_text_names_the_card(
    lost: tuple[str, ...], run: Path, text: Path, lm: LanguageModel, tmp_path: Path
):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run/saes/topk/resid_mid.0/sae.json"
    card = json.loads(path.read_text())
    inner = card
    for key in lost[:-1]:
        inner = inner[key]
    del inner[lost[-1]]
    path.write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"resid_mid\.0/sae\.json does not say which text.*give other text"):
        evaluation_text(lm, [tmp_path / "run"], str(text))


def test_where_no_file_says_it_must_be_named(run: Path, lm: LanguageModel, tmp_path: Path):
    for saes in ([bare(tmp_path / "bare")], [run, tmp_path / "bare"]):
        with pytest.raises(UserError, match="do not say which text the SAEs were trained on; name one with --tokens"):
            evaluation_text(lm, saes)
    (tmp_path / "second.txt").write_text(TEXT[::-1])
    second = trained(tmp_path / "second", str(tmp_path / "second.txt"))
    with pytest.raises(UserError, match=r"trained on several texts \(/.*.txt, /.*.txt\); name one with"):
        evaluation_text(lm, [run, second])
    assert evaluation_text(lm, [run, second], str(tmp_path / "second.txt")).seen == "held out"
    assert evaluation_text(LanguageModel.load("python-stdlib"), [tmp_path / "bare"]).name == "python-stdlib"


@pytest.mark.parametrize(
    ("field", "value"), [("fingerprint", []), ("fingerprint", {}), ("source", None), ("source", 5), ("tokenizer", [1]),
                         ("n_train", "x"), ("n_train", -5), ("n_val", True)],
)  # fmt: skip
def test_a_card_that_says_something_else_than_a_text_is_refused(field: str, value: object, tmp_path: Path):
    data = {"source": "a.txt", "fingerprint": "f", "tokenizer": "t", "n_train": 5, "n_val": 5}
    card = SaeCard.of(random_sae(16, 20, 4, 0), "topk", "topk", Site("resid_mid", 0), {"data": data | {field: value}})
    save_sae(random_sae(16, 20, 4, 0), card, tmp_path / "sae")
    with pytest.raises(UserError, match=rf"^[^\n]*sae\.json: recipe\.data\.{field}: [^\n]*; restore it"):
        trained_on([tmp_path])


def test_a_text_that_is_gone_or_has_changed_is_said(lm: LanguageModel, tmp_path: Path):
    path = tmp_path / "mine.txt"
    path.write_text(TEXT)
    run = trained(tmp_path / "run", str(path))
    path.write_text(TEXT + "more")
    with pytest.raises(UserError, match=r"mine.txt: is not the text any more .* name a text with --tokens"):
        evaluation_text(lm, [run])
    with pytest.raises(UserError, match=r"^mine.txt: 100 % of its passages are in the text that the SAEs were trained"):
        evaluation_text(lm, [run], str(path))
    path.write_text(TEXT[::-1])
    changed = evaluation_text(lm, [run], str(path))
    assert changed.seen == "unknown"
    assert any("has changed since the SAEs were trained on it" in remark for remark in changed.remarks(16))
    path.unlink()
    with pytest.raises(UserError, match=r"no text that the SAEs were trained on: .*mine.txt.*; name one with --tokens"):
        evaluation_text(lm, [run])


def other_tokenizer() -> LanguageModel:
    return LanguageModel(tiny_lm(d_vocab=300).hf, "bpe", byte_pairs([TEXT], 300))


def test_a_model_with_another_tokenizer_is_refused(run: Path, lm: LanguageModel, text: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"tokens of another tokenizer than that of bpe; name the model .* --lm"):
        evaluation_text(other_tokenizer(), [run])
    corpus = load_corpus(str(text), Ascii())
    config = ScoreConfig(ranking="leave_one_out_with_prior", rank_prompts=2, prompts=2, context=8)
    pair = Pair.between(other_tokenizer(), Block.parse("ff_block.0"), load_saes(run)["topk"])
    with pytest.raises(UserError, match="were made by another tokenizer than that of bpe"):
        score(pair, held_out(corpus, config), config)
    content = {"tokens": 100, "batch_tokens": 100, "saes": [{"method": "topk", "sites": SITES}]}
    with pytest.raises(UserError, match="were made by another tokenizer than that of bpe"):
        train(validated(TrainConfig, content, "train"), other_tokenizer(), corpus, tmp_path / "run", Events(None))


def test_a_tokenizer_that_was_saved_and_loaded_is_the_same(tmp_path: Path):
    lm = other_tokenizer()
    lm.save(tmp_path / "lm")
    again = LanguageModel.load(tmp_path / "lm").tokenizer
    assert again.fingerprint == lm.tokenizer.fingerprint != byte_pairs([TEXT[::-1] * 2], 300).fingerprint
    inner = byte_pairs([TEXT], 300).inner
    inner.add_tokens(["line"])
    assert Pretrained(inner, "one more").fingerprint != lm.tokenizer.fingerprint


FEW = ("--prompts", "3", "--context", "16")


def test_every_verb_reads_it_and_says_so(run: Path, text: Path, tmp_path: Path):
    mine = shutil.copytree(run, tmp_path / "run")
    few = (*FEW, "--rank-prompts", "2")
    said = "Text: lines.txt (48 tokens; held out when the SAEs were trained)"
    done = scalar("score", "--saes", mine, "--block", "ff_block.0", *few, "--out", tmp_path / "score.json")
    assert said in done.stdout
    done = scalar("circuit", "--saes", mine, "--sites", ",".join(SITES), *few, "--out", tmp_path / "circuit.json")
    assert said in done.stdout
    fingerprint = load_corpus(str(text), Ascii()).fingerprint
    for name in ("score", "circuit"):
        [record] = Results.read(tmp_path / f"{name}.json").records
        assert (record.data["seen"], record.data["fingerprint"]) == ("held out", fingerprint)
    assert said in scalar("measure", mine, *FEW).stdout
    assert said in scalar("features", mine, *FEW, "--edges", "none").stdout
    found = Results.read(mine / "results.json")
    for one in (*found.saes, *found.spliced, *found.reading):
        assert one.text is not None
        assert (one.text.seen, one.text.fingerprint, one.text.n_tokens) == ("held out", fingerprint, 48)
    page = scalar("report", mine) and (mine / "report.html").read_text()
    assert said.removeprefix("Text: ") in page


def test_a_blind_comparison_reads_it_too(run: Path, tmp_path: Path):
    sae = run / "saes" / "topk" / "resid_mid.0"
    prepare_blind(tmp_path / "blind", sae, sae, None, None, 1, 16)
    text = Pairs.read(tmp_path / "blind").text
    assert text is not None
    assert (text.corpus, text.seen) == ("lines.txt", "held out")


def test_another_text_is_said_to_be_one(run: Path, tmp_path: Path):
    (tmp_path / "other.txt").write_text(TEXT[::-1])
    where = ("score", "--saes", run, "--block", "ff_block.0", "--rank-prompts", "2", *FEW)
    done = scalar(*where, "--tokens", tmp_path / "other.txt")
    assert "Text: other.txt (48 tokens; not the text that the SAEs were trained on)" in done.stdout
    saes, model = bare(tmp_path / "bare"), ("--lm", run / "lm")
    done = scalar(*where[:2], saes, *where[3:], *model, "--tokens", tmp_path / "other.txt")
    assert "Text: other.txt (48 tokens; whether the SAEs were trained on it is not known)" in done.stdout
    done = scalar(*where[:2], saes, *where[3:], *model, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "name one with --tokens" in done.stderr


def test_prompts_unlike_those_that_saes_were_trained_on_are_said(run: Path, tmp_path: Path):
    """Ours name their context in the recipe, other people's files in their config; it is said before anything runs."""
    tiny_lm(d_vocab=128).save(tmp_path / "lm")
    lm, text = LanguageModel.load(tmp_path / "lm"), tmp_path / "other.txt"
    text.write_text(TEXT)
    export(list(find_saes(run)), "saelens", tmp_path / "theirs", model="toy")
    for config in tmp_path.rglob("cfg.json"):
        content = json.loads(config.read_text())
        content["metadata"] |= {"context_size": 12, "prepend_bos": True}
        config.write_text(json.dumps(content))
    corpus = load_corpus(str(text), lm)
    for saes, context, said in (
        (run, 16, ""),
        (run, 17, "resid_pre.0 and 2 more: trained on prompts of 16 tokens, and read on prompts of 17"),
        (tmp_path / "theirs", 8, "resid_pre.0 and 2 more: trained on prompts with a BOS in front, and read on prompts"),
        (
            tmp_path / "theirs",
            13,
            "12 tokens, and read on prompts of 13: it never saw the later positions (--context 12",
        ),
    ):
        differences: list[str] = []
        with mock.patch("scalar_sae.own_text.say_once", differences.append):
            say_unlike(load_saes(saes).values(), corpus, context)
        assert said in " ".join(differences)
        assert bool(said) == bool(differences)
    console.say_once.cache_clear()
    where = ("--saes", tmp_path / "theirs", "--lm", tmp_path / "lm", "--tokens", text, *FEW)
    assert "read on prompts of 16" in scalar("score", *where, "--block", "ff_block.0", "--rank-prompts", "2").stderr
    console.say_once.cache_clear()
    assert "read on prompts of 16" in scalar("measure", tmp_path / "theirs", *where[2:], "--out", tmp_path / "m").stderr


def test_prompts_that_were_cut_before_set_the_context(run: Path, tmp_path: Path):
    import numpy as np

    ids = np.frombuffer(TEXT.encode(), np.uint8)
    np.save(tmp_path / "rows.npy", ids[: len(ids) // 12 * 12].reshape(-1, 12))
    where = ("score", "--saes", run, "--block", "ff_block.0", "--prompts", "3", "--rank-prompts", "2")
    done = scalar(*where, "--tokens", tmp_path / "rows.npy", "--out", tmp_path / "out.json")
    assert "rows.npy (36 tokens" in done.stdout
    assert Results.read(tmp_path / "out.json").records[0].config["context"] == 12
    done = scalar(*where, "--tokens", tmp_path / "rows.npy", "--context", "16", check=False)
    assert "prompts of 12 tokens, not 16; lower the context" in done.stderr


def test_a_tokenizer_may_be_longer_than_the_vocabulary_of_the_model(text: Path, tmp_path: Path):
    """As Gemma 3's and Code Llama's are: what counts is the largest id in the text."""
    inner = byte_pairs([TEXT], 300).inner
    torch.manual_seed(0)
    hf = tiny_lm(d_vocab=len(inner)).hf
    inner.add_special_tokens({"additional_special_tokens": ["<image>"]})
    LanguageModel(hf, "bpe", Pretrained(inner, "bpe")).save(tmp_path / "lm")
    lm = LanguageModel.load(tmp_path / "lm")
    assert lm.tokenizer.d_vocab == lm.d_vocab + 1
    saes = [{"method": "topk", "sites": SITES, "k": 2, "expansion": 2}]
    content = {"lm": str(tmp_path / "lm"), "tokens": 2048, "batch_tokens": 512, "buffer_tokens": 1024, "context": 16}
    content |= {"warmup_steps": 1, "validations": 0, "saes": saes}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"train": {**content, "corpus": str(text)}}))
    scalar("train", tmp_path / "p.yaml", "--out", tmp_path / "run")
    done = scalar("score", "--saes", tmp_path / "run", "--block", "ff_block.0", *FEW, "--rank-prompts", "2")
    assert "lines.txt (48 tokens; held out when the SAEs were trained)" in done.stdout
    (tmp_path / "image.txt").write_text(f"{TEXT}<image>{TEXT}")
    (tmp_path / "q.yaml").write_text(yaml.safe_dump({"train": {**content, "corpus": str(tmp_path / "image.txt")}}))
    done = scalar("train", tmp_path / "q.yaml", "--out", tmp_path / "other", check=False)
    assert done.returncode == 2
    assert f"token {lm.d_vocab} (<image>, a special token of its tokenizer): the vocabulary of" in done.stderr
    assert f"ends at {lm.d_vocab - 1}; take the tokenizer that it was trained with" in done.stderr
    assert not (tmp_path / "other").exists()


def test_a_run_from_another_folder_finds_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    tiny_lm(d_vocab=128).save(tmp_path / "lm")
    content = {
        "train": {"lm": "lm", "corpus": "mine.txt", "tokens": 2048, "batch_tokens": 1024, "buffer_tokens": 2048,
                  "context": 16, "warmup_steps": 1, "validations": 0,
                  "saes": [{"method": "topk", "sites": SITES, "k": 2, "expansion": 2}]},
        "score": {"rankings": {"leave_one_out_with_prior": 2}, "prompts": 2, "context": 16},
    }  # fmt: skip
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
    scalar("train", "p.yaml", "--out", "run")
    data = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]
    assert data["source"] == str(tmp_path / "mine.txt")
    assert data["fingerprint"] == load_corpus("mine.txt", Ascii()).fingerprint
    monkeypatch.chdir("/")
    done = scalar("score", "--saes", tmp_path / "run", "--block", "ff_block.0", *FEW, "--rank-prompts", "2")
    assert "mine.txt (48 tokens; held out" in done.stdout
    assert trained_on([tmp_path / "run"])[0] == data
