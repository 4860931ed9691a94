"""Adaptive Temporal Masking, ATM (Li & Ren, arXiv 2510.08855): latents of low importance are masked at random.

Our reading: the paper's body was not available to us, only its abstract and two summaries with formulas. The paper
makes one claim: less feature absorption than TopK and JumpReLU SAEs at matched reconstruction quality. The claim did
not show on the first letters of a small language model (docs/methods.md). Known are three running means per latent
(size of the activation, how often it fires, contribution to the reconstruction), an importance made of them, theta =
mean + c std over latents, and the probability of a mask, 1 - exp(-r (theta - importance) / theta) below theta. Our
choices:

* the code is ReLU, the penalty the L1 norm weighted by decoder norms (relu.py), so with r = 0 this is a ReLU SAE;
* contribution: how much the batch's squared error would grow without the latent, f²‖d‖² + 2 f ⟨e, d⟩, or with
  `contribution: energy` the first of the two alone;
* each mean is divided by its own mean over latents before they are averaged, equally or by the weights `importance`;
  so running means that start at 0 need no correction for their start: it is the same factor for all latents;
* theta is at least `theta_floor` times the mean importance; with c < 0 a few very important latents would otherwise
  push it below 0, where nothing is ever masked and the method would be a ReLU SAE under another name;
* a mask holds for a latent and a step, for every token of the batch; means follow the code and the error e without
  masks, so that a masked latent can return; with `rescale` those that are kept are divided by the probability of that;
* a `target_l0` is that of inference, not of the masked code;
* at inference there is no mask, or with `inference: pruned` one for all latents below theta at the end of training.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, NonNegativeFloat, field_validator
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.bounds import Rate
from scalar_sae.saes.activation import JumpReLU, ReLU
from scalar_sae.saes.components.sparsity_control import PenaltyMethod, Sparsity, SparsityWeight
from scalar_sae.saes.methods.base import Acts, Name, Progress, Scale, TrainableSAEs, Weights, squared_error
from scalar_sae.saes.methods.dictionary import Dictionary, SitePair

NEVER = 1e30
"""A threshold that no pre-activation exceeds, in any scale."""


class ATMConfig(PenaltyMethod, frozen=True):
    """Independent SAEs with Adaptive Temporal Masking."""

    method: Literal["atm"] = "atm"
    name: Name = "atm"
    """Folder of these SAEs in a run."""
    scale: Scale = "sqrt_d"
    """Scale in which the penalty's weight counts."""
    lr_scale: Rate = 3.0
    """Factor on the run's learning rate. An L1 penalty needs about three times TopK's rate (docs/training.md)."""
    sparsity: Sparsity = Sparsity(weight=5.0)
    """Weight of the L1 penalty."""
    decay: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the running means, per step."""
    threshold_stds: float = -0.5
    """c: theta lies this many standard deviations above the mean importance."""
    theta_floor: float = Field(default=0.1, gt=0, le=1)
    """Theta is at least this many times the mean importance."""
    importance: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (1.0, 1.0, 1.0)
    """Relative weights of size, how often it fires and contribution in a latent's importance."""
    rate: float = Field(default=1.0, ge=0)
    """r: how steeply the probability of a mask rises below theta."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of training without masks, while the means settle."""
    rescale: bool = False
    """Multiply the latents that are kept by 1 / (1 - probability of a mask), so that the code's mean stays."""
    contribution: Literal["leave_one_out", "energy"] = "leave_one_out"
    """What counts as a latent's contribution to the reconstruction."""
    inference: Literal["all", "pruned"] = "all"
    """Which latents are left when training is done: all, or those whose importance reaches theta."""

    @field_validator("importance")
    @classmethod
    def _some_weight(cls, importance: tuple[float, float, float]) -> tuple[float, float, float]:
        if sum(importance) == 0:
            raise ValueError("all three weights are 0; give one that is not")
        return importance

    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """An ATM SAE in training."""
        return ATMTrainee(self, place, seed)


class ATMTrainee(Dictionary):
    """One ATM SAE in training."""

    means: Tensor

    def __init__(self, config: ATMConfig, place: SitePair, seed: int) -> None:
        super().__init__(config, place, seed, norm=0.1)
        self._config, self._seed = config, seed * 1_000_003 + place.site.depth
        self.sparsity = SparsityWeight(config.sparsity)
        self.register_buffer("means", torch.zeros(3, self.d_sae))

    def loss(
        self, x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_model"], acts: Acts, progress: Progress
    ) -> Float[Tensor, ""]:
        """Squared error and L1 norm of the masked code."""
        weights = self.weights()
        raw = weights.pre_acts(x).relu()
        f = raw * self.kept(progress)
        self.dead_latents.record((raw > 0).any(0), len(raw))
        self._follow(weights, raw, y)
        left_after = (raw * self.left() > 0).float().sum(1).mean()
        weight = self.sparsity.at(progress, left_after)
        return squared_error(y, weights.decode(f)) + weight * (f @ weights.norms()).mean()

    def kept(self, progress: Progress) -> Float[Tensor, " d_sae"]:
        """What latents are multiplied by at this step, 0 where masked; depends on seed, site and step."""
        if not self.training:
            return self.left().float()
        if progress.fraction < self._config.warmup or self._config.rate == 0:
            return torch.ones_like(self.means[0])
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + progress.step) % 2**63)
        chance = torch.rand(self.d_sae, generator=generator, device="cpu").to(self.means.device)
        masked = self.mask_probability()
        factor = (1 - masked).reciprocal() if self._config.rescale else torch.ones_like(masked)
        return factor.where(chance >= masked, 0)

    def mask_probability(self) -> Float[Tensor, " d_sae"]:
        """Of each latent, at this step."""
        importance, theta = self._importance()
        return 1 - torch.exp(-self._config.rate * ((theta - importance) / theta.clamp_min(1e-12)).clamp_min(0))

    def left(self) -> Bool[Tensor, " d_sae"]:
        """The latents of inference."""
        importance, theta = self._importance()
        return (importance >= theta) | (self._config.inference == "all")

    def _importance(self) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, ""]]:
        """Of each latent, and theta."""
        normalised = self.means / self.means.mean(1, keepdim=True).clamp_min(1e-12)
        weights = self.means.new_tensor(self._config.importance).unsqueeze(1)
        importance = (weights * normalised).sum(0) / weights.sum()
        mean = importance.mean()
        theta = mean + self._config.threshold_stds * importance.std()
        return importance, theta.maximum(self._config.theta_floor * mean)

    @torch.no_grad()
    def _follow(self, weights: Weights, f: Float[Tensor, "batch d_sae"], y: Float[Tensor, "batch d_model"]) -> None:
        residual = y - weights.decode(f)
        size, often = f.mean(0), (f > 0).float().mean(0)
        alone = f.square().mean(0) * weights.W_dec.square().sum(1)
        together = ((f.T @ residual) * weights.W_dec).sum(1) / f.shape[0]
        contribution = alone if self._config.contribution == "energy" else alone + 2 * together
        now = distributed.all_mean(torch.stack([size, often, contribution]))
        now[2].clamp_min_(0)
        self.means.lerp_(now, 1 - self._config.decay)

    def activation(self) -> ReLU | JumpReLU:
        """No mask; a pruned latent has a threshold that nothing exceeds."""
        if self._config.inference == "all":
            return ReLU()
        return JumpReLU(torch.where(self.left(), 0.0, NEVER))
