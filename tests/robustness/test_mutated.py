"""Random bytes, and valid files at random places changed: every reader reads them, or refuses them in one line."""

import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from scalar_sae import jsonl
from scalar_sae.corpora import load_corpus
from scalar_sae.errors import LONGEST, UserError
from scalar_sae.evaluation.features.blind import Answer, Pairs
from scalar_sae.evaluation.features.judge import Said
from scalar_sae.evaluation.features.judged import Judged
from scalar_sae.evaluation.features.tables import SCHEMAS, read_counted, read_examples, read_table
from scalar_sae.io import read_plain
from scalar_sae.lm.model import LanguageModel
from scalar_sae.records.results import Results
from scalar_sae.saes.store import SaeCard, find_saes, load_sae, save_sae
from scalar_sae.scoring.rankings.from_file import saved_scores
from scalar_sae.sealed import DIGESTS, load_checkpoint, load_tensors, save_checkpoint, save_tensors, seal, sealed
from scalar_sae.sites import Site
from scalar_sae.study import RunConfig, StudyConfig
from tests.helpers import random_sae, tiny_lm, tiny_pair
from tests.robustness.hostile import write_tables
from tests.robustness.test_results import whole as two_records

PEERS = Path(__file__).resolve().parents[1] / "saes" / "formats" / "peers"
TENSORS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.tensor([1, 2])}
CHECKPOINT = {"position": (3, 1, 2), "learners": [TENSORS]}
TRAIN = {"corpus": "text.txt", "tokens": 512, "batch_tokens": 128,
         "saes": [{"method": "topk", "sites": ["resid_mid.0"], "k": 2}]}  # fmt: skip
CONFIG = {"train": TRAIN, "score": {"prompts": 2}, "data": {"n": 1}, "format_version": 1, "written_by": "x"}
PAIRS = {"names": {"a": "x", "b": "y"}, "pairs": [{"a": 1, "b": 2, "left": "a"}, {"a": 3, "b": 0, "left": "b"}]}
ROWS = {
    Answer: {"pair": 0, "choice": "left", "seconds": 1.5},
    Judged: {"latent": 3, "explanation": "é", "detection": 0.5, "fuzzing": None, "judge": {"model": "m", "seed": 0}},
    Said: {"question": "a" * 64, "answer": "1, 0"},
}


PLAY = partial(settings, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
               suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
LM, PAIR = cache(tiny_lm), cache(lambda: tiny_pair("ff_block.0"))


class Reader(NamedTuple):
    """How a valid file is made in a folder, and how it is read."""

    make: Callable[[Path], Path]
    """Returns the file."""
    read: Callable[[Path], Any]
    """Takes the file."""
    sealed: bool = False
    """Whether every change of what the file holds is found."""
    examples: int = 40


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return make


def _results(folder: Path) -> Path:
    two_records().write(folder / "results.json")
    return folder / "results.json"


def _sae(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        sae = random_sae(6, 8, 2, 0)
        save_sae(sae, SaeCard.of(sae, "topk", "topk", Site("resid_mid", 0), {"a": 1}), folder / "sae")
        return folder / "sae" / name

    return make


def _peer(library: str, name: str, file: str) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copytree(PEERS / library / name, folder / name)) / file


def _table(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_tables(folder / "tables")
        return folder / "tables" / f"{name}.parquet"

    return make


def _tensors(folder: Path) -> Path:
    save_tensors(folder / "x.safetensors", TENSORS)
    return folder / "x.safetensors"


def _checkpoint(folder: Path) -> Path:
    save_checkpoint(folder / "checkpoint.pt", CHECKPOINT)
    return folder / "checkpoint.pt"


def _digests(folder: Path) -> Path:
    (folder / "x").write_text("x")
    seal(folder, "x")
    return folder / DIGESTS


def _array(folder: Path) -> Path:
    np.save(folder / "ids.npy", np.arange(4000, dtype=np.uint16) % 32)
    return folder / "ids.npy"


def _ranking(folder: Path) -> Path:
    np.save(folder / "scores.npy", np.random.default_rng(0).random((24, 20), dtype=np.float32))
    return folder / "scores.npy"


def _lm(folder: Path) -> Path:
    LM().save(folder / "lm")
    return folder / "lm" / "config.json"


def _loaded(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path, "cpu", "a checkpoint", "remove it")


def _tables(path: Path) -> Any:
    return read_table(path.parent, path.stem), read_counted(path.parent), read_examples(path.parent)


def _above(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Read the folder that a file is in."""

    def reading(path: Path) -> Any:
        return read(path.parent)

    return reading


def _saes(folder: Path) -> Any:
    return list(find_saes(folder))


def _corpus(path: Path) -> Any:
    return load_corpus(str(path), LM())


def _preset(path: Path) -> Any:
    return StudyConfig.from_preset(str(path))


def _scores(path: Path) -> Any:
    return saved_scores(path, PAIR())


def _kept_tensors(path: Path) -> Any:
    return load_tensors(path, "remove it")


READERS: dict[str, Reader] = {
    **{f"{row.__name__}.jsonl": Reader(_text(f"{row.__name__}.jsonl", f"\n{json.dumps(content)}\n" * 2),
                                       partial(jsonl.read, schema=row))
       for row, content in ROWS.items()},
    **{f"{name}.parquet": Reader(_table(name), _tables, examples=20) for name in SCHEMAS},
    "results.json": Reader(_results, Results.read, examples=25),
    "sae.json": Reader(_sae("sae.json"), _above(load_sae)),
    "sae.safetensors": Reader(_sae("sae.safetensors"), _above(load_sae), sealed=True),
    "config.yaml": Reader(_text("config.yaml", yaml.safe_dump(CONFIG)), RunConfig.read, examples=25),
    "preset.yaml": Reader(_text("preset.yaml", yaml.safe_dump({"train": TRAIN})),
                          _preset, examples=25),
    "pairs.json": Reader(_text("pairs.json", json.dumps(PAIRS)), _above(Pairs.read)),
    "settings.json": Reader(_text("settings.json", json.dumps({"a": [1, {"b": None}]})), read_plain),
    "tensors": Reader(_tensors, _kept_tensors, sealed=True),
    "checkpoint.pt": Reader(_checkpoint, _loaded, sealed=True),
    "sha256.json": Reader(_digests, _above(sealed)),
    "scores.npy": Reader(_ranking, _scores),
    "ids.npy": Reader(_array, _corpus),
    "text.txt": Reader(_text("text.txt", "one two three \x01\x02" * 300),
                       _corpus),
    "a table of texts": Reader(_text("text.jsonl", '{"text": "one two three"}\n' * 100),
                               _corpus),
    "lm/config.json": Reader(_lm, _above(LanguageModel.load), examples=15),
    "SAELens, its config": Reader(_peer("saelens", "topk", "cfg.json"), _above(_saes)),
    "SAELens, its weights": Reader(_peer("saelens", "topk", "sae_weights.safetensors"),
                                   _above(_saes)),
    "dictionary_learning, its config": Reader(_peer("dictionary_learning", "AutoEncoderTopK", "config.json"),
                                              _above(_saes)),
    "dictionary_learning, its weights": Reader(_peer("dictionary_learning", "AutoEncoderTopK", "ae.pt"),
                                               _above(_saes)),
    "sparsify, its config": Reader(_peer("sparsify", "h.2", "cfg.json"), _above(_saes)),
}  # fmt: skip
PIECES = st.sampled_from([
    b"", b"\x00", b"\xff", b"null", b"-1", b"NaN", b"1e999", b"9" * 30, b'"', b"{", b"}", b"[", b"]", b",", b":", b"\n",
    b"\\ud800", b"\xed\xa0\x80", b"true", b"[]", b"{}", b'""', b"!!python/name:os.system ", b"&a *a", b"../..", b"0",
])  # fmt: skip
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "replace", "insert", "cut", "delete", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 40),
        PIECES | st.binary(max_size=6),
    ),
    min_size=1,
    max_size=3,
)


def changed(content: bytes, changes: list[tuple[str, float, int, bytes]]) -> bytes:
    """The content after some changes at places that are given as shares of it."""
    for kind, share, n, piece in changes:
        at = int(share * len(content))
        before, here, after = content[:at], content[at : at + n], content[at + n :]
        if kind == "flip" and here:
            content = before + bytes([here[0] ^ 1 << n % 8]) + here[1:] + after
        elif kind == "cut":
            content = before
        else:
            middle = {"replace": piece, "insert": piece + here, "delete": b"", "repeat": here * 3}.get(kind, here)
            content = before + middle + after
    return content


def read_or_refused(reader: Reader, path: Path) -> Any:
    """What is read, or None where it is refused as it should be."""
    try:
        return reader.read(path)
    except UserError as error:
        said = str(error)
        assert said.isprintable()
        assert len(said) <= LONGEST
        assert path.name in said or str(path.parent) in said, said
        return None


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_a_file_that_was_changed_at_random_is_read_or_refused_in_one_line(reader: Reader, tmp_path: Path):
    path = reader.make(tmp_path)
    content = path.read_bytes()
    usual = _plain(reader.read(path)) if reader.sealed else None

    @PLAY(max_examples=reader.examples)
    @given(changes=CHANGES)
    def play(changes: list[tuple[str, float, int, bytes]]) -> None:
        path.write_bytes(changed(content, changes))
        found = read_or_refused(reader, path)
        if reader.sealed and found is not None:
            assert _plain(found) == usual

    play()


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_random_bytes_are_read_or_refused_in_one_line(reader: Reader, tmp_path: Path):
    path = reader.make(tmp_path)

    @PLAY(max_examples=12)
    @given(content=st.binary(max_size=200) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "ignore")))
    def play(content: bytes) -> None:
        path.write_bytes(content)
        read_or_refused(reader, path)

    play()


def _plain(value: Any) -> Any:
    """Nested values with numbers in the place of tensors."""
    if isinstance(value, Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return _plain(vars(value)) if hasattr(value, "__dict__") else value
