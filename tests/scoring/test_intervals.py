"""95 % intervals: how often they hold the truth, on real curves and on numbers of a known distribution."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from scalar_sae.records.results import Curves
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.intervals import ends, enough, interval, resamples, tail
from scalar_sae.scoring.record import record_of
from tests.scoring.prompt_curves import SCORES, Prompts, coverage


def test_the_share_beyond_an_end_is_students_and_becomes_that_of_a_percentile_interval():
    assert tail(20) == pytest.approx(stats.norm.cdf(stats.t.ppf(0.025, 19) * np.sqrt(20 / 19)))
    assert tail(6) < tail(20) < tail(50) < 0.025
    assert tail(10**6) == pytest.approx(0.025, rel=1e-4)


def test_the_interval_of_a_mean_is_students():
    """Of normal numbers, whose exact interval is the mean and so many standard errors on both sides."""
    values = np.random.default_rng(0).normal(size=20)
    means = values[resamples(20, 0, 200_000)].mean(1)
    low, high = ends(means, means, 20)
    exact = values.mean() + np.array([-1, 1]) * stats.t.ppf(0.975, 19) * values.std(ddof=1) / np.sqrt(20)
    np.testing.assert_allclose([low, high], exact, atol=0.02)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts()


@pytest.mark.parametrize("n", [10, 20, 50])
def test_intervals_over_real_prompts_hold_the_score_of_all_prompts(prompts: Prompts, n: int):
    """With 10 prompts a plain percentile interval misses the score in more than one of ten samples."""
    found = coverage(prompts, n, n_trials=200, n_resamples=400)
    for name in SCORES:
        assert 0.90 <= found["students", name] <= 0.99, name
        assert found["students", name] >= found["percentile", name]
        assert n > 10 or found["percentile", name] < 0.9


def test_too_few_prompts_and_infinite_ends_give_no_interval():
    some = np.linspace(1, 2, 1000)
    assert interval(19, some) is None
    assert interval(20, some) is not None
    assert interval(20, np.where(some > 1.9, np.inf, some)) is None
    low, high = ends(some, np.where(some > 1.9, np.inf, some), 20)
    assert np.isfinite(low)
    assert high == np.inf
    assert [enough(*one) for one in (("edges_at.99", 49), ("edges_at.99", 50), ("edges_at.90", 2))] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("n_prompts", [2, 19, 20, 49, 50])
def test_a_record_has_intervals_from_20_prompts_and_scores_at_99_percent_from_50(n_prompts: int):
    kl = np.array([2.0, 1.0, 0.1, 0.0])[:, None] * np.linspace(1, 2, n_prompts)
    ones, counts = np.ones(n_prompts), np.array([0, 1, 10, 100])
    curves = Curves(kl, kl, kl, kl, floor_kl=ones, floor_ce=ones, kl_mean=3 * ones, n_tokens=ones, n_targets=ones)
    fields: dict[str, Any] = {"block": "ff_block.0", "method": "m", "ranking": "r", "n_up": 10, "n_down": 10}
    fields |= {"n_edges": 100, "config": {}, "data": {}, "seconds": 1.0}
    record = record_of(curves, counts, 100, ScoreConfig(), **fields)
    for name, found in record.ci.items():
        assert (found is not None) == (n_prompts >= (50 if name.endswith(".99") else 20)), name
    for field in (record.edges_at, record.live_edges_at, record.dip):
        assert (field["99"] is not None) == (n_prompts >= 50)
        assert field["90"] is not None
