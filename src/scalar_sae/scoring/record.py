"""From curves to a record: every score with its interval, and what the record says of itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from scalar_sae.digests import digest, digest_of_sae
from scalar_sae.records.results import Curves, Floor, PromptCurves, Record, Rise
from scalar_sae.records.sae_results import Interval
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.trained import Trained
from scalar_sae.scoring import metrics
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.intervals import enough, error_of_halves, interval, resamples, widen
from scalar_sae.scoring.metrics import FAITHFULNESS, QUANTILES, Counts
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.texts import Texts
from scalar_sae.versions import versions


def trained(saes: dict[str, SAE]) -> dict[str, Trained]:
    """How long SAEs were trained, of those whose files say."""
    return {name: sae.trained for name, sae in saes.items() if sae.trained is not None}


def addresses(pair: Pair) -> dict[str, list[str | None]]:
    """Where the SAEs came from, if that was not this machine."""
    addresses = [pair.up.address, pair.down.address]
    return {"saes": addresses} if any(addresses) else {}


def settings_of(config: ScoreConfig, texts: Texts) -> dict[str, Any]:
    """What a record says of how it was scored; the sizes of the texts are those that were read."""
    n_ranked, (n_scored, n_token) = min(config.n_rank_prompts, len(texts.ranking)), texts.scoring.shape
    sizes = {"prompts": n_scored, "context": n_token, "rank_prompts": n_ranked}
    return config.model_dump(exclude={"ranking", "control"}) | sizes


def record_of(
    curves: Curves, counts: Counts, n_live: int, settings: ScoreConfig, halves: Sequence[Curves] = (), **fields: Any
) -> Record:
    """A record with the scores of its curves, of the prompts that have tokens which count.

    Args:
        curves: a curve of every prompt.
        counts: edge counts of the curves.
        n_live: edges that can matter.
        settings: how the pair was scored.
        halves: the same of the orders that each half of the ranking text gives, if they were scored.
        fields: fields of the record.
    """
    curves = curves.with_text()
    every = np.arange(len(curves.n_tokens))
    means = {
        name: metrics.over_prompts(getattr(curves, name), curves.n_tokens, every).tolist()
        for name in ("kl_model", "kl_circuit", "live_edges", "l0_down")
    }
    rises = metrics.largest_rises(curves.kl_model)
    by_half = _by_half(counts, halves, n_live, fields["n_edges"])
    values, ci = _scores(counts, curves, n_live, fields["n_edges"], settings.seed)
    return Record(
        seed=settings.seed,
        n_live_edges=n_live,
        n_tokens=int(curves.n_tokens.sum()),
        edges=counts.tolist(),
        **means,
        absolute=values["absolute"],
        relative=values["relative"],
        pure=values["pure"],
        edges_at={q: _finite(values[f"edges_at.{q}"]) for q, _ in QUANTILES},
        live_edges_at={q: _finite(values[f"live_edges_at.{q}"]) for q, _ in QUANTILES},
        dip={q: _finite(values[f"dip.{q}"]) for q, _ in QUANTILES},
        lowest_recovery=values["lowest_recovery"],
        largest_rise=Rise(mean=float(rises.mean()), most=float(rises.max())),
        log_area=values["log_area"],
        floor=Floor(kl=values["floor.kl"], ce_increase=values["floor.ce_increase"]),
        kl_mean=values["kl_mean"],
        faithful_at={q: _finite(values[f"faithful_at.{q}"]) for q, _ in FAITHFULNESS},
        faithful_from={q: _finite(values[f"faithful_from.{q}"]) for q, _ in FAITHFULNESS},
        faithful_live_at={q: _finite(values[f"faithful_live_at.{q}"]) for q, _ in FAITHFULNESS},
        unfaithful_area=values["unfaithful_area"],
        rank_halves=by_half,
        ci={
            name: _widened(found, values[name], by_half[name]) if name in by_half else found
            for name, found in ci.items()
        },
        prompts=PromptCurves.of(curves),
        versions=versions(),
        **fields,
    )


def rules(sae: SAE) -> list[str]:
    """What an SAE does beside its weights, in words."""
    return [str(sae.activation), str(sae.norm), str(sae.writes)]


def describe_pair(pair: Pair, texts: Texts) -> dict[str, Any]:
    """The fields of a record that say which pair was scored, on which text."""
    return {
        "block": str(pair.block),
        "n_up": pair.up.d_sae,
        "n_down": pair.down.d_sae,
        "n_edges": pair.n_edges,
        "n_special": texts.n_special(pair.special),
        "special": list(pair.special),
        "hashes": {"lm": digest(pair.lm.parameters()), "up": digest_of_sae(pair.up), "down": digest_of_sae(pair.down)},
        "trained": trained({"up": pair.up, "down": pair.down}),
        "data": texts.data,
    }


def _scores(
    counts: Counts, curves: Curves, n_live: int, n_edges: int, seed: int
) -> tuple[dict[str, float], dict[str, Interval | list[Interval] | None]]:
    """Every score of the mean curves, and its interval: over prompts, and over what the grid leaves open. A score that
    needs more prompts is NaN.
    """
    n_prompts = len(curves.floor_kl)
    drawn = resamples(n_prompts, seed)
    resampled = metrics.every_score(counts, curves, n_live, n_edges, drawn)
    measured = metrics.every_score(counts, curves, n_live, n_edges, np.arange(n_prompts)[None])
    ci: dict[str, Interval | list[Interval] | None] = {
        name: interval(n_prompts, found.low, found.high) if enough(name, n_prompts) else None
        for name, found in resampled.items()
        if not name.startswith(("dip", "lowest"))
    }
    kl_model, kl_circuit = (
        metrics.over_prompts(curve, curves.n_tokens, drawn).T for curve in (curves.kl_model, curves.kl_circuit)
    )
    faithful = metrics.faithfulness(kl_model, metrics.over_prompts(curves.kl_mean, curves.n_tokens, drawn))
    bands = {"kl_model": kl_model, "kl_circuit": kl_circuit, "faithfulness": faithful}
    bands["recovery"] = metrics.recovery(counts, kl_circuit)
    ci |= {name: _band(n_prompts, band.T) for name, band in bands.items()}
    values = {name: float(found.value[0]) if enough(name, n_prompts) else np.nan for name, found in measured.items()}
    return values, ci


def _by_half(
    counts: Counts, halves: Sequence[Curves], n_live: int, n_edges: int
) -> dict[str, tuple[float | None, float | None]]:
    """Every score that depends on the order of edges, of the orders that the halves of the ranking text give."""
    if not halves:
        return {}
    one, two = (
        metrics.every_score(counts, some, n_live, n_edges, np.arange(len(some.n_tokens))[None])
        for some in (curves.with_text() for curves in halves)
    )
    n_prompts = len(halves[0].with_text().n_tokens)
    return {
        name: (_finite(float(one[name].value[0])), _finite(float(two[name].value[0])))
        for name in one
        if enough(name, n_prompts) and not name.startswith(("dip", "lowest", "floor", "kl_mean"))
    }


def _widened(
    found: Interval | list[Interval] | None, value: float, halves: tuple[float | None, float | None]
) -> Interval | None:
    """An interval that includes the error of the ranking text; None where a half never reaches the score."""
    one, two = halves
    if not isinstance(found, tuple) or one is None or two is None:
        return None
    if min(found[0], value, one, two) <= 0:
        return widen(found, value, error_of_halves(one, two))
    low, high = widen((np.log(found[0]), np.log(found[1])), np.log(value), error_of_halves(np.log(one), np.log(two)))
    return float(np.exp(low)), float(np.exp(high))


def _band(n_prompts: int, curves: Float[np.ndarray, "n_counts resample"]) -> list[Interval] | None:
    """The intervals of a curve; None where there are not enough prompts."""
    found = [interval(n_prompts, row) for row in curves]
    return [one for one in found if one is not None] or None


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
