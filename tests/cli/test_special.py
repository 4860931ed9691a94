"""Special tokens from the command line: records and logs count the positions that a count by hand gives."""

import json
import random
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from safetensors.torch import load_file

from scalar_sae import console
from scalar_sae.lm.model import LanguageModel
from scalar_sae.records.results import Results
from scalar_sae.saes.store import load_sae
from scalar_sae.scoring import score as benchmark
from scalar_sae.scoring.curve import measure
from scalar_sae.tokenizer import Pretrained, byte_pairs
from tests.helpers import tiny_lm
from tests.test_study import scalar

CONTEXT = 12
WORDS = ["if", "else", "return", "x", "y", "(", ")", "=", "1", "22"]
DOCUMENTS = [" ".join(random.Random(n).choices(WORDS, k=9 + n % 13)) for n in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer, a text of documents, and a preset that trains on it."""
    folder = tmp_path_factory.mktemp("special")
    inner = byte_pairs(DOCUMENTS, 270).inner
    LanguageModel(tiny_lm(d_vocab=len(inner)).hf, "bpe", Pretrained(inner, "bpe")).save(folder / "lm")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in DOCUMENTS))
    train = {
        "lm": str(folder / "lm"), "corpus": str(folder / "text.jsonl"), "tokens": 2000, "batch_tokens": 400,
        "buffer_tokens": 10_000, "context": CONTEXT, "warmup_steps": 1, "validations": 0,
        "saes": [{"method": "topk", "sites": ["ff_blocks"], "k": 2, "expansion": 2}],
    }  # fmt: skip
    score = {
        "rankings": {"leave_one_out_with_prior": 3},
        "prompts": 3,
        "context": CONTEXT,
        "edges": "1,16",
        "controls": [],
    }
    (folder / "preset.yaml").write_text(yaml.safe_dump({"train": train, "score": score}))
    scalar("train", folder / "preset.yaml", "--out", folder / "run", "--cache", folder / "cache")
    return folder


@pytest.fixture(scope="module")
def ids(folder: Path) -> list[int]:
    """The text in tokens: an end of text, id 0, stands between two documents."""
    tokenizer = LanguageModel.load(folder / "lm").tokenizer
    assert (tokenizer.eos, tokenizer.special, tokenizer.start) == (0, (0,), ())
    encoded = [tokenizer.encode(document)[0].tolist() for document in DOCUMENTS]
    assert not any(0 in document for document in encoded)
    return [*encoded[0], *(token for document in encoded[1:] for token in (0, *document))]


def by_hand(ids: list[int]) -> tuple[int, int]:
    """The positions of all whole prompts in a stretch of text: ordinary ones, and those of token 0."""
    whole = ids[: len(ids) // CONTEXT * CONTEXT]
    return len(whole) - whole.count(0), whole.count(0)


RULES = [((), True), (("--special", "skip"), True), (("--special", "count"), False), (("--special", "0"), True)]


@pytest.mark.parametrize(("rule", "skips"), RULES)
def test_training(rule: tuple[str, ...], skips: bool, folder: Path, ids: list[int], tmp_path: Path):
    text, special = by_hand(ids[: int(0.9 * len(ids)) // 256 * 256])
    scalar("train", folder / "preset.yaml", "--out", tmp_path / "run", "--cache", tmp_path / "cache", *rule)
    said = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[0])["special"]
    assert said == {"ids": [0] if skips else [], "left_out": special if skips else 0, "of": text + special}
    kept = load_file(tmp_path / "cache" / "buffer-000000.safetensors")
    assert {len(acts) for acts in kept.values()} == {text if skips else text + special}
    assert load_sae(tmp_path / "run" / "saes" / "topk" / "resid_mid.0")[1].recipe["special"] == said


@pytest.mark.parametrize(("rule", "skips"), RULES)
def test_measuring(rule: tuple[str, ...], skips: bool, folder: Path, ids: list[int], tmp_path: Path):
    held_out = ids[int(0.9 * len(ids)) // 256 * 256 :]
    held_out = held_out[len(held_out) // 2 :]
    console.say_once.cache_clear()
    size = ("--prompts", str(len(held_out) // CONTEXT), "--context", str(CONTEXT))
    done = scalar("measure", folder / "run", *size, "--out", tmp_path / "own", *rule)
    text, special = by_hand(held_out)
    for record in Results.read(tmp_path / "own" / "results.json").saes:
        assert (record.n_tokens, record.n_special) == ((text, special) if skips else (text + special, 0))
    assert (f"{special} of {text + special} positions hold special tokens" in done.stderr) == skips


@pytest.mark.parametrize(("rule", "skips"), [*RULES, (("--published",), False)])
def test_scoring(rule: tuple[str, ...], skips: bool, folder: Path, ids: list[int], tmp_path: Path):
    held_out = ids[int(0.9 * len(ids)) // 256 * 256 :]
    scored = held_out if rule == ("--published",) else held_out[len(held_out) // 2 :]
    text, special = by_hand(scored)
    assert special > 0
    size = ("--prompts", str(len(scored) // CONTEXT), "--rank-prompts", "2", "--context", str(CONTEXT))
    where = ("--saes", folder / "run", "--block", "ff_block.0", "--edges", "1,16")
    scalar("score", *where, *size, "--out", tmp_path / "s.json", *rule)
    [record] = Results.read(tmp_path / "s.json").records
    assert (record.n_tokens, record.n_special) == ((text, special) if skips else (text + special, 0))
    assert record.special == ([0] if skips else [])


def test_a_study_that_was_stopped_gives_the_same_records(folder: Path, tmp_path: Path):
    def quickstart(out: Path, **options: bool) -> int:
        return scalar("quickstart", "--preset", folder / "preset.yaml", "--out", out, **options).returncode

    quickstart(tmp_path / "whole")
    calls: list[None] = []

    def stopping(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    with mock.patch.object(benchmark, "measure", stopping):
        assert quickstart(tmp_path / "stopped", check=False) == 130
        quickstart(tmp_path / "stopped")
    whole, stopped = (Results.read(tmp_path / name / "results.json").records for name in ("whole", "stopped"))
    assert len(calls) == 3 * len(whole) + 1, "of three prompts a record the one that was begun is read again"
    assert all(record.n_special > 0 and record.special == [0] for record in whole)
    without = {"seconds", "config"}
    assert [r.model_dump(exclude=without) for r in stopped] == [r.model_dump(exclude=without) for r in whole]
