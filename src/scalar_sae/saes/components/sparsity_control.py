"""The weight of a sparsity penalty: a linear warm-up, and, if an L0 is asked for, a steady correction towards it.

The papers fix the weight and sweep it to compare methods at equal L0. With `target_l0` the weight is multiplied at
every step by exp(gain * clip(log(L0 / target), -1, 1)), where L0 is what it would be `lag` steps later if it went on as
it does: it follows the weight slowly, and a correction by what it is now goes on long after it was enough. So one
run ends at the L0 asked for. That correction is ours; it counts from the first step, so a long warm-up is cut short.
"""

import math

import torch
from pydantic import BaseModel, Field, field_validator
from torch import Tensor, nn

from scalar_sae import distributed
from scalar_sae.saes.methods.base import Progress
from scalar_sae.saes.methods.dictionary import DictionaryMethod

MOST = math.log(1e4)
"""A correction stays within this, up and down."""


class Sparsity(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A sparsity penalty's weight."""

    weight: float = Field(gt=0)
    """Weight after the warm-up, in the trained scale."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of training over which the weight rises from 0."""
    target_l0: float | None = Field(default=None, gt=0)
    """Mean L0 to steer to by changing the weight; None leaves the weight alone."""
    gain: float = Field(default=0.03, gt=0, le=1)
    """Largest change of the logarithm of the weight in one step."""
    lag: float = Field(default=50.0, ge=1)
    """Steps that L0 takes to follow the weight."""


def filled(given: object, default: Sparsity) -> object:
    """A config's `sparsity`, where what it leaves out is as in `default`."""
    return default.model_dump() | given if isinstance(given, dict) else given


class PenaltyMethod(DictionaryMethod, frozen=True):
    """Independent dictionaries with a sparsity penalty."""

    sparsity: Sparsity
    """Weight of the penalty; what is left out is as in the method's default."""

    def wanted_l0(self, position: int) -> float | None:
        """The target of the penalty."""
        return self.sparsity.target_l0

    @field_validator("sparsity", mode="before")
    @classmethod
    def _filled(cls, given: object) -> object:
        return filled(given, cls.model_fields["sparsity"].default)


class SparsityWeight(nn.Module):
    """The present weight of a penalty."""

    log_correction: Tensor
    log_l0: Tensor
    """Mean of the logarithm of L0 over the last `lag` steps or so."""

    def __init__(self, config: Sparsity) -> None:
        super().__init__()
        self._config = config
        self.register_buffer("log_correction", torch.zeros(()))
        self.register_buffer("log_l0", torch.tensor(math.inf))

    @torch.no_grad()
    def at(self, progress: Progress, l0: Tensor) -> Tensor:
        """The weight for this step; `l0` is the batch's mean number of active latents."""
        config = self._config
        if config.target_l0 is not None and self.training:
            now = distributed.all_mean(l0).clamp_min(1e-3).log()
            before = torch.where(self.log_l0.isinf(), now, self.log_l0)
            self.log_l0.copy_(before.lerp(now, 1 / config.lag))
            error = (now + (now - self.log_l0) - math.log(config.target_l0)).clamp(-1, 1)
            self.log_correction.add_(config.gain * error).clamp_(-MOST, MOST)
        return config.weight * progress.ramp(config.warmup) * self.log_correction.exp()
