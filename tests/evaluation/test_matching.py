"""Matching dictionaries: scipy against brute force, the pruned matching against the exact one, identities."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.evaluation.seeds.consistency import mcc
from scalar_sae.evaluation.seeds.matching import Dictionary, match, nearest
from scalar_sae.evaluation.seeds.overlap import appearances, overlap, overlaps
from tests.helpers import random_sae


def rows(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def noisy_copy(A: Tensor, noise: float, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return A[torch.randperm(len(A), generator=g)] + noise * torch.randn(A.shape, generator=g)


def brute_force(A: Tensor, B: Tensor, absolute: bool) -> float:
    """The best one-to-one matching by trying all."""
    cosines = torch.cosine_similarity(A[:, None], B[None], dim=-1).double()
    cosines = (cosines.abs() if absolute else cosines).numpy()
    if len(A) > len(B):
        cosines = cosines.T
    n = len(cosines)
    return max(cosines[range(n), list(order)].mean() for order in permutations(range(cosines.shape[1]), n))


sizes = st.integers(1, 6)


@settings(max_examples=60, deadline=None)
@given(n_a=sizes, n_b=sizes, d=st.integers(1, 5), seed=st.integers(0, 10_000), absolute=st.booleans())
def test_exact_is_the_best_of_all_matchings(n_a: int, n_b: int, d: int, seed: int, absolute: bool):
    A, B = rows(n_a, d, seed), rows(n_b, d, seed + 1)
    found = match(A, B, absolute)
    assert found.mean == pytest.approx(brute_force(A, B, absolute), abs=1e-5)
    partners = found.partner[found.partner >= 0]
    assert len(partners) == len(set(partners.tolist())) == min(n_a, n_b)
    assert (np.isnan(found.cosine) == (found.partner < 0)).all()
    assert found.short == 0


@settings(max_examples=60, deadline=None)
@given(
    n_a=st.integers(1, 40), n_b=st.integers(1, 40), d=st.integers(1, 8), seed=st.integers(0, 10_000),
    noise=st.sampled_from([0.0, 0.3, 5.0]), candidates=st.integers(1, 50), exact=st.integers(0, 20),
)  # fmt: skip
def test_pruned_lies_below_exact_by_no_more_than_it_says(
    n_a: int, n_b: int, d: int, seed: int, noise: float, candidates: int, exact: int
):
    n = max(n_a, n_b)
    whole = rows(n, d, seed)
    A, B = whole[:n_a], noisy_copy(whole, noise, seed)[:n_b]
    best, pruned = match(A, B).mean, match(A, B, exact=exact, candidates=candidates)
    assert pruned.mean <= best + 1e-5
    assert best <= pruned.mean + pruned.short + 1e-5
    partners = pruned.partner[pruned.partner >= 0]
    assert len(partners) == len(set(partners.tolist())) == min(n_a, n_b)


def test_pruned_is_exact_when_every_pair_is_a_candidate():
    A, B = rows(60, 4, 0), rows(60, 4, 1)
    pruned = match(A, B, exact=0, candidates=60)
    assert pruned.mean == pytest.approx(match(A, B).mean, abs=1e-6)


def test_pruned_is_near_exact_in_the_worst_case_of_random_dictionaries():
    A, B = rows(600, 32, 0), rows(600, 32, 1)
    pruned, best = match(A, B, exact=50), match(A, B)
    assert best.mean - pruned.mean < 0.002
    assert pruned.short < 0.002


def test_no_more_rows_than_it_says_are_matched_exactly_in_the_end(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    monkeypatch.setattr("scalar_sae.evaluation.seeds.matching.LEFTOVER", 30)
    monkeypatch.setattr("scalar_sae.evaluation.seeds.matching.linear_sum_assignment", watched(sizes))
    found = match(rows(400, 8, 0), rows(400, 8, 1), exact=200, candidates=4)
    assert sizes
    assert max(sizes) <= 30
    assert (found.partner >= 0).all()


def watched(sizes: list[int]):
    """The assignment, which notes how many columns it was given."""

    def assign(cosines: np.ndarray, maximize: bool):
        sizes.append(cosines.shape[1])
        return linear_sum_assignment(cosines, maximize=maximize)

    return assign


def test_rows_that_are_all_alike_end():
    A = torch.ones(30, 3)
    assert match(A, A, exact=2, candidates=4).mean == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 30), d=st.integers(2, 10), seed=st.integers(0, 10_000), absolute=st.booleans())
def test_a_permuted_rescaled_copy_agrees_wholly(n: int, d: int, seed: int, absolute: bool):
    g = torch.Generator().manual_seed(seed)
    A = rows(n, d, seed)
    order, scale = torch.randperm(n, generator=g), 0.1 + torch.rand(n, 1, generator=g)
    found = match(A, scale * A[order], absolute)
    assert found.mean == pytest.approx(1, abs=1e-5)
    assert torch.equal(order[torch.from_numpy(found.partner)], torch.arange(n))
    flipped = match(A, -scale * A[order], absolute=True)
    assert flipped.mean == pytest.approx(1, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(n_a=st.integers(1, 12), n_b=st.integers(1, 12), seed=st.integers(0, 10_000), absolute=st.booleans())
def test_what_a_matching_does_not_depend_on(n_a: int, n_b: int, seed: int, absolute: bool):
    A, B = rows(n_a, 6, seed), rows(n_b, 6, seed + 1)
    mean = match(A, B, absolute).mean
    rotation = torch.linalg.qr(rows(6, 6, seed + 2).double())[0].float()
    assert match(B, A, absolute).mean == pytest.approx(mean, abs=1e-5)
    assert match(A @ rotation, B @ rotation, absolute).mean == pytest.approx(mean, abs=1e-4)
    assert match(A, B, absolute).mean <= nearest(*((A, B) if n_a <= n_b else (B, A)), absolute).mean() + 1e-5
    assert match(A, B, absolute=True).mean >= mean - 1e-5


def test_random_dictionaries_score_the_null():
    """The last column: independent figures for isotropic dictionaries (signed, absolute, and the nearest of each)."""
    for n, d, signed, absolute, max_signed in ((32, 16, 0.46, 0.53, 0.51), (256, 64, 0.33, 0.35, 0.35)):
        a, b = (Dictionary(rows(n, d, seed), rows(n, d, seed)) for seed in (1, 2))
        found = mcc(a, b)
        assert found.mcc == pytest.approx(found.null, abs=0.03)
        assert found.null == pytest.approx(signed, abs=0.03)
        assert found.max_cosine_null == pytest.approx(max_signed, abs=0.03)
        assert abs(found.rescaled) < 0.06
        assert mcc(a, b, absolute=True).null == pytest.approx(absolute, abs=0.03)


def test_a_copy_scores_one_rescaled_too():
    sae = random_sae(16, 24, 4, 0)
    found = mcc(Dictionary.of(sae), Dictionary.of(sae))
    assert (found.mcc, found.rescaled, found.max_cosine) == pytest.approx((1, 1, 1))
    assert (found.n_a, found.n_b, found.by_frequency) == (24, 24, [])


def test_dead_latents_are_left_out_and_frequencies_kept_apart():
    A = rows(6, 8, 0)
    B = A.clone()
    B[3:] = -A[3:]
    a = Dictionary(A, A, torch.tensor([0.0, 2e-4, 3e-4, 0.02, 0.03, 0.5]))
    b = Dictionary(B, B, torch.tensor([0.0, 0.1, 0.1, 0.1, 0.1, 0.1]))
    found = mcc(a.alive(), b.alive())
    assert (found.n_a, found.n_b) == (5, 5)
    assert [(f.low, f.n) for f in found.by_frequency] == [(1e-4, 2), (1e-2, 2), (1e-1, 1)]
    assert {f.null for f in found.by_frequency} == {found.null}
    total = sum(f.n * f.mcc for f in found.by_frequency) / 5
    assert total == pytest.approx(found.mcc)


def test_overlap_of_a_permuted_copy_is_whole():
    A, E = rows(20, 16, 0), rows(20, 16, 1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    found = overlap(Dictionary(E, A), Dictionary(2 * E[order], 3 * A[order]))
    assert found.shared.all()
    assert found.cosine == pytest.approx(np.ones(20))
    assert overlap(Dictionary(E, A), Dictionary(rows(20, 16, 5), rows(20, 16, 6))).shared.mean() < 0.2


def test_encoder_and_decoder_must_name_the_same_partner():
    eye = torch.eye(6)
    turned = eye[[1, 2, 0, 3, 4, 5]]
    strict = overlap(Dictionary(eye, eye), Dictionary(eye, turned))
    loose = overlap(Dictionary(eye, eye), Dictionary(eye, turned), require_same_partner=False)
    assert strict.shared.tolist() == [False, False, False, True, True, True]
    assert loose.shared.all()
    assert strict.turned(6).shared.tolist() == [False, False, False, True, True, True]


@settings(max_examples=30, deadline=None)
@given(n_a=st.integers(1, 10), n_b=st.integers(1, 10), seed=st.integers(0, 1000), same=st.booleans())
def test_overlap_counts_the_same_pairs_from_either_side(n_a: int, n_b: int, seed: int, same: bool):
    a, b = (Dictionary(rows(n, 4, seed + i), rows(n, 4, seed + 2 + i)) for i, n in enumerate((n_a, n_b)))
    there, back = overlap(a, b, 0.3, same), overlap(b, a, 0.3, same)
    assert there.turned(n_b).shared.tolist() == back.shared.tolist()
    if same:
        assert there.shared.sum() == back.shared.sum()


def test_the_threshold_only_takes_away():
    A = rows(40, 16, 0)
    a, b = Dictionary(A, A), Dictionary(A + 0.5 * rows(40, 16, 1), A + 0.5 * rows(40, 16, 2))
    kept = [overlap(a, b, threshold).shared.sum() for threshold in (-1.0, 0.5, 0.7, 0.9, 1.0)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1]


def test_in_how_many_other_seeds_a_latent_appears():
    eye = torch.eye(8)
    seeds = [Dictionary(W, W) for W in (eye[:4], eye[[0, 1, 2, 7]], eye[[1, 0, 6, 5]])]
    assert [times.tolist() for times in appearances(seeds, overlaps(seeds))] == [
        [2, 2, 1, 0],
        [2, 2, 1, 0],
        [2, 2, 0, 0],
    ]


def test_bad_input():
    good = Dictionary(rows(4, 8, 0), rows(4, 8, 0))
    with pytest.raises(UserError, match="width 8 and 6 cannot be matched"):
        mcc(good, Dictionary(rows(4, 6, 0), rows(4, 6, 0)))
    with pytest.raises(UserError, match="no latents to match"):
        mcc(good, Dictionary(rows(4, 8, 0), rows(4, 8, 0), torch.zeros(4)).alive())
    with pytest.raises(UserError, match="not finite"):
        mcc(good, Dictionary(rows(4, 8, 0), torch.full((4, 8), torch.nan)))
    with pytest.raises(UserError, match="cosines lie between"):
        overlap(good, good, threshold=7.0)
    with pytest.raises(UserError, match="two seeds"):
        overlaps([good])
