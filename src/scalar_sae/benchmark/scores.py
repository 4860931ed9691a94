"""From curves to scores. Plain NumPy: every function takes curves with any leading axes (bootstrap resamples) and the
edge counts along the last one. Definitions: benchmark/README.md.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from scalar_sae.results import Curves

Curve = Float[np.ndarray, "*resample n_counts"]
Score = Float[np.ndarray, "*resample"] | float
Counts = Int[np.ndarray, " n_counts"]

QUANTILES: tuple[tuple[Literal["50", "90", "99"], float], ...] = (("50", 0.5), ("90", 0.9), ("99", 0.99))
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


def recovery(counts: Counts, kl_circuit: Curve) -> Curve:
    """1 - KL(full circuit || n) / KL(full circuit || 0): 0 with no edges, 1 with all."""
    assert counts[0] == 0
    nothing = kl_circuit[..., :1]
    return 1 - kl_circuit / np.where(nothing > 0, nothing, 1.0)  # a circuit that does nothing is recovered at once


def edges_at(counts: Counts, recovered: Curve, q: float) -> Score:
    """The smallest edge count at which recovery reaches q, interpolated in log n; infinite if it never does."""
    place, share = _crossing(recovered, q)
    log_n = np.log(np.maximum(counts, 1))
    n = np.exp(log_n[place - 1] + share * (log_n[place] - log_n[place - 1]))
    return np.where(recovered.max(-1) >= q, n, np.inf)


def value_at(recovered: Curve, q: float, values: Curve) -> Score:
    """Another curve's value (live edges, say) at the count where recovery reaches q."""
    place, share = _crossing(recovered, q)
    before = np.take_along_axis(values, (place - 1)[..., None], -1)[..., 0]
    after = np.take_along_axis(values, place[..., None], -1)[..., 0]
    return np.where(recovered.max(-1) >= q, before + share * (after - before), np.inf)


def dip(recovered: Curve, q: float) -> Score:
    """The deepest fall of recovery below q after first reaching it: curves are not monotone."""
    reached = np.maximum.accumulate(recovered, axis=-1) >= q
    return np.where(reached, np.maximum(q - recovered, 0), 0).max(-1)


def log_area(counts: Counts, recovered: Curve, n_live: int) -> Score:
    """Mean of 1 - recovery over log n, from 1 to `n_live`, the edges whose two latents live in the ranking text."""
    end = np.log(max(n_live, 2))
    log_n = np.log(counts[1:])
    missing = 1 - recovered[..., 1:]
    inside = log_n < end
    after = min(int(inside.sum()), len(log_n) - 1)
    share = (end - log_n[after - 1]) / (log_n[after] - log_n[after - 1])
    at_end = missing[..., after - 1] + min(share, 1.0) * (missing[..., after] - missing[..., after - 1])
    x = np.append(log_n[inside], end)
    y = np.concatenate([missing[..., inside], at_end[..., None]], -1)
    return np.trapezoid(y, x, axis=-1) / end


def every_score(
    counts: Counts, curves: Curves, n_live: int, n_edges: int, prompts: Int[np.ndarray, "resample prompt"]
) -> dict[str, Float[np.ndarray, " resample"]]:
    """All scores of the mean curve over each row of prompt numbers."""
    kl_model, kl_circuit, live_edges = (
        over_prompts(curve, curves.n_tokens, prompts).T
        for curve in (curves.kl_model, curves.kl_circuit, curves.live_edges)
    )
    recovered = recovery(counts, kl_circuit)
    absolute = area(counts, kl_model)
    found: dict[str, Score] = {
        "absolute": absolute,
        "relative": absolute / n_edges,
        "pure": area(counts, kl_circuit),
    }
    for name, q in QUANTILES:
        found[f"edges_at.{name}"] = edges_at(counts, recovered, q)
        found[f"live_edges_at.{name}"] = value_at(recovered, q, live_edges)
        found[f"dip.{name}"] = dip(recovered, q)
    found["log_area"] = log_area(counts, recovered, n_live)
    found["floor.kl"] = over_prompts(curves.floor_kl, curves.n_tokens, prompts)
    found["floor.ce_increase"] = over_prompts(curves.floor_ce, curves.n_targets, prompts)
    return {name: np.asarray(value) for name, value in found.items()}


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


def resamples(n_prompts: int, seed: int, n_resamples: int = 1000) -> Int[np.ndarray, "resample prompt"]:
    """Rows of prompt numbers drawn with replacement: whole prompts, since tokens in one are not independent.

    The same seed draws the same prompts, so differences between methods scored on one text can be paired.
    """
    return np.random.default_rng(seed).integers(n_prompts, size=(n_resamples, n_prompts))


def interval(values: Float[np.ndarray, " resample"]) -> tuple[float, float] | None:
    """95 % percentile interval of resampled scores; None where an end is infinite (recovery was not reached)."""
    low, high = np.quantile(values, [0.025, 0.975], method="nearest")
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None


def _crossing(recovered: Curve, q: float) -> tuple[Int[np.ndarray, "*resample"], Score]:
    """Index of the first count that reaches q (at least 1), and how far between the one before and it."""
    place = np.asarray(np.maximum((recovered >= q).argmax(-1), 1))
    before = np.take_along_axis(recovered, (place - 1)[..., None], -1)[..., 0]
    after = np.take_along_axis(recovered, place[..., None], -1)[..., 0]
    gap = np.where(after > before, after - before, 1.0)
    return place, np.clip((q - before) / gap, 0.0, 1.0)
