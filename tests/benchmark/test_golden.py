"""The benchmark against values computed with the SCALAR authors' own code."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scalar_sae.benchmark import scores
from scalar_sae.benchmark.pair import Pair, read
from scalar_sae.benchmark.ranking import published
from scalar_sae.benchmark.score import PUBLISHED_EPSILON, kl, measure
from scalar_sae.benchmark.subcircuits import sweep
from scalar_sae.sites import Block
from tests.helpers import golden_lm, golden_sae, shared

CASES = [
    ("topk.mlpblock", "ff_block.0", "0_residmid", "0_residpost"),
    ("topk.mlplayer", "ff_layer.0", "0_mlpin", "0_mlpout"),
    ("topk.tblock", "transformer_block.1", "1_act", "2_act"),
]

pytestmark = pytest.mark.golden


def _pair(variant: str, block: str, up: str, down: str) -> Pair:
    return Pair(golden_lm(), Block.parse(block), golden_sae(variant, up), golden_sae(variant, down))


def _name(variant: str, block: str) -> str:
    return f"{variant}.L{block[-1]}"


def _recorded_level(variant: str, block: str, counts: np.ndarray) -> torch.Tensor:
    """The authors' order: descending attribution, exact ties and zeros as recorded."""
    t = load_file(shared("golden", f"attr_{_name(variant, block)}.safetensors"))
    flat = t["attr"].flatten()
    order = flat.argsort(descending=True, stable=True)
    order = order[: int((flat > 0).sum())]
    if "order_diff_pos" in t:
        order[t["order_diff_pos"].long()] = t["order_diff_idx"].long()
    order = torch.cat([order, t.get("order_zero_tail", torch.zeros(0)).long()])
    level = torch.full_like(flat, 255, dtype=torch.uint8)
    for index, (start, end) in enumerate(zip([0, *counts[:-1]], counts, strict=True)):
        level[order[start:end]] = index
    return level.view_as(t["attr"])


@pytest.mark.parametrize("case", CASES[::2], ids=lambda case: case[1])
def test_attribution(case: tuple[str, str, str, str]):
    pair = _pair(*case)
    prompts = load_file(shared("golden", "prompts.safetensors"))["ids"].long()
    golden = load_file(shared("golden", f"attr_{_name(*case[:2])}.safetensors"))["attr"]
    mine = published(pair, read(pair, prompts[:8]), lambda: None)
    torch.testing.assert_close(mine, golden, rtol=1e-3, atol=1e-6 * golden.max().item())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_sub_circuits_and_curve(case: tuple[str, str, str, str]):
    """All counts but the last, where the authors' scripts put another computation (see benchmark/README.md)."""
    pair = _pair(*case)
    golden = load_file(shared("golden", f"sweep_{_name(*case[:2])}.a.safetensors"))
    counts = golden["edge_counts"].numpy()[:-1]
    level = _recorded_level(*case[:2], counts)
    text = read(pair, golden["prompt_ids"][:1].long())
    for index, sub in enumerate(sweep(pair, text.z[0], level, len(counts))):
        theirs = torch.zeros_like(sub.acts)
        theirs.scatter_(-1, golden["down_idx"][index, 0].long(), golden["down_val"][index, 0])
        torch.testing.assert_close(sub.acts, theirs, atol=1e-4, rtol=1e-4)
        divergence = kl(text.model, pair.log_probs(sub.acts.unsqueeze(0), text), PUBLISHED_EPSILON)[0]
        torch.testing.assert_close(divergence.mean(), golden["kl_full_model"][index, 0].mean(), rtol=1e-3, atol=1e-6)


def test_area_of_the_ff_block():
    case = CASES[0]
    pair = _pair(*case)
    golden = load_file(shared("golden", f"sweep_{_name(*case[:2])}.a.safetensors"))
    counts = golden["edge_counts"].numpy()[:-1]
    level = _recorded_level(*case[:2], counts)
    text = read(pair, golden["prompt_ids"].long())
    curves = measure(pair, text, level, len(counts), PUBLISHED_EPSILON, lambda: None)
    theirs = golden["kl_full_model"][:-1].mean((1, 2)).numpy()
    assert scores.area(counts, curves.kl_model.mean(1)) == pytest.approx(scores.area(counts, theirs), rel=1e-3)
