"""The weight of a sparsity penalty: a linear warm-up, and, if an L0 is asked for, a steady correction towards it.

The papers fix the weight and sweep it to compare methods at equal L0. With `target_l0` the weight is multiplied at
every step by exp(gain * clip(log(L0 / target), -1, 1)): one run ends at the L0 asked for. That correction is ours.
"""

import math

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from scalar_sae import workers
from scalar_sae.saes.trainee import Progress


class Sparsity(BaseModel, frozen=True, extra="forbid"):
    """A sparsity penalty's weight."""

    weight: float = Field(gt=0)
    """Weight after the warm-up, in the trained scale."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of training over which the weight rises from 0."""
    target_l0: float | None = Field(default=None, gt=0)
    """Mean L0 to steer to by changing the weight; None leaves the weight alone."""
    gain: float = Field(default=0.01, gt=0, le=1)
    """Largest change of the logarithm of the weight in one step."""


class SparsityWeight(nn.Module):
    """The present weight of a penalty."""

    log_correction: Tensor

    def __init__(self, config: Sparsity) -> None:
        super().__init__()
        self._config = config
        self.register_buffer("log_correction", torch.zeros(()))

    @torch.no_grad()
    def at(self, progress: Progress, l0: Tensor) -> Tensor:
        """The weight for this step; `l0` is the batch's mean number of active latents."""
        config = self._config
        if config.target_l0 is not None and self.training:
            error = (workers.mean(l0).clamp_min(1e-3) / config.target_l0).log().clamp(-1, 1)
            self.log_correction.add_(config.gain * error).clamp_(-math.log(1e4), math.log(1e4))
        return config.weight * progress.ramp(config.warmup) * self.log_correction.exp()
