"""The Zipf law of a dictionary's firing densities, and the latents that fall short of it (aux_zipf_loss).

Our reading of Ayonrinde (arXiv 2411.02124), whose body was not available to us. Two things are known: aux_zipf_loss
generalises AuxK from dead latents to underused ("dying") ones, and the budget of a latent in Feature Choice follows a
Zipf law in its rank. The density of a latent is the share of tokens on which it fires. The law says that the latent of
rank r (1 for the most frequent) has the density

    rho*_r = min(1, amplitude / (r + shift)^exponent)        (Zipf-Mandelbrot)

The three numbers are fitted once, to the running densities at the end of a first phase of training, and then kept. The
fit is least squares in the logarithm of the density. It leaves out the lowest tail, where such laws are known not to
hold: the ranks after those that make up `fitted_share` of all firings.

A latent is underused if its density is below (1 - tau) rho*. So with `tau = 1` no latent is underused. Ranks are frozen
for `window` steps, so that a target does not follow its own latent.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, Field
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from scalar_sae import distributed

FEWEST = 3
"""Densities that a fit needs: it has as many parameters."""
GRID = 100
"""Shifts that are tried before the best one is refined."""


class Zipf(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How densities are followed, and which of them are too low."""

    tau: float = Field(default=0.5, gt=0, le=1)
    """A latent is underused if its density falls short of the law's by more than this share; at 1 none is."""
    decay: float = Field(default=0.99, ge=0, lt=1)
    """Decay, per step, of the running densities."""
    window: int = Field(default=100, gt=0)
    """Steps for which ranks stay frozen."""
    fitted_share: float = Field(default=0.99, gt=0, le=1)
    """The law is fitted to the most frequent latents, which together have this share of all firings."""


class Law(NamedTuple):
    """A Zipf-Mandelbrot law of densities."""

    exponent: float
    shift: float
    amplitude: float
    r2: float
    """Share of the variance of the logarithms that the law explains, over the ranks it was fitted to."""

    def shares(self, d_sae: int) -> Float[np.ndarray, " d_sae"]:
        """Each rank's share of all firings, by the law; they add up to 1."""
        shares = (np.arange(1, d_sae + 1) + self.shift) ** -self.exponent
        return shares / shares.sum()


def fit(densities: Float[np.ndarray, " d_sae"], fitted_share: float) -> Law | None:
    """The law that fits densities best; None if fewer than three of them are left to fit.

    Args:
        densities: share of tokens on which each latent fires, in any order.
        fitted_share: the most frequent latents count that together have this share of all firings.
    """
    ordered = np.sort(densities.astype(np.float64))[::-1]
    ordered = ordered[(ordered > 0) & (ordered.cumsum() <= fitted_share * ordered.sum() * (1 + 1e-12))]
    if len(ordered) < FEWEST:
        return None
    wanted, ranks = np.log(ordered), np.arange(1, len(ordered) + 1)
    total = np.square(wanted - wanted.mean()).sum()

    def line(log_shift: float) -> tuple[float, float, float]:
        """Slope and intercept of the logarithm of the density, and the squared error."""
        x = np.log(ranks + np.expm1(log_shift))
        slope, intercept = np.polyfit(x, wanted, 1)
        return slope, intercept, np.square(wanted - intercept - slope * x).sum()

    def error_at(log_shift: float) -> float:
        return line(log_shift)[2]

    grid = np.linspace(0, np.log1p(len(densities)), GRID).tolist()
    best = int(np.argmin([error_at(log_shift) for log_shift in grid]))
    bounds = grid[max(0, best - 1)], grid[min(GRID - 1, best + 1)]
    refined: Any = minimize_scalar(error_at, bounds=bounds, options={"xatol": 1e-10})
    log_shift = min(grid[best], float(refined.x), key=error_at)
    slope, intercept, error = line(log_shift)
    r2 = 1 - error / total if total > 0 else 1.0
    return Law(max(0.0, -slope), float(np.expm1(log_shift)), float(np.exp(intercept)), float(r2))


class Densities(nn.Module):
    """Running firing densities of latents, their ranks of a while ago, and the law once it is fitted."""

    density: Tensor
    rank: Tensor
    steps: Tensor
    numbers: Tensor
    """The law's exponent, shift, amplitude and R²; zeros before the fit."""

    def __init__(self, config: Zipf, d_sae: int) -> None:
        super().__init__()
        self._config = config
        self.register_buffer("density", torch.zeros(d_sae))
        self.register_buffer("rank", torch.arange(d_sae))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("numbers", torch.zeros(4, dtype=torch.float64))

    @torch.no_grad()
    def record(self, fired: Int[Tensor, " n"], tokens: int) -> None:
        """Follow a batch of so many tokens, given the latent of every firing; refresh the ranks at a window's end."""
        counts = fired.bincount(minlength=len(self.rank)).float()
        now = distributed.all_mean(counts) / tokens  # counts are exact, so ties do not depend on the workers
        self.density.lerp_(now, 1 - self._config.decay if self.steps > 0 else 1.0)
        if self.steps % self._config.window == 0:
            self._refresh_ranks()
        self.steps += 1

    @torch.no_grad()
    def fit(self) -> None:
        """Fit the law to the present densities, if it is not fitted yet and there are enough of them."""
        if self.law is None and (law := fit(self.density.numpy(force=True), self._config.fitted_share)) is not None:
            self.set_law(law)
            self._refresh_ranks()

    def set_law(self, law: Law) -> None:
        """Use this law from now on."""
        self.numbers.copy_(self.numbers.new_tensor(law))

    @property
    def law(self) -> Law | None:
        """The law that latents are held to; None before the fit."""
        exponent, shift, amplitude, r2 = self.numbers.tolist()
        return None if amplitude == 0 else Law(exponent, shift, amplitude, r2)

    def underused(self) -> Bool[Tensor, " d_sae"]:
        """Latents that fire less than (1 - tau) times what the law says for their rank; none before the fit."""
        exponent, shift, amplitude, _ = self.numbers
        wanted = (amplitude * (self.rank + 1 + shift) ** -exponent).clamp_max(1.0)
        return self.density < (1 - self._config.tau) * wanted

    def _refresh_ranks(self) -> None:
        order = self.density.argsort(descending=True, stable=True)
        self.rank[order] = torch.arange(len(order), device=order.device)
