"""Scores of curves, against values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalar_sae.benchmark import scores

AUTHORS_COUNTS = [
    1, 2, 4, 5, 7, 11, 16, 22, 32, 45, 63, 90, 127, 181, 256, 362, 512, 724, 1024, 1448, 2048, 2896, 4095, 5792,
    8191, 11585, 16383, 23170, 32768, 46340, 65536, 92681, 131072, 185363, 262144,
]  # fmt: skip


def test_the_published_grid_is_the_authors():
    assert scores.published_counts(512 * 512).tolist() == AUTHORS_COUNTS
    assert scores.published_counts(512 * 1024)[-1] == 2**18
    assert scores.published_counts(20).tolist() == [1, 2, 4, 5, 7, 11, 16, 20]


@given(st.integers(2, 10**9))
def test_a_grid_runs_from_nothing_to_everything(most: int):
    counts = scores.edge_counts(most)
    assert counts[0] == 0
    assert counts[1] == 1
    assert counts[-1] == most
    assert (np.diff(counts) > 0).all()


def test_the_published_area_is_the_trapezoid_by_hand():
    counts = np.array([0, 1, 2, 4, 2**18, 2**19])
    kl = np.array([9.0, 3.0, 2.0, 1.0, 0.5, 0.1])
    by_hand = 1 * (3 + 2) / 2 + 2 * (2 + 1) / 2 + (2**18 - 4) * (1 + 0.5) / 2
    assert scores.area(counts, kl) == pytest.approx(by_hand)


def test_recovery_and_the_edges_it_takes():
    counts = np.array([0, 1, 10, 100, 1000])
    recovered = scores.recovery(counts, np.array([2.0, 1.8, 1.2, 0.4, 0.0]))
    np.testing.assert_allclose(recovered, [0, 0.1, 0.4, 0.8, 1.0])
    assert scores.edges_at(counts, recovered, 0.5) == pytest.approx(10 * 10**0.25)
    assert scores.edges_at(counts, recovered, 0.9) == pytest.approx(100 * 10**0.5)
    live = np.array([0.0, 1.0, 3.0, 7.0, 20.0])
    assert scores.value_at(recovered, 0.5, live) == pytest.approx(4)


def test_recovery_that_never_gets_there_or_is_there_at_once():
    counts = np.array([0, 1, 10, 100])
    assert scores.edges_at(counts, np.array([0, 0.1, 0.2, 0.3]), 0.5) == np.inf
    assert scores.edges_at(counts, np.array([0, 0.9, 0.95, 1.0]), 0.5) == 1


def test_a_dip_after_the_crossing_is_reported():
    recovered = np.array([0.0, 0.6, 0.3, 0.45, 1.0])
    assert scores.dip(recovered, 0.5) == pytest.approx(0.2)
    assert scores.dip(np.array([0.0, 0.2, 0.6, 1.0]), 0.5) == 0


def test_log_area_by_hand():
    counts = np.array([0, 1, 10, 100])
    recovered = np.array([0.0, 0.0, 0.5, 1.0])
    assert scores.log_area(counts, recovered, 100) == pytest.approx(0.5)
    assert scores.log_area(counts, recovered, 10) == pytest.approx(0.75)
    assert scores.log_area(counts, recovered, int(10**0.5 * 1000)) < 0.5
    assert scores.log_area(counts, recovered, 3) == pytest.approx((1 + 1 - 0.5 * np.log10(3)) / 2)


@given(st.lists(st.floats(0.01, 5), min_size=6, max_size=6), st.floats(0.05, 0.95))
def test_scores_work_on_many_curves_at_once(kl: list[float], q: float):
    counts = np.array([0, 1, 5, 20, 100, 400])
    one = np.array(kl)
    many = np.stack([one, one[::-1], np.sort(one)[::-1]])
    for function in (
        lambda curve: scores.area(counts, curve),
        lambda curve: scores.edges_at(counts, scores.recovery(counts, curve), q),
        lambda curve: scores.value_at(scores.recovery(counts, curve), q, curve),
        lambda curve: scores.dip(scores.recovery(counts, curve), q),
        lambda curve: scores.log_area(counts, scores.recovery(counts, curve), 150),
    ):
        np.testing.assert_allclose(function(many), [function(curve) for curve in many])


def test_intervals_cover_what_they_should():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        prompts = rng.normal(3.0, 1.0, size=40)
        low, high = scores.interval(prompts[scores.resamples(40, seed=trial)].mean(1)) or (0, 0)
        inside += low <= 3.0 <= high
    assert 0.88 <= inside / 200 <= 0.99
    assert scores.interval(np.array([1.0, np.inf, np.inf])) is None
