"""From curves to scores. Plain NumPy: every function takes curves with any leading axes (bootstrap resamples) and the
edge counts along the last one. Definitions: scoring/README.md.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from scalar_sae.records.curve import recovery
from scalar_sae.records.results import Curves, Faithfulness

Curve = Float[np.ndarray, "*resample n_counts"]
Score = Float[np.ndarray, "*resample"] | float
Counts = Int[np.ndarray, " n_counts"]


class Measured(NamedTuple):
    """A score, and what its grid of edge counts leaves open: the least and the most that it could be on a finer one."""

    value: Float[np.ndarray, " resample"]
    low: Float[np.ndarray, " resample"]
    high: Float[np.ndarray, " resample"]


QUANTILES: tuple[tuple[Literal["50", "90", "99"], float], ...] = (("50", 0.5), ("90", 0.9), ("99", 0.99))
FAITHFULNESS: tuple[tuple[Faithfulness, float], ...] = (("50", 0.5), ("80", 0.8), ("90", 0.9))
AREA_MOST = 2**18
"""The area of faithfulness ends here, so that pairs of any width have the same range."""
PUBLISHED_MOST = 2**18
"""The published area stops here, however many edges a pair has."""


def edge_counts(most: int, halvings: int = 2) -> Counts:
    """0 and floor(2^(m / halvings)) for m = 0, 1, ... up to `most`, duplicates removed, and `most` itself."""
    exponents = np.arange(int(np.log2(most) * halvings) + 1)
    counts = np.floor(2.0 ** (exponents / halvings)).astype(np.int64)
    return np.unique(np.concatenate([[0], counts[counts <= most], [most]]))


def published_counts(n_edges: int) -> Counts:
    """The 35 counts of the authors' code, as far as the pair has edges; none is 0.

    Theirs is the floor of an inexact power: 4,095 and 8,191.
    """
    counts = np.unique(np.geomspace(1, PUBLISHED_MOST, 37).astype(np.int64))
    return np.unique(np.append(counts[counts < n_edges], min(PUBLISHED_MOST, n_edges)))


def area(counts: Counts, kl: Curve) -> Score:
    """Published score: trapezoid of the mean KL over linear edge count, from 1 to 2^18. Unit: edge nats."""
    inside = (counts >= 1) & (counts <= PUBLISHED_MOST)
    return np.trapezoid(kl[..., inside], counts[inside], axis=-1)


def area_between(counts: Counts, kl: Curve) -> tuple[Score, Score]:
    """The least and the most that `area` could be on a finer grid: step sums."""
    inside = (counts >= 1) & (counts <= PUBLISHED_MOST)
    return _step_sums(counts[inside], kl[..., inside])


def edges_at(counts: Counts, recovered: Curve, q: float) -> Score:
    """The smallest edge count at which recovery reaches q, interpolated in log n; infinite if it never does."""
    place, share = _crossing(recovered, q)
    log_n = np.log(np.maximum(counts, 1))
    n = np.exp(log_n[place - 1] + share * (log_n[place] - log_n[place - 1]))
    return np.where(recovered.max(-1) >= q, n, np.inf)


def edges_between(counts: Counts, recovered: Curve, q: float) -> tuple[Score, Score]:
    """The last count (at least 1) before recovery reaches q, and the first that reaches it; infinite if none does."""
    place, _ = _crossing(recovered, q)
    n, reached = np.maximum(counts, 1), recovered.max(-1) >= q
    return np.where(reached, n[place - 1], np.inf), np.where(reached, n[place], np.inf)


def value_at(recovered: Curve, q: float, values: Curve) -> Score:
    """Another curve's value (live edges, say) at the count where recovery reaches q."""
    place, share = _crossing(recovered, q)
    before = np.take_along_axis(values, (place - 1)[..., None], -1)[..., 0]
    after = np.take_along_axis(values, place[..., None], -1)[..., 0]
    return np.where(recovered.max(-1) >= q, before + share * (after - before), np.inf)


def values_between(recovered: Curve, q: float, values: Curve) -> tuple[Score, Score]:
    """The other curve's smaller and larger value at the two counts between which recovery reaches q."""
    place, _ = _crossing(recovered, q)
    ends = np.stack([np.take_along_axis(values, at[..., None], -1)[..., 0] for at in (place - 1, place)])
    reached = recovered.max(-1) >= q
    return np.where(reached, ends.min(0), np.inf), np.where(reached, ends.max(0), np.inf)


def dip(recovered: Curve, q: float) -> Score:
    """The deepest fall of recovery below q after first reaching it: curves are not monotone."""
    reached = np.maximum.accumulate(recovered, axis=-1) >= q
    return np.where(reached, np.maximum(q - recovered, 0), 0).max(-1)


def lowest_recovery(recovered: Curve) -> Score:
    """The least recovery at any count above zero. It is negative where some edges are worse than none."""
    return recovered[..., 1:].min(-1)


def largest_rises(kl: Float[np.ndarray, "n_counts prompt"]) -> Float[np.ndarray, " prompt"]:
    """The largest rise of KL from one count to the next, for each prompt; 0 for a curve that never rises."""
    return np.maximum(np.diff(kl, axis=0), 0).max(0)


def faithfulness(kl_model: Curve, kl_mean: Score) -> Curve:
    """1 - KL(full model || sub-circuit) / KL(full model || downstream site set to its mean); 0 where the mean costs
    nothing.
    """
    worst = np.asarray(kl_mean)[..., None]
    return np.where(worst > 0, 1 - kl_model / np.where(worst > 0, worst, 1.0), 0.0)


def settled_at(counts: Counts, curve: Curve, q: float) -> Score:
    """The smallest measured count from which a curve stays at q or above; infinite if its end is below q."""
    above = np.flip(np.logical_and.accumulate(np.flip(curve >= q, -1), axis=-1), -1)
    return np.where(above[..., -1], counts[above.argmax(-1)], np.inf)


def settled_between(counts: Counts, curve: Curve, q: float) -> tuple[Score, Score]:
    """The count before `settled_at`, where the curve is still below q (or 0), and `settled_at` itself."""
    most = np.asarray(settled_at(counts, curve, q))
    before = counts[np.maximum(np.searchsorted(counts, most) - 1, 0)]
    return np.where(np.isfinite(most), before, np.inf), most


def log_area(counts: Counts, recovered: Curve, n_live: int) -> Score:
    """Mean of 1 - recovery over log n, from 1 to `n_live` (at least 2), the edges whose two latents live in the ranking
    text. Beyond its last count a curve stays as it is.
    """
    end = np.log(max(n_live, 2))
    log_n = np.log(counts[1:])
    missing = 1 - recovered[..., 1:]
    inside = log_n < end
    after = int(inside.sum())
    at_end = missing[..., -1]
    if after < len(log_n):
        share = (end - log_n[after - 1]) / (log_n[after] - log_n[after - 1])
        at_end = missing[..., after - 1] + share * (missing[..., after] - missing[..., after - 1])
    x = np.append(log_n[inside], end)
    y = np.concatenate([missing[..., inside], at_end[..., None]], -1)
    return np.trapezoid(y, x, axis=-1) / end


def log_area_between(counts: Counts, recovered: Curve, n_live: int) -> tuple[Score, Score]:
    """The least and the most that `log_area` could be on a finer grid: step sums."""
    end = np.log(max(n_live, 2))
    missing = 1 - recovered[..., 1:]
    ends = np.append(np.log(counts[1:]), np.inf)  # beyond its last count a curve stays as it is
    low, high = _step_sums(np.minimum(ends, end), np.concatenate([missing, missing[..., -1:]], -1))
    return low / end, high / end


def every_score(
    counts: Counts, curves: Curves, n_live: int, n_edges: int, prompts: Int[np.ndarray, "resample prompt"]
) -> dict[str, Measured]:
    """All scores of the mean curve over each row of prompt numbers."""
    kl_model, kl_circuit, live_edges = (
        over_prompts(curve, curves.n_tokens, prompts).T
        for curve in (curves.kl_model, curves.kl_circuit, curves.live_edges)
    )
    recovered = recovery(counts, kl_circuit)
    absolute = _measured(area(counts, kl_model), area_between(counts, kl_model))
    found = {
        "absolute": absolute,
        "relative": Measured(*(one / n_edges for one in absolute)),
        "pure": _measured(area(counts, kl_circuit), area_between(counts, kl_circuit)),
        "log_area": _measured(log_area(counts, recovered, n_live), log_area_between(counts, recovered, n_live)),
        "floor.kl": _measured(over_prompts(curves.floor_kl, curves.n_tokens, prompts)),
        "floor.ce_increase": _measured(over_prompts(curves.floor_ce, curves.n_targets, prompts)),
    }
    kl_mean = over_prompts(curves.kl_mean, curves.n_tokens, prompts)
    faithful = faithfulness(kl_model, kl_mean)
    area_of = log_area(counts, faithful, AREA_MOST), log_area_between(counts, faithful, AREA_MOST)
    found |= {"kl_mean": _measured(kl_mean), "unfaithful_area": _measured(*area_of)}
    for name, q in FAITHFULNESS:
        live = value_at(faithful, q, live_edges), values_between(faithful, q, live_edges)
        found[f"faithful_at.{name}"] = _measured(edges_at(counts, faithful, q), edges_between(counts, faithful, q))
        found[f"faithful_from.{name}"] = _measured(
            settled_at(counts, faithful, q), settled_between(counts, faithful, q)
        )
        found[f"faithful_live_at.{name}"] = _measured(*live)
    for name, q in QUANTILES:
        live = value_at(recovered, q, live_edges), values_between(recovered, q, live_edges)
        found[f"edges_at.{name}"] = _measured(edges_at(counts, recovered, q), edges_between(counts, recovered, q))
        found[f"live_edges_at.{name}"] = _measured(*live)
        found[f"dip.{name}"] = _measured(dip(recovered, q))
    found["lowest_recovery"] = _measured(lowest_recovery(recovered))
    return found


def over_prompts(
    values: Float[np.ndarray, "*curve n_prompt"],
    weight: Float[np.ndarray, " n_prompt"],
    prompts: Int[np.ndarray, "*resample prompt"],
) -> Float[np.ndarray, "*curve_and_resample"]:
    """Mean over prompts, each weighed by its tokens that count: the mean over tokens. Where all prompts have as many it
    is the mean over prompts, to the bit. What all curves draw is never held at once, but that of one after the other.
    """
    share = (weight / max(weight.max(), 1.0))[prompts]
    sums = np.stack([(row[prompts] * share).sum(-1) for row in values.reshape(-1, values.shape[-1])])
    return sums.reshape(*values.shape[:-1], *sums.shape[1:]) / np.maximum(share.sum(-1), np.finfo(float).tiny)


def _crossing(recovered: Curve, q: float) -> tuple[Int[np.ndarray, "*resample"], Score]:
    """Index of the first count that reaches q (at least 1), and how far between the one before and it."""
    place = np.asarray(np.maximum((recovered >= q).argmax(-1), 1))
    before = np.take_along_axis(recovered, (place - 1)[..., None], -1)[..., 0]
    after = np.take_along_axis(recovered, place[..., None], -1)[..., 0]
    gap = np.where(after > before, after - before, 1.0)
    return place, np.clip((q - before) / gap, 0.0, 1.0)


def _measured(value: Score, between: tuple[Score, Score] | None = None) -> Measured:
    """A score with what its grid leaves open, if it has one."""
    low, high = between or (value, value)
    return Measured(np.asarray(value), np.asarray(low), np.asarray(high))


def _step_sums(x: Float[np.ndarray, " n_counts"] | Counts, y: Curve) -> tuple[Score, Score]:
    """Areas under the lower and the upper of two neighbouring values: the ends of what a curve encloses with the axis
    that stays between its neighbouring values.
    """
    before, after, width = y[..., :-1], y[..., 1:], np.diff(x)
    return (np.minimum(before, after) * width).sum(-1), (np.maximum(before, after) * width).sum(-1)
