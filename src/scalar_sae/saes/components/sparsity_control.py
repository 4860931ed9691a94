"""The weight of a sparsity penalty: a linear warm-up, and optionally a controller that steers L0 to a target.

The papers fix the weight, and sweep it to compare methods at equal L0. With `target_l0`, a single run ends at the
requested L0: every step multiplies the weight by exp(gain * clip(log(L0 / target), -1, 1)). L0 in this formula is
extrapolated `lag` steps ahead. L0 follows the weight slowly, so a controller that used its current value would
overshoot. This controller is our own. It acts from the first step, so it cuts a long warm-up short.
"""

import math

import torch
from pydantic import BaseModel, Field, field_validator
from torch import Tensor, nn

from scalar_sae import distributed
from scalar_sae.saes.methods.base import Progress
from scalar_sae.saes.methods.dictionary import DictionaryMethod

MOST = math.log(1e4)
"""Bound on the absolute logarithm of the correction."""


class Sparsity(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The weight of a sparsity penalty."""

    weight: float = Field(gt=0)
    """Weight after the warm-up, in the trained scale."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of training over which the weight rises linearly from 0."""
    target_l0: float | None = Field(default=None, gt=0)
    """Mean L0 to steer to by changing the weight; None keeps the weight as configured."""
    gain: float = Field(default=0.03, gt=0, le=1)
    """Maximum change of the logarithm of the weight in one step."""
    lag: float = Field(default=50.0, ge=1)
    """Number of steps after which L0 follows a change of the weight."""


def filled(given: object, default: Sparsity) -> object:
    """A config's `sparsity`, with missing fields taken from `default`."""
    return default.model_dump() | given if isinstance(given, dict) else given


class PenaltyMethod(DictionaryMethod, frozen=True):
    """Independent dictionaries with a sparsity penalty."""

    sparsity: Sparsity
    """Weight of the penalty. Missing fields are taken from the method's default."""

    def wanted_l0(self, position: int) -> float | None:
        """The target L0 of the penalty."""
        return self.sparsity.target_l0

    @field_validator("sparsity", mode="before")
    @classmethod
    def _filled(cls, given: object) -> object:
        return filled(given, cls.model_fields["sparsity"].default)


class SparsityWeight(nn.Module):
    """The current weight of a penalty."""

    log_correction: Tensor
    log_l0: Tensor
    """Running mean of log L0 over about the last `lag` steps."""

    def __init__(self, config: Sparsity) -> None:
        super().__init__()
        self._config = config
        self.register_buffer("log_correction", torch.zeros(()))
        self.register_buffer("log_l0", torch.tensor(math.inf))

    @torch.no_grad()
    def at(self, progress: Progress, l0: Tensor) -> Tensor:
        """The weight at this step. `l0` is the batch's mean number of active latents."""
        config = self._config
        if config.target_l0 is not None and self.training:
            now = distributed.all_mean(l0).clamp_min(1e-3).log()
            before = torch.where(self.log_l0.isinf(), now, self.log_l0)
            self.log_l0.copy_(before.lerp(now, 1 / config.lag))
            error = (now + (now - self.log_l0) - math.log(config.target_l0)).clamp(-1, 1)
            self.log_correction.add_(config.gain * error).clamp_(-MOST, MOST)
        return config.weight * progress.ramp(config.warmup) * self.log_correction.exp()
