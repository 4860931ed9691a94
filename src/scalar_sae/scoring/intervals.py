"""95 % intervals: whole prompts are drawn with replacement, and the interval ends at quantiles of the resampled scores.

The quantiles are those of Student's distribution ("expanded percentile interval", Hesterberg 2015, doi
10.1080/00031305.2015.1089789): a plain percentile interval over few prompts is too narrow. Coverage: scoring/README.md.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr, stdtrit

from scalar_sae.records.sae_results import Interval

FEW_PROMPTS = 20
"""Fewer prompts than this give no interval."""
FEW_FOR_99 = 50
"""Fewer prompts than this give no score at 99 %."""

Resamples = Float[np.ndarray, " resample"]


def resamples(n_prompts: int, seed: int, n_resamples: int = 1000) -> Int[np.ndarray, "resample prompt"]:
    """Rows of prompt numbers drawn with replacement: whole prompts, since tokens in one are not independent.

    The same seed draws the same prompts, so differences between methods scored on one text can be paired.
    """
    return np.random.default_rng(seed).integers(n_prompts, size=(n_resamples, n_prompts))


def enough(score: str, n_prompts: int) -> bool:
    """Whether there are enough prompts to report a score, by its name (`edges_at.99`)."""
    return n_prompts >= FEW_FOR_99 or not score.endswith(".99")


def tail(n: int) -> float:
    """Share of resamples beyond either end of a 95 % interval over n prompts: 2.5 % for many, less for few.

    A bootstrap finds the variance of a mean too small by the factor (n - 1) / n, and knows its square root from n
    values only.
    """
    return float(ndtr(stdtrit(n - 1, 0.025) * np.sqrt(n / (n - 1))))


def ends(low: Resamples, high: Resamples, n: int) -> Interval:
    """Both ends of an interval over n >= 2 prompts.

    Args:
        low: the least that the score could be in each resample; -infinity where that is not known.
        high: the most that it could be; infinity where that is not known.
        n: number of prompts.
    """
    share = tail(n)
    least, most = np.quantile(low, share, method="nearest"), np.quantile(high, 1 - share, method="nearest")
    return float(least), float(most)


def interval(n: int, low: Resamples, high: Resamples | None = None) -> Interval | None:
    """A 95 % interval; None over fewer than 20 prompts, or where an end is infinite (a score was not reached).

    Args:
        n: number of prompts, or of what else was drawn.
        low: a score of each resample; the least that it could be, where a grid leaves it open.
        high: the most that it could be then.
    """
    if n < FEW_PROMPTS:
        return None
    found = ends(low, low if high is None else high, n)
    return found if np.isfinite(found).all() else None


def error_of_halves(one: float, two: float) -> float:
    """Half of a 95 % interval over ranking texts, from the score under the orders of the two halves of one.

    An order from half of the text has twice the variance, and the difference of two of them four times. So half the
    difference is a standard error.
    """
    return 0.0 if one == two else 1.96 * abs(one - two) / 2


def widen(found: Interval, value: float, *errors: float) -> Interval:
    """An interval with further errors, independent of each other and of what the interval is over, on both sides.

    Args:
        found: the interval.
        value: the score.
        errors: half of a 95 % interval over each further thing.
    """
    if not any(errors):
        return found
    low, high = (np.hypot(max(side, 0.0), np.linalg.norm(errors)) for side in (value - found[0], found[1] - value))
    return float(value - low), float(value + high)
