"""One SAE on a language model's activations: through this package's loader and through SAELens' own class.

Reads `runs/models/smollm2` and `runs/models/smollm2-bfloat16` (`make smollm2`, and with DTYPE=bfloat16), or the folder
of them that SMOLLM2 names; without them a tiny random model alone.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scalar_sae.lm.model import LanguageModel
from scalar_sae.saes.store import find_saes
from scalar_sae.sites import Site
from tests.lm.families import family_lm

lens: Any = pytest.importorskip("sae_lens.saes")

MODELS = Path(os.environ.get("SMOLLM2", "runs/models"))
TEXT = (
    "The museum opened its doors in 1897, when the city had fewer than ten thousand inhabitants. Its first director, a "
    "botanist by training, bought three paintings and a herbarium. def area(r): return 3.14159 * r ** 2  # a circle\n"
)
K, SITE = 32, Site("resid_post", 8)
KINDS: dict[str, Callable[[int, int], Any]] = {
    "topk": lambda d, f: lens.TopKSAE(lens.TopKSAEConfig(d_in=d, d_sae=f, k=K)),
    "topk by decoder norm": lambda d, f: lens.TopKSAE(
        lens.TopKSAEConfig(d_in=d, d_sae=f, k=K, rescale_acts_by_decoder_norm=True)
    ),
    "standard": lambda d, f: lens.StandardSAE(lens.StandardSAEConfig(d_in=d, d_sae=f)),
    "standard, layer norm": lambda d, f: lens.StandardSAE(
        lens.StandardSAEConfig(d_in=d, d_sae=f, normalize_activations="layer_norm")
    ),
    "jumprelu": lambda d, f: lens.JumpReLUSAE(lens.JumpReLUSAEConfig(d_in=d, d_sae=f)),
    "gated": lambda d, f: lens.GatedSAE(lens.GatedSAEConfig(d_in=d, d_sae=f)),
}


def activations(name: str, dtype: str) -> torch.Tensor:
    """Every token's activation, the first token's too, which in SmolLM2 is hundreds of times as large."""
    if name == "tiny":
        lm, site = family_lm("llama", getattr(torch, dtype)), Site("resid_post", 1)
        tokens = torch.randint(0, 64, (16, 32), generator=torch.Generator().manual_seed(0))
    else:
        folder = MODELS / ("smollm2" if dtype == "float32" else f"smollm2-{dtype}")
        if not folder.is_dir():
            pytest.skip(f"needs {folder}: make smollm2 DTYPE={dtype}")
        lm, site = LanguageModel.load(folder, dtype=dtype), SITE
        ids, _ = lm.tokenizer.encode(TEXT * 3)
        tokens = torch.as_tensor(ids).long().unsqueeze(0)
    return lm.activations(tokens, [site])[site].flatten(0, 1).float()


@torch.no_grad()
def made(kind: str, x: torch.Tensor) -> Any:
    """An SAE of SAELens whose latents point at some of the activations: with real preferences, and untrained."""
    g = torch.Generator().manual_seed(0)
    d, f = x.shape[1], 8 * x.shape[1]
    sae = KINDS[kind](d, f)
    sae.cfg.metadata.hook_name = str(SITE.transformer_lens)
    centre = x.median(0).values
    rows = (x - centre)[torch.randint(len(x), (f,), generator=g)] + 0.3 * x.std() * torch.randn(f, d, generator=g)
    directions = torch.nn.functional.normalize(rows, dim=1)
    lengths = 0.5 + torch.rand(f, 1, generator=g)
    sae.W_dec.copy_(directions * lengths)
    sae.W_enc.copy_(directions.T)
    sae.b_dec.copy_(centre)
    spread = ((x - centre) @ sae.W_enc).std()
    for name in ("b_enc", "b_gate", "b_mag", "r_mag", "threshold"):
        if isinstance(getattr(sae, name, None), torch.nn.Parameter):
            value = torch.randn(f, generator=g) * (0.1 if name == "r_mag" else 0.1 * spread)
            getattr(sae, name).copy_(value.abs() + spread if name == "threshold" else value)
    return sae


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm(dim=1) / b.norm(dim=1)).max().item()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["tiny", "smollm2"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_numbers_through_both(
    kind: str, name: str, dtype: str, tmp_path: Path, record_property: Callable[[str, float], None]
):
    """Weights in either precision; SAELens computes in float32, as we do, and for the record in its own."""
    x = activations(name, dtype)
    theirs = made(kind, x).to(dtype=getattr(torch, dtype))
    theirs.cfg.dtype = dtype
    theirs.save_model(tmp_path / "sae")
    ((found, format_, _),) = find_saes(tmp_path / "sae")
    assert format_ == "SAELens"
    wide = lens.sae.SAE.load_from_disk(tmp_path / "sae", dtype="float32")
    with torch.no_grad():
        acts, x_hat = wide.encode(x), wide(x)
        own_x_hat = theirs(x.to(getattr(torch, dtype))).float()
    ours = found.sae.encode(x)
    same = (ours > 0) == (acts > 0)
    assert same.float().mean() > 0.9999  # a pre-activation that rounds to the threshold may fall on either side
    torch.testing.assert_close(
        torch.where(same, ours, 0), torch.where(same, acts, 0), atol=1e-4 * x.std().item(), rtol=1e-4
    )
    error = relative(found.sae.decode(ours, x), x_hat)
    record_property("ours", error)
    record_property("theirs in its own precision", relative(own_x_hat, x_hat))
    assert error < 1e-5
