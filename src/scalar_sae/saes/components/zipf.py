"""The densities that a Zipf law asks of latents, and the latents that fall short of them (aux_zipf_loss).

Our reading of Ayonrinde (arXiv 2411.02124), whose body was not available to us: known are that the loss generalises
AuxK from dead to underused ("dying") latents, and that the budget of a feature follows a Zipf law in its rank. With L0
= k, the latent of rank r (0 for the most frequent) should fire on a share

    rho*_r = min(1, k p_r)        p_r proportional to 1 / (r + 1 + shift)^exponent      (Zipf-Mandelbrot)

of tokens. Its deficit is max(0, 1 - rho / rho*); it is dying where the deficit exceeds `tau`, and dead at 1. Ranks are
frozen for `window` steps, so that a target cannot run after its own latent.
"""

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, Field
from torch import Tensor, nn

from scalar_sae import distributed


class Zipf(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A Zipf-Mandelbrot law over ranks."""

    exponent: float = Field(default=1.0, gt=0)
    """Steepness."""
    shift: float = Field(default=2.7, ge=0)
    """Ranks by which the head is flattened."""
    tau: float = Field(default=0.5, gt=0, le=1)
    """Deficit above which a latent is dying."""
    decay: float = Field(default=0.99, ge=0, lt=1)
    """Decay, per step, of the running densities."""
    window: int = Field(default=100, gt=0)
    """Steps for which ranks stay frozen."""

    def shares(self, d_sae: int) -> Float[Tensor, " d_sae"]:
        """p_r for every rank; they add up to 1."""
        p = (torch.arange(1, d_sae + 1) + self.shift) ** -self.exponent
        return p / p.sum()


class Densities(nn.Module):
    """Running firing densities of latents, with their ranks of a while ago."""

    density: Tensor
    rank: Tensor
    steps: Tensor

    def __init__(self, config: Zipf, d_sae: int) -> None:
        super().__init__()
        self._config = config
        self.register_buffer("density", torch.zeros(d_sae))
        self.register_buffer("rank", torch.arange(d_sae))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("_shares", config.shares(d_sae), persistent=False)

    @torch.no_grad()
    def record(self, fired: Int[Tensor, " n"], tokens: int) -> None:
        """Follow a batch of so many tokens, given the latent of every firing; refresh the ranks at a window's end."""
        counts = fired.bincount(minlength=len(self.rank)).float()
        now = distributed.all_mean(counts) / tokens  # counts are exact: so ties are, for any workers
        self.density.lerp_(now, 1 - self._config.decay if self.steps > 0 else 1.0)
        if self.steps % self._config.window == 0:
            order = self.density.argsort(descending=True, stable=True)
            self.rank[order] = torch.arange(len(order), device=order.device)
        self.steps += 1

    def shares(self) -> Float[Tensor, " d_sae"]:
        """The share of each latent's rank."""
        shares = self.get_buffer("_shares")
        return shares[self.rank]

    def dying(self, k: int) -> Bool[Tensor, " d_sae"]:
        """Latents that fire far less than their rank's share of an L0 of k."""
        wanted = (k * self.shares()).clamp_max(1.0)
        return 1 - self.density / wanted > self._config.tau
