"""The BatchTopK repository trains on a stream from which TransformerLens took the mean, and does not record it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scalar_sae.saes.formats.files import Found
from scalar_sae.saes.store import find_saes

D, F = 6, 16
X = torch.randn(10, D, generator=torch.Generator().manual_seed(3)) + 2


def tensors() -> dict[str, torch.Tensor]:
    numbers = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,), "jumprelu.log_threshold": (F,)}
    return {name: 0.5 * torch.randn(shape, generator=numbers) for name, shape in shapes.items()}


def read(folder: Path, **config: Any) -> Found:
    config = {"sae_type": "jumprelu", "act_size": D, "dict_size": F, "hook_point": "blocks.1.hook_resid_pre"} | config
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(tensors(), folder / "sae.pt")
    (located,) = find_saes(folder)
    return located.found


def theirs(x: torch.Tensor) -> torch.Tensor:
    """Their `JumpReLUSAE.forward`, in which nothing is subtracted from the input."""
    t = tensors()
    u = torch.relu(x @ t["W_enc"] + t["b_enc"])
    return u * (u > t["jumprelu.log_threshold"].exp()) @ t["W_dec"] + t["b_dec"]


@pytest.mark.parametrize("model", ["gpt2-small", "EleutherAI/pythia-70m"])
@pytest.mark.parametrize("hook", ["hook_resid_pre", "hook_mlp_out"])
def test_the_mean_of_a_layer_norm_model_s_stream_is_folded(model: str, hook: str, tmp_path: Path):
    found = read(tmp_path, model_name=model, hook_point=f"blocks.1.{hook}")
    mean = X.mean(-1, keepdim=True)
    torch.testing.assert_close(found.sae.decode(found.sae.encode(X), X), theirs(X - mean) + mean)
    assert "folded in" in found.remarks[0]


@pytest.mark.parametrize(
    ("config", "remark"),
    [({"model_name": "gemma-2-2b"}, ""), ({"model_name": "my-model"}, "whether my-model has LayerNorm"), ({}, "model")],
)
def test_what_has_no_mean_to_lose_or_is_not_known_is_read_as_it_is(config: dict[str, Any], remark: str, tmp_path: Path):
    found = read(tmp_path, **config)
    torch.testing.assert_close(found.sae.decode(found.sae.encode(X)), theirs(X))
    assert remark in "".join(found.remarks)
    assert bool(found.remarks) == bool(remark)


def test_a_norm_that_takes_the_mean_out_itself_needs_no_fold(tmp_path: Path):
    found = read(tmp_path, model_name="gpt2-small", input_unit_norm=True)
    mean, std = X.mean(-1, keepdim=True), X.std(-1, keepdim=True)
    torch.testing.assert_close(found.sae.decode(found.sae.encode(X), X), theirs((X - mean) / (std + 1e-5)) * std + mean)
    assert not found.remarks
