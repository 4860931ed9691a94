"""Scores of curves, against values worked out by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalar_sae.records.results import Curves
from scalar_sae.scoring import metrics
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.record import record_of

AUTHORS_COUNTS = [
    1, 2, 4, 5, 7, 11, 16, 22, 32, 45, 63, 90, 127, 181, 256, 362, 512, 724, 1024, 1448, 2048, 2896, 4095, 5792,
    8191, 11585, 16383, 23170, 32768, 46340, 65536, 92681, 131072, 185363, 262144,
]  # fmt: skip


def test_the_published_grid_is_the_authors():
    assert metrics.published_counts(512 * 512).tolist() == AUTHORS_COUNTS
    assert metrics.published_counts(512 * 1024)[-1] == 2**18
    assert metrics.published_counts(20).tolist() == [1, 2, 4, 5, 7, 11, 16, 20]


@given(st.integers(2, 10**9))
def test_a_grid_runs_from_nothing_to_everything(most: int):
    counts = metrics.edge_counts(most)
    assert counts[0] == 0
    assert counts[1] == 1
    assert counts[-1] == most
    assert (np.diff(counts) > 0).all()


def test_the_published_area_is_the_trapezoid_by_hand():
    counts = np.array([0, 1, 2, 4, 2**18, 2**19])
    kl = np.array([9.0, 3.0, 2.0, 1.0, 0.5, 0.1])
    by_hand = 1 * (3 + 2) / 2 + 2 * (2 + 1) / 2 + (2**18 - 4) * (1 + 0.5) / 2
    assert metrics.area(counts, kl) == pytest.approx(by_hand)


def test_recovery_and_the_edges_it_takes():
    counts = np.array([0, 1, 10, 100, 1000])
    recovered = metrics.recovery(counts, np.array([2.0, 1.8, 1.2, 0.4, 0.0]))
    np.testing.assert_allclose(recovered, [0, 0.1, 0.4, 0.8, 1.0])
    assert metrics.edges_at(counts, recovered, 0.5) == pytest.approx(10 * 10**0.25)
    assert metrics.edges_at(counts, recovered, 0.9) == pytest.approx(100 * 10**0.5)
    live = np.array([0.0, 1.0, 3.0, 7.0, 20.0])
    assert metrics.value_at(recovered, 0.5, live) == pytest.approx(4)


def test_recovery_that_never_gets_there_or_is_there_at_once():
    counts = np.array([0, 1, 10, 100])
    assert metrics.edges_at(counts, np.array([0, 0.1, 0.2, 0.3]), 0.5) == np.inf
    assert metrics.edges_at(counts, np.array([0, 0.9, 0.95, 1.0]), 0.5) == 1


def test_a_dip_after_the_crossing_is_reported():
    recovered = np.array([0.0, 0.6, 0.3, 0.45, 1.0])
    assert metrics.dip(recovered, 0.5) == pytest.approx(0.2)
    assert metrics.dip(np.array([0.0, 0.2, 0.6, 1.0]), 0.5) == 0


def test_the_lowest_recovery_is_seen_before_the_crossing_too():
    recovered = np.array([[0.0, -1.9, 0.3, 0.95, 1.0], [0.0, 0.2, 0.95, 0.4, 1.0]])
    np.testing.assert_array_equal(metrics.lowest_recovery(recovered), [-1.9, 0.2])
    np.testing.assert_allclose(metrics.dip(recovered, 0.9), [0, 0.5])


def test_the_largest_rise_is_found_in_each_prompt_by_itself():
    """Two prompts that rise where the other falls: their mean falls throughout."""
    kl = np.array([[3.0, 4.0, 2.0], [2.0, 4.5, 1.0], [2.5, 2.0, 0.5]])
    assert metrics.largest_rises(kl).tolist() == [0.5, 0.5, 0.0]
    assert (np.diff(kl.mean(1)) < 0).all()


@pytest.mark.parametrize("n_live", [0, 1, 2, 50])
def test_a_pair_with_a_single_edge_has_every_score(n_live: int):
    kl, ones = np.array([[2.0], [0.5]]), np.ones(1)
    curves = Curves(kl, kl, kl, kl, floor_kl=ones, floor_ce=ones, kl_mean=4 * ones, n_tokens=ones, n_targets=ones)
    found = metrics.every_score(np.array([0, 1]), curves, n_live, 1, np.zeros((1, 1), int))
    assert all(np.isfinite(one.value).all() for name, one in found.items() if name[-2:] not in ("90", "99"))
    for end in found["log_area"]:
        assert end[0] == pytest.approx(0.25)
    for end in found["unfaithful_area"]:
        assert end[0] == pytest.approx(0.125)


def test_log_area_by_hand():
    counts = np.array([0, 1, 10, 100])
    recovered = np.array([0.0, 0.0, 0.5, 1.0])
    assert metrics.log_area(counts, recovered, 100) == pytest.approx(0.5)
    assert metrics.log_area(counts, recovered, 10) == pytest.approx(0.75)
    assert metrics.log_area(counts, recovered, int(10**0.5 * 1000)) < 0.5
    assert metrics.log_area(counts, recovered, 3) == pytest.approx((1 + 1 - 0.5 * np.log10(3)) / 2)


@given(st.lists(st.floats(0.01, 5), min_size=6, max_size=6), st.floats(0.05, 0.95))
def test_scores_work_on_many_curves_at_once(kl: list[float], q: float):
    counts = np.array([0, 1, 5, 20, 100, 400])
    one = np.array(kl)
    many = np.stack([one, one[::-1], np.sort(one)[::-1]])
    functions: tuple[Callable[[metrics.Curve], metrics.Score], ...] = (
        lambda curve: metrics.area(counts, curve),
        lambda curve: metrics.edges_at(counts, metrics.recovery(counts, curve), q),
        lambda curve: metrics.value_at(metrics.recovery(counts, curve), q, curve),
        lambda curve: metrics.dip(metrics.recovery(counts, curve), q),
        lambda curve: metrics.log_area(counts, metrics.recovery(counts, curve), 150),
    )
    for function in functions:
        np.testing.assert_allclose(np.asarray(function(many)), np.array([function(curve) for curve in many]))


LENGTHS, HEIGHTS, MOST = np.array([30.0, 90.0, 400.0]), np.array([1.0, 2.0, 0.5]), 4096


def decay(counts: np.ndarray) -> np.ndarray:
    """KL of three prompts that falls exponentially with the edge count: [count, prompt]."""
    return HEIGHTS * np.exp(-counts[:, None] / LENGTHS)


def measured(counts: np.ndarray) -> dict[str, metrics.Measured]:
    """Every score of the mean of the three prompts on a grid. Live edges are a tenth of the edges."""
    kl, live, ones = decay(counts), np.repeat(counts[:, None] / 10.0, 3, 1), np.ones(3)
    curves = Curves(kl, kl, live, live, floor_kl=ones, floor_ce=ones, kl_mean=ones, n_tokens=ones, n_targets=ones)
    return metrics.every_score(counts, curves, MOST, 2 * MOST, np.arange(3)[None])


@pytest.mark.parametrize("factor", [2, 3, 8, 100])
def test_on_a_coarse_grid_the_ends_hold_the_score_of_the_curve_itself(factor: int):
    coarse = np.unique([0, 1, *(factor**m for m in range(12) if factor**m < MOST), MOST])
    n = np.arange(MOST + 1)
    missing = decay(n).sum(1) / HEIGHTS.sum()
    area = (HEIGHTS * LENGTHS * (np.exp(-1 / LENGTHS) - np.exp(-MOST / LENGTHS))).sum() / 3
    log_n = np.linspace(0, np.log(MOST), 100_001)
    truth = {"absolute": area, "relative": area / (2 * MOST), "pure": area}
    truth["log_area"] = float((decay(np.exp(log_n)).sum(1) / HEIGHTS.sum()).mean())
    for name, q in metrics.QUANTILES:
        truth[f"edges_at.{name}"] = edges = next(count for count in n if 1 - missing[count] >= q)
        truth[f"live_edges_at.{name}"] = edges / 10
    found = measured(coarse)
    for name, true in truth.items():
        value, low, high = (float(one[0]) for one in found[name])
        assert low <= true <= high, name
        assert low <= value <= high, name
    for name, _ in metrics.QUANTILES:
        _, low, high = (float(one[0]) for one in found[f"edges_at.{name}"])
        assert list(coarse).index(int(high)) == list(coarse).index(int(low)) + 1
    assert found["floor.kl"].low == found["floor.kl"].high


def test_a_finer_grid_leaves_less_open():
    grids = [np.unique([0, 1, *(factor**m for m in range(12) if factor**m < MOST), MOST]) for factor in (16, 4, 2)]
    for name in ("absolute", "log_area", "edges_at.50", "edges_at.90", "live_edges_at.90"):
        widths = [float(found.high[0] - found.low[0]) for found in (measured(grid)[name] for grid in grids)]
        assert widths[0] > widths[1] > widths[2] > 0, name


def test_the_area_ends_where_no_more_edges_live_whatever_the_grid():
    """Recovery by hand: 0 up to 10 edges, 1 at 100. Up to 31.6 edges anything between the two is possible."""
    counts, recovered = np.array([0, 1, 10, 100]), np.array([0.0, 0.0, 0.0, 1.0])
    low, high = metrics.log_area_between(counts, recovered, 10)
    assert (low, high) == (pytest.approx(1), pytest.approx(1))
    low, high = metrics.log_area_between(counts, recovered, round(10**1.5))
    assert (low, high) == (pytest.approx(2 / 3, rel=1e-2), pytest.approx(1))
    low, high = metrics.log_area_between(counts, np.array([0.0, 0.5, 0.5, 0.5]), 10_000)
    assert (low, high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_what_is_never_reached_has_no_ends():
    counts, recovered = np.array([0, 1, 10]), np.array([0.0, 0.1, 0.2])
    assert metrics.edges_between(counts, recovered, 0.5) == (np.inf, np.inf)
    assert metrics.values_between(recovered, 0.5, recovered) == (np.inf, np.inf)


def test_with_equal_prompts_an_interval_is_as_wide_as_the_step_of_the_grid():
    counts, kl = np.array([0, 1, 8, 64, 512]), np.array([[2.0], [1.9], [1.5], [0.1], [0.0]])
    same, ones = np.repeat(kl, 50, 1), np.ones(50)
    curves = Curves(same, same, same, same, floor_kl=ones, floor_ce=ones, kl_mean=ones, n_tokens=ones, n_targets=ones)
    fields: dict[str, Any] = {
        "block": "ff_block.0",
        "method": "topk",
        "ranking": "leave_one_out_with_prior",
        "n_up": 8,
        "n_down": 64,
    }
    fields |= {"n_edges": 512, "config": {}, "data": {}, "seconds": 1.0}
    record = record_of(curves, counts, 512, ScoreConfig(), **fields)
    assert record.ci["edges_at.90"] == (8, 64)
    assert record.ci["edges_at.99"] == (64, 512)
    assert 8 < (record.edges_at["90"] or 0) < 64
    assert record.ci["live_edges_at.90"] == pytest.approx((0.1, 1.5))
    steps = np.diff(counts[1:])
    assert record.ci["absolute"] == pytest.approx((steps @ kl[2:, 0], steps @ kl[1:-1, 0]))
    log_area = record.ci["log_area"]
    assert isinstance(log_area, tuple)
    assert log_area[0] < record.log_area < log_area[1]
    assert record.ci["floor.kl"] == pytest.approx((1, 1))


@given(
    kl=st.lists(st.floats(0, 5), min_size=2, max_size=12),
    kl_mean=st.floats(0.1, 5),
    q=st.sampled_from([0.5, 0.8, 0.9]),
)
def test_a_curve_settles_where_it_never_falls_again(kl: list[float], kl_mean: float, q: float):
    counts = np.array([0, *(2**m for m in range(len(kl) - 1))])
    faithful = metrics.faithfulness(np.array(kl)[None], np.array([kl_mean]))
    assert faithful[0].tolist() == [pytest.approx(1 - one / kl_mean) for one in kl]
    settled = [n for at, n in enumerate(counts) if all(one >= q for one in faithful[0, at:])]
    (found,) = np.asarray(metrics.settled_at(counts, faithful, q))
    assert found == (settled[0] if settled else np.inf)
    low, high = (float(end[0]) for end in metrics.settled_between(counts, faithful, q))
    assert high == found
    if settled and settled[0] > 0:
        assert low == counts[counts < settled[0]].max()
    first = float(np.asarray(metrics.edges_at(counts, faithful, q))[0])
    assert not settled or first <= max(1, settled[0])
