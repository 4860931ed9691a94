"""Files that are no files, that lead in circles, that are huge only by what they say, and names that lead elsewhere."""

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from scalar_sae.bounds import folder_name
from scalar_sae.cli.verbs import check_numbers
from scalar_sae.errors import UserError
from scalar_sae.lm.loading import model_in
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.train import LmRecipe
from scalar_sae.readers import read_text
from scalar_sae.records.results import Results
from scalar_sae.report.page import write_report
from scalar_sae.saes.formats.files import Found
from scalar_sae.saes.formats.tensors import read_tensors
from scalar_sae.saes.store import find_saes, load_saes
from scalar_sae.scoring.config import ScoreConfig, counts_of
from scalar_sae.scoring.rankings.from_file import saved_scores
from scalar_sae.sealed import check_digest, load_checkpoint, load_tensors
from scalar_sae.sites import Block, Site
from scalar_sae.training.config import TrainConfig, validated
from tests.helpers import tiny_lm, tiny_pair
from tests.training.runs import SMALL, TOPK

PEERS = Path(__file__).parents[1] / "saes" / "formats" / "peers" / "saelens" / "topk"


@pytest.fixture
def sae(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PEERS, tmp_path / "saes" / "topk"))


def test_links_in_a_circle_end(sae: Path):
    """Two links to their own folder double the paths at every level."""
    expected = len(list(find_saes(sae.parent)))
    for name in ("a", "b", "zz"):
        (sae.parent / name).symlink_to(sae.parent)
        (sae.parent / f"{name} above").symlink_to(sae.parent.parent)
    (sae.parent / "itself").symlink_to(sae.parent / "itself")
    assert len(list(find_saes(sae.parent))) == expected == 1
    assert len(list(find_saes(sae.parent.parent))) == 1


def test_links_that_meet_again_and_again_end(tmp_path: Path):
    """Forty folders with two links each to the next have 2^40 paths."""
    for number in range(40):
        (tmp_path / str(number)).mkdir()
        for name in ("a", "b"):
            (tmp_path / str(number) / name).symlink_to(tmp_path / str(number + 1))
    shutil.copytree(PEERS, tmp_path / "40")
    assert len(list(find_saes(tmp_path / "0"))) == 1


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_pipe_among_the_files_of_an_sae_is_refused(name: str, sae: Path):
    (sae / name).unlink()
    os.mkfifo(sae / name)
    with pytest.raises(UserError, match=rf"{name}: a pipe or device, expected a file; move it away$"):
        load_saes(sae)


def test_pipes_that_nobody_reads_are_skipped(sae: Path):
    os.mkfifo(sae.parent / "pipe")
    os.mkfifo(sae.parent / "model.safetensors")
    assert len(list(find_saes(sae.parent))) == 1
    os.mkfifo(sae.parent / "config.json")
    assert model_in(sae.parent) is None
    with pytest.raises(UserError, match=r"config\.json: a pipe or device, expected a file; move it away$"):
        list(find_saes(sae.parent))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"])
def test_a_pipe_among_the_files_of_a_model_is_refused(name: str, tmp_path: Path):
    tiny_lm().hf.save_pretrained(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=r"(pipe or device|no config\.json there)"):
        LanguageModel.load(tmp_path)


def test_a_config_that_is_nested_too_deeply_is_one_line(sae: Path):
    (sae / "cfg.json").write_text("[" * 200_000)
    with pytest.raises(
        UserError, match=r"cfg\.json cannot be read \([^\n]*nested too deeply[^\n]*\)|maximum recursion"
    ):
        load_saes(sae)
    (sae.parent / "config.json").write_text("[" * 200_000)
    assert model_in(sae.parent) is None


def npy(shape: tuple[int, ...], path: Path) -> None:
    """A file that says it holds so many numbers, and holds a few."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.write(bytes(64))


def test_a_matrix_that_is_large_by_its_header_is_not_read(tmp_path: Path):
    pair = tiny_pair("ff_block.0")
    right = (pair.up.d_sae, pair.down.d_sae)
    npy((2**21, 2**21), tmp_path / "huge.npy")
    npy(right, tmp_path / "cut.npy")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, a=np.zeros(right))
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**21, 2**21], "data_offsets": [0, 2**44]}}).encode()
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (tmp_path / "header.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    save_file({"a": torch.zeros(2, 2)}, tmp_path / "small.safetensors")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(UserError, match=rf"{path}: [^\n]+; (save|move)[^\n]+$"):
            saved_scores(path, pair)
    scores = torch.rand(right)
    save_file({"a": scores}, tmp_path / "right.safetensors")
    np.save(tmp_path / "right.npy", scores.numpy())
    for path in tmp_path.glob("right.*"):
        assert torch.equal(saved_scores(path, pair), scores)


def bomb(path: Path) -> None:
    """An archive whose list of contents says that it unpacks to four gigabytes."""
    np.savez_compressed(path, a=np.zeros(1000, dtype=np.float32))
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[start + 24 : start + 28] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert archive.infolist()[0].file_size > 2**31


def huge_inside(path: Path) -> None:
    npy((2**21, 2**21), path.with_suffix(".npy"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_suffix(".npy"), "a.npy")


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "bomb.npz": bomb,
    "huge.npz": huge_inside,
    "empty.npz": Path.touch,
    "empty.pt": Path.touch,
    "garbage.pt": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "text.pt": lambda path: path.write_text("a web page"),
    "header.safetensors": lambda path: path.write_bytes(struct.pack("<Q", 2**40) + b"{}"),
    "pipe.pt": os.mkfifo,
    "folder.pt": Path.mkdir,
}


@pytest.mark.parametrize(("name", "make"), UNREADABLE.items())
def test_other_peoples_tensors_that_cannot_be_read_are_one_line_with_a_remedy(
    name: str, make: Callable[[Path], object], tmp_path: Path
):
    make(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}[^\n]+[;:] [^\n]+$"):
        read_tensors(tmp_path / name)


def test_a_tensor_that_is_large_only_by_its_shape_is_refused(tmp_path: Path):
    torch.save({"W": torch.zeros(1).expand(2**20, 2**20), "b": torch.zeros(1).expand(8)}, tmp_path / "x.pt")
    tensors = read_tensors(tmp_path / "x.pt")
    assert tensors["b"].tolist() == [0] * 8
    with pytest.raises(UserError, match=r"x\.pt: W has shape \(1048576, 1048576\), and its file holds fewer numbers"):
        _ = tensors["W"]


def test_a_file_of_holes_is_not_read_for_hours(tmp_path: Path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"begins well")
    try:
        os.truncate(path, 2**41)
    except OSError:
        pytest.skip("no large files here")
    for read in (
        lambda: read_text(path, ""),
        lambda: check_digest(path, "", "restore it"),
        lambda: load_tensors(path, "restore it"),
        lambda: load_checkpoint(path, "cpu", "a checkpoint", "restore it"),
        lambda: read_tensors(path),
        lambda: Results.read(path),
    ):
        with pytest.raises(UserError, match=r"x\.bin: of its 2,199,023,255,552 bytes [0-9,]+ are on the disk, [^\n]+"):
            read()


@pytest.mark.parametrize("content", ["a: [", "\tx: 1", "a: 1\n---\nb: 2", "a: !!python/object:os.x {}", "a: .nan"])
def test_a_report_reads_its_config_as_everything_else_does(content: str, tmp_path: Path):
    Results().write(tmp_path / "results.json")
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml[^\n]+$"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(UserError, match=r"config\.yaml: a folder, expected a file"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


LEADING_OUT = [
    "..",
    ".",
    ".hidden",
    "",
    "a/b",
    "a\\b",
    "../x",
    "a\nb",
    "a\x1b[31m",
    "\x00",
    "n" * 300,
    "é" * 150,
    "\u202e",
]


@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_name_that_cannot_be_a_folders_is_refused(name: str, tmp_path: Path):
    with pytest.raises(ValueError, match="expected"):
        folder_name(name)
    with pytest.raises(UserError, match=r"^train: saes\.0\.topk\.name: expected [^\n]+$"):
        validated(TrainConfig, {**SMALL, "saes": [{**TOPK, "name": name}]}, "train")
    sae = tiny_pair("ff_block.0").up
    with pytest.raises(UserError, match=r"^the name [^\n]+ cannot be that of a folder \(expected [^\n]+; rename"):
        Found(sae, name, "resid_post.0")


@pytest.mark.parametrize("name", ["a b", "name with [b] markup", "a,b", "é"])
def test_names_of_our_own_are_plain_and_those_of_others_need_not_be(name: str):
    with pytest.raises(UserError, match="expected up to 100 letters, digits"):
        validated(TrainConfig, {**SMALL, "saes": [{**TOPK, "name": name}]}, "train")
    assert Found(tiny_pair("ff_block.0").up, name, "resid_post.0").group == name


LAYERS = ["9" * 20, "9" * 5000, "٣", "-1", "1.5", "", " 1", "1\n"]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_site_whose_layer_is_no_small_number_is_refused(layer: str):
    for name in (f"resid_post.{layer}", f"blocks.{layer}.hook_resid_post", f"model.layers.{layer}.mlp"):
        with pytest.raises(UserError, match=r"site [^\n]+: expected [^\n]+$"):
            Site.parse(name)
    with pytest.raises(UserError, match=r"block [^\n]+: expected [^\n]+$"):
        Block.parse(f"ff_block.{layer}")


BIG, INF, NAN = 10**20, float("inf"), float("nan")
NUMBERS = {"integer": [BIG, -1, INF, NAN], "float": [INF, NAN, -1.0, 1e300]}


@pytest.mark.parametrize(
    ("model", "base", "kind", "fields"),
    [
        (
            LmRecipe,
            {},
            "integer",
            "steps batch_size context d_vocab d_model n_layers n_heads seed eval_every warmup_steps",
        ),
        (LmRecipe, {}, "float", "lr min_lr beta2 weight_decay clip"),
        (
            TrainConfig,
            {**SMALL, "saes": [TOPK]},
            "integer",
            "tokens batch_tokens buffer_tokens context warmup_steps seed",
        ),
        (TrainConfig, {**SMALL, "saes": [TOPK]}, "integer", "validations"),
        (TrainConfig, {**SMALL, "saes": [TOPK]}, "float", "lr min_lr beta2 clip"),
        (ScoreConfig, {}, "integer", "prompts context seed"),
        (ScoreConfig, {}, "float", "memory"),
    ],
)
def test_numbers_beyond_their_bounds_are_refused_by_name(
    model: type[LmRecipe | TrainConfig | ScoreConfig], base: dict[str, Any], kind: str, fields: str
):
    for field in fields.split():
        for value in NUMBERS[kind]:
            with pytest.raises(UserError, match=rf"^x: {field}: [^\n]+$|^x: min_lr = 1e\+300 is above lr"):
                validated(model, {**base, field: value}, "x")


@pytest.mark.parametrize("value", [BIG, -BIG, INF, NAN, 10**400])
def test_options_take_numbers_that_something_can_be_done_with(value: float):
    with pytest.raises(UserError, match=r"^--rank-prompts [^\n]+: expected a number between [^\n]+; see --help$"):
        check_numbers({"prompts": 5, "memory": 8.0, "flag": True, "text": "x", "rank_prompts": value})
    check_numbers({"prompts": 5, "memory": 8.0, "nothing": None, "seed": 2**32 - 1})


@pytest.mark.parametrize("grid", ["9" * 20, "9" * 5000, "٣", "1,,2", "-1", "1e3"])
def test_edge_counts_are_plain_numbers(grid: str):
    with pytest.raises(UserError, match=r"edge grid [^\n]+: expected one of published, full"):
        counts_of(grid, 100)


@pytest.mark.parametrize("field", ["lm", "corpus"])
@pytest.mark.parametrize("value", ["", "a\x00b", "a\nb", "\x1b[31m"])
def test_an_address_in_a_config_is_printable(field: str, value: str):
    content = yaml.safe_load(yaml.safe_dump({**SMALL, "saes": [TOPK], field: value}))
    with pytest.raises(UserError, match=rf"^train: {field}: expected printable characters[^\n]*$"):
        validated(TrainConfig, content, "train")
