"""Rankings against brute force, and the order that they make."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalar_sae.benchmark.pair import read
from scalar_sae.benchmark.ranking import RANKINGS, ablation, levels, published
from scalar_sae.errors import UserError
from tests.helpers import tiny_pair
from tests.reference import scorer

TOKENS = torch.arange(24).view(2, 12)
BLOCKS = ["ff_layer.0", "ff_block.1", "attn_block.0", "transformer_block.1"]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("k", [1, 4, 20])
def test_ablation_is_leave_one_out_by_brute_force(block: str, k: int):
    pair = tiny_pair(block, k=k)
    text = read(pair, TOKENS)
    expected = torch.stack([scorer.leave_one_out(pair, z) for z in text.z]).sum(0).div(TOKENS.numel()).sqrt()
    torch.testing.assert_close(ablation(pair, text, lambda: None), expected, atol=1e-5, rtol=1e-3)
    assert (expected > 0).float().mean() > 0.01


@pytest.mark.parametrize("block", BLOCKS)
def test_published_is_the_authors_attribution(block: str):
    pair = tiny_pair(block)
    text = read(pair, TOKENS)
    expected = torch.stack([scorer.published_attribution(pair, z) for z in text.z]).sum(0).sqrt()
    torch.testing.assert_close(published(pair, text, lambda: None), expected, atol=1e-5, rtol=1e-3)
    assert (expected > 0).float().mean() > 0.3


@pytest.mark.parametrize("name", RANKINGS)
def test_every_ranking_reports_each_prompt_once(name: str):
    pair = tiny_pair("ff_block.0")
    calls: list[None] = []
    scores = RANKINGS[name](pair, read(pair, TOKENS), lambda: calls.append(None))
    assert len(calls) == len(TOKENS)
    assert scores.shape == (24, 20)


@given(st.integers(0, 1000), st.integers(2, 40))
@settings(deadline=None)
def test_levels_are_a_stable_descending_order(seed: int, n: int):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (n, 5), generator=g).float()
    counts = np.unique(np.array([0, 1, 2, n, 3 * n]))
    level = levels(scores, counts, seed)
    for index, count in enumerate(counts):
        kept = level <= index
        assert kept.sum() == count
        if 0 < count < scores.numel():
            assert scores[kept].min() >= scores[~kept].max()
    assert torch.equal(level, levels(scores, counts, seed))


def test_ties_are_ordered_by_the_seed_and_not_by_index():
    counts = np.array([0, 500])
    first, again, other = (levels(torch.zeros(40, 25), counts, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.3 < (first[:20] == 1).float().mean() < 0.7


def test_a_score_that_is_nan_is_named():
    scores = torch.zeros(4, 5)
    scores[2, 3] = float("nan")
    with pytest.raises(UserError, match=r"score of edge \(2, 3\) is NaN"):
        levels(scores, np.array([0, 1]), 0)
