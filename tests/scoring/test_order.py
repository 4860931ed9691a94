"""The order that scores make: which edges does each count keep?"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalar_sae.errors import UserError
from scalar_sae.scoring.rankings import order
from scalar_sae.scoring.rankings.order import keep_indices


@given(st.integers(0, 1000), st.integers(2, 40))
@settings(deadline=None)
def test_levels_are_a_descending_order(seed: int, n: int):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(-2, 4, (n, 5), generator=g).float()
    counts = np.unique(np.array([0, 1, 2, n, 3 * n]))
    keep_index = keep_indices(scores, counts, seed)
    for index, count in enumerate(counts):
        kept = keep_index <= index
        assert kept.sum() == count
        if 0 < count < scores.numel():
            assert scores[kept].min() >= scores[~kept].max()
    assert torch.equal(keep_index, keep_indices(scores, counts, seed))


@given(st.integers(0, 1000), st.integers(1, 5000))
@settings(deadline=None, max_examples=20)
def test_counting_finds_what_sorting_finds(seed: int, n: int):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, 1, generator=g) * torch.randint(0, 2, (n, 1), generator=g)
    counts = np.unique(np.clip([0, 1, n // 3, n // 2, n - 1, n], 0, n))
    sorted_ = keep_indices(scores, counts, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "_CHUNK", 100)
        assert torch.equal(keep_indices(scores, counts, seed), sorted_)


def test_ties_are_ordered_by_the_seed_and_not_by_index():
    counts = np.array([0, 500])
    first, again, other = (keep_indices(torch.zeros(40, 25), counts, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.3 < (first[:20] == 1).float().mean() < 0.7


def test_zeros_of_either_sign_tie():
    scores = torch.zeros(40, 25)
    keep_index = keep_indices(scores, np.array([0, 500]), 0)
    scores[::2] = -0.0
    assert torch.equal(keep_indices(scores, np.array([0, 500]), 0), keep_index)


def test_a_score_that_is_nan_is_named():
    scores = torch.zeros(4, 5)
    scores[2, 3] = float("nan")
    with pytest.raises(UserError, match=r"score of edge \(2, 3\) is NaN"):
        keep_indices(scores, np.array([0, 1]), 0)
