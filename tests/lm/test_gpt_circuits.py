"""The authors' whole checkpoints, model and SAEs, against the values that their code computes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.records.results import Record, Results
from scalar_sae.saes.store import find_sae, load_saes
from scalar_sae.sites import Site
from tests.helpers import golden_lm, shared
from tests.scoring.test_golden import WHOLE, Case
from tests.test_study import scalar

VARIANTS = [
    "jsae.mlp_layer",
    "staircase-mlpblock",
    "topk.mlpblock",
    "topk.mlplayer",
    "topk.stair.tblock",
    "topk.tblock",
]
POINTS = {
    "residmid": "resid_mid",
    "residpost": "resid_post",
    "mlpin": "mlp_in",
    "mlpout": "mlp_out",
    "act": "resid_pre",
}

pytestmark = pytest.mark.golden


def test_the_models_logits():
    prompts = load_file(shared("golden", "prompts.safetensors"))["ids"].long()
    lm = LanguageModel.load(shared("golden", "checkpoints", "topk.mlpblock"))
    assert torch.equal(lm.logits(prompts[:2]), golden_lm().logits(prompts[:2]))
    golden = load_file(shared("golden", "acts.safetensors"))["logits"]
    torch.testing.assert_close(lm.logits(prompts[:2]), golden[:2], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_feature_magnitudes_of_every_sae(variant: str):
    golden = load_file(shared("golden", f"fm_{variant}.safetensors"))
    acts = load_file(shared("golden", "acts.safetensors"))
    ((_, saes),) = load_saes(shared("golden", "checkpoints", variant)).items()
    keys = {name.rpartition(".")[0] for name in golden}
    assert len(keys) == len(saes)
    for key in keys:
        layer, _, point = key.partition("_")
        site = Site(POINTS[point], int(layer))
        last = site.kind == "resid_post" or (point == "act" and site.layer == 4)
        recorded = f"{site.layer}.{site.kind}" if not last else f"{site.layer + (point != 'act')}.resid_pre"
        x = acts.get(recorded, acts["3.resid_post"])[:4]
        sae = find_sae(saes, site)
        assert sae is not None
        mine = sae.encode(x)
        theirs = torch.zeros_like(mine).scatter_(-1, golden[f"{key}.idx"][:4].long(), golden[f"{key}.val"][:4])
        torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=2e-4)


def published(tmp_path: Path, variant: str, block: str, *more: str | Path) -> Record:
    """Scored as the authors do it, on the 20 golden prompts as a text; ranked on 8 and scored on 2, as golden is."""
    text, out = tmp_path / "prompts.txt", tmp_path / "out.json"
    ids = load_file(shared("golden", "prompts.safetensors"))["ids"]
    text.write_text("".join(map(chr, ids.flatten().tolist())))
    folder = shared("golden", "checkpoints", variant)
    few = ["--prompts", "2", "--rank-prompts", "8", "--out", out]
    scalar("score", "--saes", folder, "--block", block, "--tokens", text, "--published", *few, *more)
    return Results.read(out).records[0]


def test_golden_areas_from_the_folder_alone(tmp_path: Path):
    """Edges of no attribution, 40 % of them, come in an order drawn at random: theirs and ours differ in it."""
    record = published(tmp_path, "topk.mlpblock", "ff_block.0")
    golden = json.loads(shared("golden", "index.json").read_text())["sweeps"]["topk.mlpblock.L0.a"]
    assert record.edges[1:] == golden["evaluated"]
    assert record.absolute == pytest.approx(golden["auc_kl_full_model"], rel=0.02)
    assert record.pure == pytest.approx(golden["auc_kl"], rel=0.02)


@pytest.mark.parametrize("case", WHOLE[:2], ids=lambda case: case.name)
def test_golden_areas_in_the_authors_order(case: Case, tmp_path: Path):
    golden = json.loads(shared("golden", "index.json").read_text())["sweeps"][f"{case.name}.a"]
    np.save(tmp_path / "order.npy", -case.keep_index(np.array(golden["evaluated"])).float().numpy())
    record = published(tmp_path, case.variant, case.block, "--ranking", tmp_path / "order.npy")
    assert record.absolute == pytest.approx(golden["auc_kl_full_model"], rel=1e-4)
    assert record.pure == pytest.approx(golden["auc_kl"], rel=1e-4)


def test_scored_and_listed_from_the_command_line():
    folder = shared("golden", "checkpoints", "staircase-mlpblock")
    few = ["--prompts", 2, "--rank-prompts", 1, "--context", 16, "--edges", "1,100"]
    text = shared("data", "tiny_shakespeare.txt")
    done = scalar("score", "--lm", folder, "--saes", folder, "--block", "ff_block.0", "--tokens", text, *map(str, few))
    assert "staircase_block" in done.stdout
    listed = scalar("ls", folder).stdout
    assert "gpt-circuits" in listed
    assert "512 1024" in listed
    assert f"language model: {folder}" in listed


def test_bad_checkpoints(tmp_path: Path):
    folder = Path(shutil.copytree(shared("golden", "checkpoints", "topk.mlpblock"), tmp_path / "gpt"))
    config = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**config, "norm_strategy": "DynamicTanh"}))
    with pytest.raises(UserError, match="norm_strategy 'DynamicTanh'; GPT-2 has LayerNorm"):
        LanguageModel.load(folder)
    (folder / "model.json").write_text(json.dumps({**config, "n_layer": 5}))
    with pytest.raises(UserError, match=r"model.safetensors does not fit model.json .*transformer.h.4"):
        LanguageModel.load(folder)
    (folder / "model.json").write_text(json.dumps({"n_layer": 4}))
    with pytest.raises(UserError, match="cannot be read as a gpt-circuits model"):
        LanguageModel.load(folder)
    (folder / "sae.3.safetensors").unlink()
    with pytest.raises(UserError, match=r"sae.3.safetensors, sae.1_residpost.safetensors: neither is there"):
        load_saes(folder)
    sae = load_file(folder / "sae.0.safetensors")
    save_file({name: tensor[:, :7].clone() if name == "W_enc" else tensor for name, tensor in sae.items()},
              folder / "sae.0.safetensors")  # fmt: skip
    with pytest.raises(UserError, match=r"W_dec has shape \(512, 64\); W_enc \(64, 7\) needs"):
        load_saes(folder)
