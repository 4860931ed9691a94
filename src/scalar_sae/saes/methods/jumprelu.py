"""JumpReLU SAEs (Rajamanoharan et al., arXiv 2407.14435) with three sparsity losses.

    f = u 1[u > theta]        u = x W_enc + b_enc        theta = exp(t), one per latent

| loss        | added to ‖y - y_hat‖²                                                                         |
|-------------|-----------------------------------------------------------------------------------------------|
| `step`      | lambda sum_i 1[u_i > theta_i]: the paper's L0 penalty                                         |
| `target_l0` | lambda (L0 / target - 1)², L0 the batch's mean: the paper's §C variant                        |
| `tanh`      | lambda sum_i tanh(c f_i ‖d_i‖) + lambda_P sum_i ReLU(theta_i - u_i) ‖d_i‖ (Anthropic, 2025)   |

Thresholds learn through straight-through gradients of the two jumps, with a rectangle kernel K(z) = 1[|z| < 1/2]:

    d JumpReLU / d theta = -(theta / eps) K((u - theta) / eps)
    d 1[u > theta] / d theta = -(1 / eps) K((u - theta) / eps)

The jumps pass no gradient to u. The `tanh` loss leaves decoder norms free; the other two hold them at 1. The bandwidth
eps depends on the scale: 0.001 for E‖x‖² = 1, and 2 for E‖x‖ = √d_model. A config that mixes them is refused. The
defaults are the paper's. Anthropic's recipe is

    {method: jumprelu, loss: tanh, scale: sqrt_d, bandwidth: 2, threshold: 0.1, sparsity: {weight: 10, warmup: 1}}

with c = 4, lambda_P = 3e-6 and lambda from 10 to 20. Other implementations start from a threshold of e^0.1. Anthropic
sets the encoder biases from data so that 10,000 latents fire (`first_l0`), which presumes a large dictionary.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from scalar_sae import distributed
from scalar_sae.errors import UserError
from scalar_sae.saes.activation import JumpReLU
from scalar_sae.saes.components.sparsity_control import PenaltyMethod, Sparsity, SparsityWeight, filled
from scalar_sae.saes.methods.base import CALIBRATION_TOKENS, Acts, Name, Progress, Scale, TrainableSAEs, squared_error
from scalar_sae.saes.methods.dictionary import Dictionary, SitePair

SPARSITY = {
    "step": Sparsity(weight=1e-3, warmup=0.1),
    "target_l0": Sparsity(weight=1.0, warmup=0.1),
    "tanh": Sparsity(weight=10.0, warmup=1.0),
}
"""Default weight of each loss."""


class JumpReluConfig(PenaltyMethod, frozen=True):
    """Independent JumpReLU SAEs."""

    method: Literal["jumprelu"] = "jumprelu"
    name: Name = "jumprelu"
    """Folder of these SAEs in a run."""
    scale: Scale = "unit"
    """Scale of the activations in which bandwidth, thresholds and weights apply."""
    beta1: float = Field(default=0.0, ge=0, lt=1)
    """Adam's first-moment decay, 0 as in the paper."""
    loss: Literal["step", "target_l0", "tanh"] = "step"
    """The sparsity loss; see the table at the top of this file."""
    sparsity: Sparsity = SPARSITY["step"]
    """Weight of the sparsity loss. With loss `target_l0`, the field `target_l0` enters the loss and the weight is not
    steered.
    """
    bandwidth: float = Field(default=0.001, gt=0)
    """eps: the width of the kernel."""
    threshold: float = Field(default=0.001, gt=0)
    """Initial threshold of every latent."""
    first_l0: float | None = Field(default=None, gt=0)
    """Initial L0. Each latent's b_enc is set on the first activations so that the latent fires on a share first_l0 /
    d_sae of the tokens. None leaves b_enc at 0."""
    pre_bias: bool = False
    """The encoder reads x - b_dec. The paper reports little difference."""
    tanh_scale: float = Field(default=4.0, gt=0)
    """c of the tanh loss."""
    pre_act_weight: float = Field(default=3e-6, ge=0)
    """lambda_P of the tanh loss."""

    @model_validator(mode="before")
    @classmethod
    def _weight_of_the_loss(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        default = SPARSITY.get(str(given.get("loss")), SPARSITY["step"])
        return given | {"sparsity": filled(given.get("sparsity", {}), default)}

    @model_validator(mode="after")
    def _consistent(self) -> "JumpReluConfig":
        if self.loss == "target_l0" and self.sparsity.target_l0 is None:
            raise ValueError("loss target_l0 needs sparsity.target_l0")
        if self.loss == "tanh" and self.scale == "unit":
            raise ValueError("loss tanh belongs to scale sqrt_d, with a bandwidth of 2 and a threshold of 0.1")
        if self.scale == "sqrt_d" and self.bandwidth < 0.01:
            raise ValueError(f"bandwidth = {self.bandwidth} is too narrow for scale sqrt_d; use unit, or a wider one")
        if self.scale == "unit" and self.bandwidth >= 1:
            raise ValueError(f"bandwidth = {self.bandwidth} is too wide for scale unit; use sqrt_d, or a narrower one")
        return self

    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """Create a JumpReLU SAE for training."""
        return JumpReluTrainee(self, place, seed)


class JumpReluTrainee(Dictionary):
    """One JumpReLU SAE in training."""

    def __init__(self, config: JumpReluConfig, place: SitePair, seed: int) -> None:
        free = config.loss == "tanh"
        super().__init__(
            config, place, seed, unit_norm=not free, norm=3**-0.5 if free else None, pre_bias=config.pre_bias
        )
        self._config = config
        if free:  # Anthropic: W_dec ~ U(±1/√d), whose rows have norm 1/√3, and W_enc = (d_model / d_sae) W_decᵀ
            self.W_enc.data /= config.expansion
        if config.first_l0 is not None and config.first_l0 >= self.d_sae:
            raise UserError(f"{config.name}: first_l0 = {config.first_l0} is not below d_sae = {self.d_sae}")
        self.log_threshold = nn.Parameter(torch.full((self.d_sae,), config.threshold).log())
        fixed = (
            config.sparsity.model_copy(update={"target_l0": None}) if config.loss == "target_l0" else config.sparsity
        )
        self.sparsity = SparsityWeight(fixed)

    @torch.no_grad()
    def prepare(self, acts: Acts) -> None:
        """Freeze the scales and, if `first_l0` is set, initialise the encoder biases."""
        super().prepare(acts)
        if self._config.first_l0 is not None:
            u = self.weights().pre_acts(acts[self.sites[0]][:CALIBRATION_TOKENS] * self.scale[0])
            silent = math.ceil(len(u) * (1 - self._config.first_l0 / self.d_sae))
            self.b_enc.copy_(self.log_threshold.exp() - u.kthvalue(silent, dim=0).values)

    def loss(
        self, x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_model"], acts: Acts, progress: Progress
    ) -> Float[Tensor, ""]:
        """Squared error plus the sparsity loss."""
        config, weights = self._config, self.weights()
        u, threshold = weights.pre_acts(x), self.log_threshold.exp()
        f = jump_relu(u, threshold, config.bandwidth)
        self.dead_latents.record((f > 0).any(0), len(f))
        l0 = (f > 0).float().sum(1).mean()
        weight = self.sparsity.at(progress, l0)
        if config.loss == "tanh":
            norms = weights.norms()
            penalty = torch.tanh(config.tanh_scale * f * norms).sum(1).mean()
            silent = config.pre_act_weight * ((threshold - u).relu() @ norms).mean()
            return squared_error(y, weights.decode(f)) + weight * penalty + silent
        soft_l0 = step(u, threshold, config.bandwidth).sum(1).mean()
        if config.loss == "target_l0":
            assert config.sparsity.target_l0 is not None
            soft_l0 = (distributed.all_mean(soft_l0) / config.sparsity.target_l0 - 1).square()
        return squared_error(y, weights.decode(f)) + weight * soft_l0

    def activation(self) -> JumpReLU:
        """The same rule as in training."""
        return JumpReLU(self.log_threshold.detach().exp())


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(u, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(u > threshold, u, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        u, threshold = ctx.saved_tensors
        at_jump = ((u - threshold).abs() < ctx.bandwidth / 2) * grads[0]
        return grads[0] * (u > threshold), -(threshold / ctx.bandwidth) * at_jump.sum(0), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(u, threshold)
        ctx.bandwidth = bandwidth
        return (u > threshold).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        u, threshold = ctx.saved_tensors
        at_jump = ((u - threshold).abs() < ctx.bandwidth / 2) * grads[0]
        return None, -at_jump.sum(0) / ctx.bandwidth, None


def jump_relu(
    u: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float
) -> Float[Tensor, "batch d_sae"]:
    """Keep u where it exceeds the threshold. The gradient with respect to the threshold is straight-through."""
    result: Any = _JumpReLU.apply(u, threshold, bandwidth)
    return result


def step(
    u: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float
) -> Float[Tensor, "batch d_sae"]:
    """1 where u exceeds the threshold, else 0. The gradient with respect to the threshold is straight-through."""
    result: Any = _Step.apply(u, threshold, bandwidth)
    return result
