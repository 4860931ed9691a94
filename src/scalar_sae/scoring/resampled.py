"""Scores of records, resample by resample: what a comparison draws.

A resample draws whole prompts, the same ones for every record on one text. SAEs of one method from several seeds count
as one entry, the mean of their logarithms. Seeds are too few to be drawn: what another choice of seeds would change is
estimated from their variance (`Reseeding`) and added to the interval. A grid of edge counts leaves a score open between
two values, so each resample has the score itself, the least and the most that it could be on a finer grid.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from scalar_sae.errors import UserError, unknown
from scalar_sae.records.results import Record
from scalar_sae.scoring import metrics
from scalar_sae.scoring.intervals import FEW_FOR_99, FEW_PROMPTS, ends, enough, error_of_halves, resamples, widen

Ends = tuple[float | None, float | None]
"""Both ends of an interval; None for one that is not known."""

Resampled = Float[np.ndarray, "3 one_and_resamples"]
"""A score, the least and the most that it could be on a finer grid; of all prompts, then of each resample of them."""
VALUE, LEAST, MOST = 0, 1, 2
"""Rows of `Resampled`."""

Reseeding = Float[np.ndarray, "_ 2"]
"""For every mean over seeds that a score is made of, the variance of that mean and its degrees of freedom. No rows: one
seed each, so that nothing is known of other seeds."""
VARIANCE, FREEDOM = 0, 1
"""Columns of `Reseeding`."""


def of_halves(records: list[Record], score: str) -> Float[np.ndarray, " two"]:
    """The mean over seeds of the logarithm of a score, under the order of either half of the ranking text.

    It is zero if the records do not have these scores, and infinite if the score is never reached.
    """
    each = [record.rank_halves.get(score, (1.0, 1.0)) for record in records]
    return np.log([[np.inf if value is None else value for value in both] for both in each]).mean(0)


def over_seeds(
    records: list[Record], score: str, of: Callable[[Record, str], Resampled]
) -> tuple[Resampled, Reseeding]:
    """The mean over SAE seeds of a score or its logarithm, and how uncertain it is: infinitely where one seed never
    reaches the score.
    """
    each, n = np.array([of(record, score) for record in records]), len(records)
    values = each[:, VALUE, 0]
    variance = values.var(ddof=1) / n if n > 1 and np.isfinite(values).all() else np.inf
    return each.mean(0), np.array([[variance, n - 1.0]] if n > 1 else np.empty((0, 2)))


def mean_over_blocks(parts: list[Reseeding]) -> Reseeding:
    """The same of the mean over blocks. SAEs of different blocks are trained apart, so their errors are independent."""
    return np.concatenate([part / [len(parts) ** 2, 1.0] for part in parts])


def error_of_reseeding(parts: Reseeding) -> float:
    """Half of a 95 % interval over seeds: Student's, with the degrees of freedom of Welch and Satterthwaite."""
    variance = parts[:, VARIANCE].sum()
    if variance == 0 or np.isinf(variance):
        return float(variance)
    freedom = variance**2 / (parts[:, VARIANCE] ** 2 / parts[:, FREEDOM]).sum()
    return float(stdtrit(freedom, 0.975) * np.sqrt(variance))


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


def interval_of_exponential(
    logs: Resampled, halves: Float[np.ndarray, " two"], parts: Reseeding, n_prompts: int
) -> Ends | None:
    """A 95 % interval of a score or a ratio, from its logarithm. NaN marks resamples in which it is not known."""
    (one, two), error = halves, error_of_reseeding(parts)
    if np.isinf(error) or n_prompts < FEW_PROMPTS or not (one == two or np.isfinite([one, two, logs[VALUE, 0]]).all()):
        return None
    least, most = logs[[LEAST, MOST], 1:]
    found = ends(np.where(np.isnan(least), -np.inf, least), np.where(np.isnan(most), np.inf, most), n_prompts)
    found = widen(found, logs[VALUE, 0], error_of_halves(one, two), error)
    low, high = (float(np.exp(end)) if np.isfinite(end) else None for end in found)
    return None if low is None and high is None else (low, high)
