"""What a score owes to the ranking text, from the orders that its two halves give."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.records.results import Record
from scalar_sae.scoring.compare import ratios
from scalar_sae.scoring.config import ScoreConfig, StudyScores
from scalar_sae.scoring.intervals import error_of_halves, widen
from scalar_sae.scoring.score import score
from scalar_sae.scoring.texts import Texts
from tests.helpers import tiny_pair
from tests.scoring.test_compare import record

TOKENS = torch.randint(1, 32, (26, 10), generator=torch.Generator().manual_seed(0))
TEXTS = Texts(TOKENS[:6], TOKENS[6:], {"fingerprint": "f"})
CONFIG = ScoreConfig(ranking="leave_one_out", rank_prompts=4, ablation="zero")


@pytest.fixture(scope="module")
def both() -> tuple[Record, Record]:
    """A pair scored without and with halves of its four ranking prompts."""
    pair = tiny_pair("ff_block.0")
    return score(pair, TEXTS, CONFIG), score(pair, TEXTS, CONFIG.model_copy(update={"rank_halves": True}))


def test_the_halves_scores_are_those_of_ranking_on_either_half(both: tuple[Record, Record]):
    """Scores that the mean of the site, which is one of all the ranking text, does not enter."""
    pair = tiny_pair("ff_block.0")
    alone = [score(pair, replace(TEXTS, ranking=TOKENS[part]), CONFIG) for part in (slice(2), slice(2, 4))]
    found = both[1].rank_halves
    for name in ("absolute", "pure"):
        assert found[name] == pytest.approx(tuple(getattr(one, name) for one in alone), rel=1e-6)
    for q in ("50", "90"):
        assert found[f"edges_at.{q}"] == pytest.approx(tuple(one.edges_at[q] for one in alone), rel=1e-6)
    assert found["pure"][0] != found["pure"][1]
    assert not any(name.endswith(".99") or name.startswith(("floor", "dip", "kl_mean")) for name in found)


def test_the_score_stays_and_its_interval_grows_by_the_difference(both: tuple[Record, Record]):
    plain, wide = both
    assert plain.rank_halves == {}
    assert wide.edges_at == plain.edges_at
    assert wide.ci["floor.kl"] == plain.ci["floor.kl"]
    one, two = np.log(np.array(wide.rank_halves["pure"], float))
    low, high = (np.log(np.array(found.ci["pure"], float)) - np.log(found.pure) for found in (plain, wide))
    added = np.sqrt(high**2 - low**2)
    assert added == pytest.approx(1.96 * abs(one - two) / 2)


def test_half_the_difference_of_two_halves_is_a_standard_error():
    """Of scores that are means over two halves. From one difference an interval is Student's with one degree of freedom
    at the quantile of a normal distribution, which holds the truth with a probability of 70 %.
    """
    halves = np.random.default_rng(0).normal(size=(20_000, 2))
    ends = np.array(
        [widen((value, value), value, error_of_halves(*both)) for both in halves for value in [both.mean()]]
    )
    errors = (ends[:, 1] - ends[:, 0]) / 2 / 1.96
    assert np.square(errors).mean() == pytest.approx(0.5, rel=0.03)
    assert ((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean() == pytest.approx(0.70, abs=0.01)


def with_halves(one: Record, *scores: float | None) -> Record:
    changes: dict[str, Any] = {"rank_halves": {"faithful_at.80": scores}, "config": one.config | {"rank_halves": True}}
    return one.model_copy(update=changes)


def test_in_a_ratio_what_both_owe_to_the_ranking_text_cancels():
    base, mine = record("ff_block.0", "topk", 21), record("ff_block.0", "b", 44)
    (plain,) = ratios([base, mine], "topk").rows
    (same,) = ratios([with_halves(base, 20, 30), with_halves(mine, 40, 60)], "topk").rows
    assert same.interval == pytest.approx(plain.interval)
    (other,) = ratios([with_halves(base, 20, 30), with_halves(mine, 60, 40)], "topk").rows
    added = 1.96 * np.log((60 / 20) / (40 / 30)) / 2
    for end, wider in zip(plain.interval or (), other.interval or (), strict=True):
        assert end is not None
        assert wider is not None
        assert abs(np.log(wider / plain.value)) == pytest.approx(np.hypot(np.log(end / plain.value), added))
    (never,) = ratios([with_halves(base, 20, 30), with_halves(mine, 60, None)], "topk").rows
    assert never.interval is None
    with pytest.raises(UserError, match="records with rank_halves True and None do not compare"):
        ratios([with_halves(base, 20, 30), mine], "topk")


def test_orders_without_a_ranking_text_have_no_halves():
    study = StudyScores(rankings={"ig": 4, "local": 1, "random": 4}, rank_halves=True)
    assert [one.rank_halves for one in study.scores()] == [True, False, False]
    assert study.scores()[0].steps(4, 10) == 38
    pair = tiny_pair("ff_block.0")
    with pytest.raises(UserError, match="rank_halves: the order random does not depend on the ranking text"):
        score(pair, TEXTS, ScoreConfig(ranking="random", rank_halves=True))
    with pytest.raises(UserError, match="rank_halves: one ranking prompt has no halves"):
        score(pair, TEXTS, ScoreConfig(rank_prompts=1, rank_halves=True))
