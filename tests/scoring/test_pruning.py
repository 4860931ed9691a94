"""Costs in sub-circuits against brute force, and the orders that are made of them."""

import pytest
import torch

from scalar_sae.scoring.pair import Pair, read
from scalar_sae.scoring.rankings.pruned import add_costs
from scalar_sae.scoring.rankings.ranking import rank
from scalar_sae.scoring.sweep import per_prompt, per_token
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import GlobalEdges
from tests.helpers import tiny_pair
from tests.reference import scorer

TOKENS = torch.arange(10).view(2, 5)
BLOCKS = ["ff_layer.0", "ff_block.1", "attn_block.0", "transformer_block.1"]


def random_edges(pair: Pair, share: float) -> torch.Tensor:
    return torch.rand(pair.up.d_sae, pair.down.d_sae, generator=torch.Generator().manual_seed(3)) < share


def found(pair: Pair, kept: torch.Tensor, *columns: slice) -> torch.Tensor:
    parts: list[torch.Tensor] = []
    for some in columns:
        total = torch.zeros(pair.up.d_sae, some.stop - some.start, dtype=torch.float64)
        for prompt in read(pair, TOKENS):
            add_costs(pair, Readout.of(pair), kept, GlobalEdges((~kept).byte()), prompt, some, total)
        parts.append(total)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("share", [0.2, 0.7])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("kind", "ablation_value"), [("topk", False), ("jumprelu", False), ("relu", True)])
def test_costs_by_brute_force(
    block: str, kind: str, ablation_value: bool, share: float, monkeypatch: pytest.MonkeyPatch
):
    pair = tiny_pair(block, n_up=8, n_down=6, k=2, kind=kind, ablation_value=ablation_value)
    kept = random_edges(pair, share)
    expected = torch.stack([scorer.costs(pair, prompt, kept) for prompt in read(pair, TOKENS)]).sum(0)
    assert (expected[kept] != 0).float().mean() > 0.1
    torch.testing.assert_close(found(pair, kept, slice(0, 6)), expected, atol=1e-5, rtol=1e-3)
    monkeypatch.setattr(per_token, "CACHE_BYTES", 5000)
    monkeypatch.setattr(per_prompt, "PASS_BYTES", 5000)
    torch.testing.assert_close(found(pair, kept, slice(0, 4), slice(4, 6)), expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("block", ["ff_block.1", "transformer_block.1"])
def test_the_costs_of_the_full_circuit_are_ablation(block: str):
    pair = tiny_pair(block, n_down=6)
    costs = found(pair, random_edges(pair, 1.1), slice(0, 6))
    expected = rank(pair, TOKENS, "ablation", 0)
    torch.testing.assert_close((costs / TOKENS.numel()).sqrt().float(), expected, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("block", BLOCKS)
def test_expected_goes_on_where_ablation_stops(block: str):
    pair = tiny_pair(block)
    effect, scores = (rank(pair, TOKENS, name, 0) for name in ("ablation", "expected"))
    effect *= pair.down.W_dec.norm(dim=1)
    shown = effect > 0
    torch.testing.assert_close(scores[shown], effect[shown])
    assert shown.any()
    assert (scores[~shown] < effect[shown].min()).all()
    used = torch.zeros(pair.up.d_sae, dtype=torch.bool)
    for prompt in read(pair, TOKENS):
        used |= (prompt.z != 0).any(0)
    assert (scores[used] > 0).all()  # all that move a pre-activation have a place
    assert (scores[~used] == 0).all()


@pytest.mark.parametrize("block", ["ff_block.1", "transformer_block.1"])
def test_pruned_drops_the_least_costly_half_again_and_again(block: str):
    pair = tiny_pair(block, n_up=10, n_down=8)
    norms = pair.down.W_dec.norm(dim=1)
    scores, effect = rank(pair, TOKENS, "pruned", 0), rank(pair, TOKENS, "ablation", 0) * norms
    kept = effect > 0
    assert (scores[kept].min() >= 1) & (scores[~kept].max() < 1)
    cost, number = effect.double(), 0
    while kept.sum() > 1:
        number += 1
        n_kept = int(kept.sum()) // 2
        place = cost.masked_fill(~kept, -1).flatten().argsort(descending=True)[:n_kept]
        stays = torch.zeros_like(kept).view(-1).index_fill_(0, place, value=True).view_as(kept)
        assert (scores[stays] >= number + 1).all(), number
        gone = kept & ~stays
        assert (scores[gone] <= number + 1).all(), number
        assert (scores[gone].argsort() == cost[gone].argsort()).float().mean() > 0.8  # but for ties of float32
        kept = stays
        squares = torch.stack([scorer.costs(pair, prompt, kept) for prompt in read(pair, TOKENS)]).sum(0)
        cost = squares.clamp(min=0).sqrt() * norms
    assert number > 3
    assert (scores == scores.max()).sum() == 1
