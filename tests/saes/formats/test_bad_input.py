"""Every way that somebody's files can be wrong ends in one line that says what to do."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scalar_sae.errors import UserError
from scalar_sae.saes.store import find_saes, load_saes
from scalar_sae.scoring.pair import Pair
from scalar_sae.sites import Block
from tests.helpers import tiny_lm
from tests.test_study import scalar

PEERS = Path(__file__).parent / "peers"


@pytest.fixture
def topk(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PEERS / "saelens" / "topk", tmp_path / "topk"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_saes(path)
    assert str(path) in str(caught.value)


def test_a_folder_that_is_no_sae(tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    refused(
        tmp_path, r"holds no SAEs: found thesis.tex; understood are .*SAELens \(cfg.json, sae_weights.safetensors\)"
    )
    refused(tmp_path / "nowhere", "no such file or folder")
    refused(tmp_path / "thesis.tex", "holds no SAEs: found thesis.tex")
    assert scalar("ls", tmp_path, check=False).returncode == 2


def test_a_config_that_contradicts_its_tensors(topk: Path):
    edit(topk, d_sae=99)
    refused(topk, "the config says d_sae = 99, the tensors have 16")
    edit(topk, d_sae=16, k=40)
    refused(topk, "k = 40: must lie between 1 and d_sae = 16")
    edit(topk, k=None)
    refused(topk, "the config gives no k")
    edit(topk, k=3, architecture="temporal")
    refused(topk, "architecture 'temporal' is not one encoder, rule and decoder; supported: standard, topk")
    edit(topk, architecture="jumprelu")
    refused(topk, r"sae_weights.safetensors lacks the tensor threshold; it holds W_dec, W_enc, b_dec, b_enc")
    edit(topk, architecture="topk", normalize_activations="expected_average_only_in")
    refused(topk, "its numbers are in none of the files; fold them with SAELens")
    tensors = load_file(topk / "sae_weights.safetensors")
    save_file({**tensors, "b_enc": torch.zeros(9)}, topk / "sae_weights.safetensors")
    refused(topk, r"b_enc has shape \(9,\); W_enc \(6, 16\) needs \(16,\)")
    save_file({**tensors, "W_enc": torch.zeros(2, 6, 16)}, topk / "sae_weights.safetensors")
    refused(topk, "expected two axes; crosscoders and cross-layer transcoders are not supported")


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_diverged(topk: Path, name: str, value: float):
    tensors = load_file(topk / "sae_weights.safetensors")
    tensors[name].view(-1)[1] = value
    save_file(tensors, topk / "sae_weights.safetensors")
    refused(topk, f"{name} holds NaN or infinity: .*earlier checkpoint")


def test_damaged_files(topk: Path, tmp_path: Path):
    weights = topk / "sae_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(topk, "sae_weights.safetensors cannot be read: damaged or truncated")
    weights.write_bytes(whole)
    (topk / "cfg.json").write_text("{")
    refused(topk, "cfg.json cannot be read")
    (topk / "cfg.json").write_text("[]")
    refused(topk, "cfg.json does not hold an object")
    dictionary = Path(shutil.copytree(PEERS / "dictionary_learning" / "AutoEncoder", tmp_path / "ae"))
    pt = dictionary / "ae.pt"
    pt.write_bytes(pt.read_bytes()[:700])
    refused(dictionary, "ae.pt cannot be read: damaged or truncated")


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path):
    folder = Path(shutil.copytree(PEERS / "dictionary_learning" / "AutoEncoder", tmp_path / "ae"))
    marker = tmp_path / "ran"
    for save in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))):
        save({"bias": Touch(marker)}, folder / "ae.pt")
        refused(folder, "ae.pt holds more than tensors and plain values; refused, for it could run code")
    assert not marker.exists()
    with (folder / "ae.pt").open("rb") as file:
        pickle.load(file)
    assert marker.exists(), "the file would have run it"


def test_a_width_that_does_not_fit_the_model(topk: Path):
    saes = load_saes(f"resid_mid.0={topk}", f"resid_post.0={topk}")["topk"]
    with pytest.raises(UserError, match="the SAE reads 6 dimensions, tiny has 16"):
        Pair.between(tiny_lm(), Block.parse("ff_block.0"), saes)


def test_where_it_reads(topk: Path, tmp_path: Path):
    config = json.loads((topk / "cfg.json").read_text())
    edit(topk, metadata={})
    refused(topk, "the files do not say where this SAE reads; give SITE=PATH")
    assert [str(site) for site in load_saes(f"attn_out.3={topk}")["topk"]] == ["attn_out.3"]
    edit(topk, metadata={**config["metadata"], "hook_name": "blocks.2.attn.hook_z"})
    refused(topk, "unknown site 'blocks.2.attn.hook_z'")
    assert "blocks.2.attn.hook_z" in scalar("ls", topk).stdout, "ls shows what it cannot place"
    with pytest.raises(UserError, match=r"holds 3 SAEs; give the path of one"):
        load_saes(f"resid_mid.0={PEERS / 'sparsify'}")
    shutil.copytree(PEERS / "saelens" / "topk", tmp_path / "two" / "a")
    shutil.copytree(PEERS / "saelens" / "topk", tmp_path / "two" / "b")
    refused(tmp_path / "two", "several SAEs named topk at resid_mid.2")


def test_nothing_is_read_twice_or_from_hidden_folders(tmp_path: Path):
    folder = tmp_path / "trainer_0"
    shutil.copytree(PEERS / "dictionary_learning" / "AutoEncoder", folder)
    shutil.copytree(folder, folder / "checkpoints" / "inner")
    shutil.copytree(folder, tmp_path / ".cache" / "x")
    assert len(list(find_saes(tmp_path))) == 1
