"""Turn per-prompt sums over tokens into the scores of fidelity.py, with their intervals."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.records.sae_results import Ablation, Interval, SaeFidelity, SplicedFidelity
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring.intervals import interval, resamples
from scalar_sae.sites import Site

DENSITY_EDGES = 10.0 ** np.arange(-6, 0.5, 0.5)
"""Bin edges of the histogram of firing rates of live latents. The outer bins include everything beyond them."""
GROUPS = 64
"""Number of groups for quantities too large to keep per prompt. A prompt's group is its index modulo this number."""
DENSE = ("0.01", "0.1", "0.5")
"""Firing rates above which a latent counts as dense."""
_LATENTS = 4096
"""Number of latents whose resampled firing rates are held at once."""
ABLATIONS: tuple[Ablation, ...] = ("zero", "mean")

Sums = dict[str, Any]
"""From the name of a sum to its value, or to an array with one value per bootstrap resample."""
PerPrompt = Float[Tensor, " prompt"] | Int[Tensor, " prompt"]


@dataclass
class Tally:
    """Sums over the tokens of each prompt, by name."""

    rows: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def add(self, **sums: PerPrompt) -> None:
        """Append the sums of more prompts."""
        for name, values in sums.items():
            self.rows[name].append(values.double().cpu())


@dataclass
class SAETally:
    """One SAE's per-prompt tally, and the per-group sums of quantities that are too large to keep per prompt."""

    tally: Tally
    fired: Int[Tensor, "group d_sae"]
    error: Float[Tensor, "group d_model"]

    @classmethod
    def empty(cls, sae: SAE, n_prompts: int) -> "SAETally":
        """A tally with no prompts yet."""
        n = min(GROUPS, n_prompts)
        fired = torch.zeros(n, sae.d_sae, dtype=torch.int32, device="cpu")
        return cls(Tally(), fired, torch.zeros(n, sae.d_model, dtype=torch.float64, device="cpu"))

    def add(self, first: int, fired: Int[Tensor, "prompt d_sae"], error: Float[Tensor, "prompt d_model"]) -> None:
        """Add the sums over the tokens of some prompts; `first` is the index of the first of them."""
        groups = torch.arange(first, first + len(fired), device="cpu") % len(self.fired)
        self.fired.index_add_(0, groups, fired.int().cpu())
        self.error.index_add_(0, groups, error.cpu())


def _loss_scores(s: Sums) -> Sums:
    increase = {name: (s[name] - s["ce_clean"]) / s["n_targets"] for name in ("ce", "ce_zero", "ce_mean")}
    found: Sums = {"ce_increase": increase["ce"], "kl": s["kl"] / s["n"]}
    for ablation in ABLATIONS:
        found[f"ce_recovered.{ablation}"] = _recovered(increase["ce"], increase[f"ce_{ablation}"])
        found[f"kl_recovered.{ablation}"] = _recovered(s["kl"], s[f"kl_{ablation}"])
    return found


def _recovered(harm: Any, of_ablation: Any) -> Any:
    """1 - harm / harm of the ablation; NaN where the ablation does no harm."""
    return 1 - harm / np.where(of_ablation > 0, of_ablation, np.nan)


def _sae_scores(s: Sums) -> Sums:
    return {
        "l0": s["l0"] / s["n"],
        "loss": s["error"] / s["n"],
        "fvu": s["error"] / s["spread"],
        "fvu_token_mean": s["ratio"] / s["n"],
        "cosine": s["cosine"] / s["n"],
        "shrinkage": s["x_hat_x_hat"] / np.where(s["x_x_hat"] == 0, np.nan, s["x_x_hat"]),
        **{name: value / s["n"] for name, value in s.items() if name.startswith("l0_per_chunk.")},
        **_loss_scores(s),
    }


def _with_intervals(
    scores: Callable[[Sums], Sums], tallies: list[Tally], draws: Int[np.ndarray, "resample prompt"] | None
) -> tuple[Sums, dict[str, Interval | None]]:
    """Scores over the whole text, with their intervals; an interval is None for fewer than 20 prompts."""
    rows = {name: torch.cat(parts).numpy() for tally in tallies for name, parts in tally.rows.items()}
    values = scores({name: row.sum() for name, row in rows.items()})
    if draws is None:
        return values, dict.fromkeys(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = scores({name: row[draws].sum(1) for name, row in rows.items()})
    return values, {name: interval(draws.shape[1], value) for name, value in drawn.items()}


def sae_record(
    method: str,
    site: Site,
    sae: SAE,
    of_sae: SAETally,
    tallies: list[Tally],
    draws: Int[np.ndarray, "resample prompt"] | None,
    seed: int,
) -> SaeFidelity:
    """The record of one SAE. `tallies` together hold every sum, the clean model's first."""
    values, ci = _with_intervals(_sae_scores, tallies, draws)
    counts = of_sae.fired.sum(0).numpy()
    n_tokens, n_special, n_prompts = _size(tallies[0])
    rate = counts / n_tokens
    spread, error = (torch.cat(of_sae.tally.rows[name]).sum().item() for name in ("spread", "error"))
    bias = of_sae.error.sum(0).square().sum().item() / n_tokens
    return SaeFidelity(
        method=method,
        site=str(site),
        d_sae=sae.d_sae,
        activation=str(sae.activation),
        **{name: float(values[name]) for name in ("l0", "loss", "fvu", "fvu_token_mean", "cosine")},
        shrinkage=_finite(values["shrinkage"]),
        fvu_residual_variance=(error - bias) / spread,
        **_loss_fields(values),
        dead=float((counts == 0).mean()),
        rarest=min(1.0, 3 / n_tokens),
        density=np.histogram(rate[rate > 0].clip(DENSITY_EDGES[0], 1), DENSITY_EDGES)[0].tolist(),
        dense={name: float((rate > float(name)).mean()) for name in DENSE},
        l0_per_chunk=[float(counts[a:b].sum() / n_tokens) for a, b in pairwise((0, *(sae.chunks or (sae.d_sae,))))],
        n_tokens=n_tokens,
        n_special=n_special,
        n_prompts=n_prompts,
        ci=ci | (_of_groups(of_sae, tallies, seed) if n_prompts > 1 else {}),
    )


def _of_groups(of_sae: SAETally, tallies: list[Tally], seed: int) -> dict[str, Interval | None]:
    """Intervals of the scores that are kept per group. The bootstrap draws groups instead of prompts."""
    n_groups, d_sae = of_sae.fired.shape
    rows = {name: torch.cat(parts).numpy() for tally in tallies for name, parts in tally.rows.items()}
    times = np.stack([np.bincount(draw, minlength=n_groups) for draw in resamples(n_groups, seed)])
    n, error, spread = (times @ _by_group(rows[name], n_groups) for name in ("n", "error", "spread"))
    bias = np.square(times @ of_sae.error.numpy()).sum(1) / n
    above = {name: np.zeros(len(times)) for name in DENSE}
    for some in of_sae.fired.split(_LATENTS, dim=1):
        rate = times @ some.numpy() / n[:, None]
        for name in DENSE:
            above[name] += (rate > float(name)).sum(1)
    n_drawn = min(n_groups, _size(tallies[0])[2])
    found = {f"dense.{name}": interval(n_drawn, count / d_sae) for name, count in above.items()}
    return {"fvu_residual_variance": interval(n_drawn, (error - bias) / spread), **found}


def _by_group(row: Float[np.ndarray, " prompt"], n_groups: int) -> Float[np.ndarray, " group"]:
    return np.bincount(np.arange(len(row)) % n_groups, row, n_groups)


def spliced_record(
    method: str, sites: list[Site], tallies: list[Tally], draws: Int[np.ndarray, "resample prompt"] | None
) -> SplicedFidelity:
    """The record of all SAEs of a method spliced in at once."""
    values, ci = _with_intervals(_loss_scores, tallies, draws)
    n_tokens, n_special, n_prompts = _size(tallies[0])
    return SplicedFidelity(
        method=method,
        sites=[str(site) for site in sites],
        **_loss_fields(values),
        n_tokens=n_tokens,
        n_special=n_special,
        n_prompts=n_prompts,
        ci=ci,
    )


def _size(clean: Tally) -> tuple[int, int, int]:
    """The number of counted tokens, of special tokens and of prompts."""
    n, special = (torch.cat(clean.rows[name]) for name in ("n", "n_special"))
    return int(n.sum()), int(special.sum()), len(n)


def _loss_fields(values: Sums) -> dict[str, Any]:
    found: dict[str, Any] = {name: float(values[name]) for name in ("ce_increase", "kl")}
    for name in ("ce_recovered", "kl_recovered"):
        found[name] = {ablation: _finite(values[f"{name}.{ablation}"]) for ablation in ABLATIONS}
    return found


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
