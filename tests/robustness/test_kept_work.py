"""What is kept between two runs (unfinished scores, caches, feature tables) is whole, or is named and not used."""

import json
import os
import re
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from scalar_sae.activations.cache import CachedStream
from scalar_sae.activations.stream import ActivationStream
from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.tables import SCHEMAS, by_latent, read_rows, read_table, write_table
from scalar_sae.scoring.rankings.unfinished import Unfinished
from scalar_sae.sealed import load_unfinished, save_tensors
from tests.helpers import tiny_lm, tiny_pair
from tests.robustness.hostile import write_tables
from tests.scoring.test_score import scored, stopping_at
from tests.training.runs import SITES, random_prompts


def flip(path: Path, place: float) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)


def tensors_changed(path: Path) -> None:
    """Write other numbers as somebody would by hand, with the metadata of the old ones."""
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a bit of the header": lambda path: flip(path, 0.1),
    "a bit of the numbers": lambda path: flip(path, 0.95),
    "text": lambda path: path.write_text("a web page"),
    "other numbers": tensors_changed,
}


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The folder of a scoring that was stopped after its ranking and its first prompt."""
    with pytest.raises(KeyboardInterrupt):
        scored(tiny_pair("ff_block.0"), on_progress=stopping_at(4), partial=tmp_path)
    (folder,) = tmp_path.iterdir()
    return folder


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_ranking_is_named_and_made_again(
    damage: Callable[[Path], object], stopped: Path, capsys: pytest.CaptureFixture[str]
):
    expected = scored(tiny_pair("ff_block.0")).model_dump(exclude={"seconds"})
    capsys.readouterr()
    damage(stopped / "ranking.safetensors")
    assert scored(tiny_pair("ff_block.0"), partial=stopped.parent).model_dump(exclude={"seconds"}) == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{stopped / 'ranking.safetensors'}: damaged (" in line
    assert line.endswith("; its part of the work is done again")
    scored(tiny_pair("ff_block.0"), partial=stopped.parent)
    assert capsys.readouterr().err == "", "it was mended"


def test_a_ranking_of_another_record_is_not_taken_for_this_one(stopped: Path, capsys: pytest.CaptureFixture[str]):
    """The same shape and whole, but of other settings: a user who copies folders."""
    expected = scored(tiny_pair("ff_block.0")).model_dump(exclude={"seconds"})
    other = stopped.parent / "other"
    with pytest.raises(KeyboardInterrupt):
        scored(tiny_pair("ff_block.0"), "random", on_progress=stopping_at(4), partial=other)
    for name in ("ranking.safetensors", "prompts.0.jsonl"):
        shutil.copyfile(next(other.iterdir()) / name, stopped / name)
    capsys.readouterr()
    assert scored(tiny_pair("ff_block.0"), partial=stopped.parent).model_dump(exclude={"seconds"}) == expected
    said = capsys.readouterr().err
    assert "ranking.safetensors: damaged" in said
    assert "prompts.0.jsonl: 1 of 1 prompts are cut short or damaged; they are swept again" in said


def line_changed(line: str) -> str:
    """Another number in the record of a prompt."""
    entry = json.loads(line)
    entry["floor_kl"] = [entry["floor_kl"][0] + 1]
    return json.dumps(entry)


CHANGES: list[Callable[[str], str]] = [
    line_changed,
    lambda line: line[:-9],
    lambda line: line.replace("0", "1", 1),
    lambda line: "[1]",
    lambda line: "[" * 100_000,
    lambda line: "\udcff" + line,
    lambda line: json.dumps({"number": 0}),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_prompt_is_named_and_swept_again(
    change: Callable[[str], str], stopped: Path, capsys: pytest.CaptureFixture[str]
):
    expected = scored(tiny_pair("ff_block.0")).model_dump(exclude={"seconds"})
    path = stopped / "prompts.0.jsonl"
    (line,) = path.read_text().strip().splitlines()
    path.write_text(change(line), errors="surrogateescape")
    capsys.readouterr()
    assert scored(tiny_pair("ff_block.0"), partial=stopped.parent).model_dump(exclude={"seconds"}) == expected
    assert f"{path}: 1 of 1 prompts are cut short or damaged; they are swept again" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ranking.safetensors", "prompts.0.jsonl"])
@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_cannot_be_replaced_by_a_file_is_refused_before_any_work(name: str, kind: str, stopped: Path):
    (stopped / name).unlink()
    (stopped / name).mkdir() if kind == "folder" else os.mkfifo(stopped / name)
    with pytest.raises(UserError, match=rf"{name}: a (folder|pipe or device), expected a file; move it away$"):
        scored(tiny_pair("ff_block.0"), partial=stopped.parent)
    assert (stopped / name).is_dir() == (kind == "folder")


def test_sums_of_a_ranking_are_read_where_they_were_written_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("scalar_sae.scoring.rankings.unfinished.SELDOM", 0.0)
    first, second = slice(0, 3), slice(3, 6)
    kept = Unfinished(tmp_path, "record")
    kept.keep_sums(first, 2, torch.ones(4, 3))
    total = torch.zeros(4, 3)
    assert kept.sums(first, total) == 2
    assert total.eq(1).all()
    (path,) = tmp_path.iterdir()
    path.rename(tmp_path / path.name.replace("0-3", "3-6"))
    total.zero_()
    for other in (kept, Unfinished(tmp_path, "another record"), kept.part("x")):
        assert other.sums(second, total) == 0
    assert total.eq(0).all()
    assert capsys.readouterr().err.count("its part of the work is done again") == 2


def test_kept_tensors_are_those_of_their_work(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    assert load_unfinished(path, "a") == {}
    save_tensors(path, {"x": torch.arange(3)}, "a")
    assert load_unfinished(path, "a")["x"].tolist() == [0, 1, 2]
    assert load_unfinished(path, "b") == {}


def cached(folder: Path, seed: int = 0) -> CachedStream:
    return CachedStream(ActivationStream(tiny_lm(), random_prompts(), SITES, buffer_tokens=64, seed=seed), folder, 2)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_buffer_is_refused_and_stays(damage: Callable[[Path], object], tmp_path: Path):
    whole = list(islice(cached(tmp_path).buffers(), 2))
    path = tmp_path / "buffer-000001.safetensors"
    damage(path)
    before, stream = path.read_bytes(), cached(tmp_path).buffers()
    assert all(torch.equal(a, b) for a, b in zip(next(stream).values(), whole[0].values(), strict=True))
    with pytest.raises(UserError, match=rf"{path}: damaged \([^\n]+\); delete it, and it is made again$"):
        next(stream)
    assert path.read_bytes() == before
    path.unlink()
    again = list(islice(cached(tmp_path).buffers(), 2))
    assert all(torch.equal(a, b) for a, b in zip(again[1].values(), whole[1].values(), strict=True))


def test_a_buffer_of_another_number_or_recipe_is_refused(tmp_path: Path):
    for folder, seed in (("a", 0), ("b", 1)):
        list(islice(cached(tmp_path / folder, seed).buffers(), 2))
    names = [f"buffer-{index:06d}.safetensors" for index in range(2)]
    shutil.copyfile(tmp_path / "b" / names[0], tmp_path / "a" / names[0])
    with pytest.raises(UserError, match=rf"{names[0]}: damaged"):
        next(cached(tmp_path / "a").buffers())
    shutil.copyfile(tmp_path / "b" / names[1], tmp_path / "b" / names[0])
    with pytest.raises(UserError, match=rf"{names[0]}: damaged"):
        next(cached(tmp_path / "b", 1).buffers())


@pytest.mark.parametrize("name", ["manifest.json", "buffer-000001.safetensors"])
def test_a_folder_in_a_caches_place_is_refused_before_any_work(name: str, tmp_path: Path):
    list(islice(cached(tmp_path).buffers(), 2))
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"{name}: a folder, expected a file; move it away$"):
        cached(tmp_path)


def test_a_changed_manifest_is_refused(tmp_path: Path):
    cached(tmp_path)
    path = tmp_path / "manifest.json"
    there = json.loads(path.read_text())
    for changes, said in (
        ({"recipe": {**there["recipe"], "seed": 1}}, "the hash is not that of the recipe; restore it from a copy"),
        ({"format_version": 2, "written_by": "scalar-sae 9"}, r"written by scalar-sae 9 \(format_version 2\), this is"),
        ({"more": 1}, "more is not a field that this version knows"),
    ):
        path.write_text(json.dumps({**there, **changes}))
        with pytest.raises(UserError, match=rf"manifest\.json: {said}"):
            cached(tmp_path)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_table_with_a_changed_bit_is_refused_or_says_the_same(name: str, tmp_path: Path):
    write_tables(tmp_path / "x")
    path = tmp_path / "x" / f"{name}.parquet"
    content, right = path.read_bytes(), read_table(path.parent, name)
    rng, refused = np.random.default_rng(0), list[str]()
    for place in [*rng.integers(len(content), size=100), *rng.integers(len(content) * 4 // 5, len(content), size=100)]:
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            assert read_table(path.parent, name).equals(right, check_metadata=False)
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all(said.startswith(f"{path}: ") and "\n" not in said for said in refused)


def test_statistics_that_would_hide_rows_are_refused(tmp_path: Path):
    write_tables(tmp_path / "x")
    path = tmp_path / "x" / "contexts.parquet"
    right, last = by_latent(read_table(path.parent, "contexts")), (3).to_bytes(4, "little")
    write_table(right, path)
    content, refused = path.read_bytes(), list[str]()
    for place in (found.start() for found in re.finditer(re.escape(last), content)):
        path.write_bytes(content[:place] + (2).to_bytes(4, "little") + content[place + 4 :])
        try:
            read_table(path.parent, "contexts")
            rows = [read_rows(path.parent, "contexts", range(latent, latent + 1)) for latent in range(4)]
            assert pa.concat_tables(rows).equals(right, check_metadata=False)
        except UserError as error:
            refused.append(str(error))
    assert any("the statistics of a row group are not those of its rows" in said for said in refused)


def test_a_table_that_was_written_by_something_else_is_refused(tmp_path: Path):
    write_tables(tmp_path / "x")
    path = tmp_path / "x" / "latents.parquet"
    table = pq.read_table(path)
    density = table["density"].to_pylist()
    column = table.column_names.index("density")
    pq.write_table(table.set_column(column, "density", pa.array([0.5, *density[1:]])), path)
    with pytest.raises(UserError, match=r"latents\.parquet: damaged \(its SHA-256 is not that of what was written\)"):
        read_table(path.parent, "latents")
    pq.write_table(table.replace_schema_metadata(None), path)
    with pytest.raises(UserError, match=r"latents\.parquet: not a table of scalar features \(it has no SHA-256\)"):
        read_table(path.parent, "latents")
    stamp = json.loads(table.schema.metadata[b"scalar_sae"]) | {"format_version": 2, "written_by": "scalar-sae 9"}
    pq.write_table(table.replace_schema_metadata({b"scalar_sae": json.dumps(stamp)}), path)
    with pytest.raises(UserError, match=r"written by scalar-sae 9 \(format_version 2\), this is scalar-sae"):
        read_table(path.parent, "latents")
    for stamp in (b"{", b"[]", b"\xff", b'{"sha256": 1}'):
        pq.write_table(table.replace_schema_metadata({b"scalar_sae": stamp}), path)
        with pytest.raises(UserError, match=r"latents\.parquet: damaged"):
            read_table(path.parent, "latents")


def test_a_table_is_read_back_with_its_metadata(tmp_path: Path):
    table = pa.table(
        {"token": [1, 2], "text": ["a", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")]}
    )
    write_table(table.replace_schema_metadata({"counted": "{}"}), tmp_path / "vocabulary.parquet")
    found = read_table(tmp_path, "vocabulary")
    assert found.to_pylist() == table.to_pylist()
    assert found.schema.metadata[b"counted"] == b"{}"
    pipe = tmp_path / "edges.parquet"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=r"edges\.parquet: a pipe or device, expected a file"):
        read_table(tmp_path, "edges")
