"""Scores of records, resample by resample: what a comparison draws.

A resample draws whole prompts, the same ones for every record on one text. SAEs of one method from several seeds count
as one entry, the mean of their scores, and a resample draws seeds too. A grid of edge counts leaves a score open
between two values, so each resample has the score itself, the least and the most that it could be on a finer grid.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from scalar_sae.errors import UserError, unknown
from scalar_sae.records.results import Record
from scalar_sae.scoring import metrics
from scalar_sae.scoring.intervals import FEW_FOR_99, FEW_PROMPTS, ends, enough, resamples, widen

Ends = tuple[float | None, float | None]
"""Both ends of an interval; None for one that is not known."""

Resampled = Float[np.ndarray, "3 one_and_resamples"]
"""A score, the least and the most that it could be on a finer grid; of all prompts, then of each resample of them."""
VALUE, LEAST, MOST = 0, 1, 2
"""Rows of `Resampled`."""


def of_halves(records: list[Record], score: str) -> Float[np.ndarray, " two"]:
    """The mean over seeds of the logarithm of a score, under the order of either half of the ranking text.

    It is zero if the records do not have these scores, and infinite if the score is never reached.
    """
    each = [record.rank_halves.get(score, (1.0, 1.0)) for record in records]
    return np.log([[np.inf if value is None else value for value in both] for both in each]).mean(0)


def over_seeds(records: list[Record], score: str, of: Callable[[Record, str], Resampled]) -> Resampled:
    """The mean over SAE seeds of a score or its logarithm.

    A resample draws as many seeds as there are, with replacement, and the same ones at every block.
    """
    each = np.stack([of(record, score) for record in records], -1)
    n = len(records)
    draws = np.random.default_rng([records[0].seed, n]).integers(n, size=(each.shape[1] - 1, n))
    return np.take_along_axis(each, np.concatenate([np.arange(n)[None], draws])[None], -1).mean(-1)


def resampled(record: Record, score: str) -> Resampled:
    """A score of the record's prompts, then of each resample of them.

    Raises:
        UserError: no such score, or not enough prompts for it.
    """
    curves = record.prompts.arrays()
    n = len(record.prompts.floor_kl)
    draws = np.concatenate([np.arange(n)[None], resamples(n, record.seed)])
    every = metrics.every_score(np.array(record.edges), curves, record.n_live_edges, record.n_edges, draws)
    if score not in every:
        raise unknown("score", score, every)
    if not enough(score, n):
        raise UserError(
            f"{score} of {record.block} {record.method}: {n} prompts are not enough prompts, it needs {FEW_FOR_99}; "
            "score more prompts, or compare another score"
        )
    return np.stack(every[score])


def logarithm(record: Record, score: str) -> Resampled:
    """The logarithm of a score, as `resampled` gives it.

    Raises:
        UserError: as there, or the score is not positive.
    """
    values = resampled(record, score)
    if values[VALUE, 0] <= 0:
        where = f"{record.block} {record.method}"
        raise UserError(f"{score} of {where} is {values[VALUE, 0]:.3g}: there are ratios of positive scores only")
    return np.log(values)


def interval_of_exponential(logs: Resampled, halves: Float[np.ndarray, " two"], n_prompts: int) -> Ends | None:
    """A 95 % interval of a score or a ratio, from its logarithm. NaN marks resamples in which it is not known."""
    one, two = halves
    if n_prompts < FEW_PROMPTS or not (one == two or np.isfinite([one, two, logs[VALUE, 0]]).all()):
        return None
    least, most = logs[[LEAST, MOST], 1:]
    found = ends(np.where(np.isnan(least), -np.inf, least), np.where(np.isnan(most), np.inf, most), n_prompts)
    found = widen(found, logs[VALUE, 0], one, two)
    low, high = (float(np.exp(end)) if np.isfinite(end) else None for end in found)
    return None if low is None and high is None else (low, high)
