"""Gated SAEs (Rajamanoharan et al., arXiv 2404.16014): one projection sets both which latents fire and how strongly.

    gate = (x - b_dec) W_enc + b_gate       mag = e^r ⊙ (x - b_dec) W_enc + b_mag       f = 1[gate > 0] ReLU(mag)
    L = ‖x - x_hat(f)‖² + lambda ‖ReLU(gate)‖₁ + ‖x - x_hat_frozen(ReLU(gate))‖²

The last term decodes with W_dec and b_dec detached. Decoder rows have norm 1; r and the biases start at 0.
At inference this is exactly a JumpReLU SAE, since gate > 0 if and only if mag > b_mag - e^r b_gate.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from scalar_sae.kernels import linear
from scalar_sae.saes.activation import JumpReLU
from scalar_sae.saes.components.sparsity_control import PenaltyMethod, Sparsity, SparsityWeight
from scalar_sae.saes.methods.base import Acts, Name, Progress, Scale, TrainableSAEs, Weights, squared_error
from scalar_sae.saes.methods.dictionary import Dictionary, SitePair


class GatedConfig(PenaltyMethod, frozen=True):
    """Independent Gated SAEs."""

    method: Literal["gated"] = "gated"
    name: Name = "gated"
    """Folder of these SAEs in a run."""
    scale: Scale = "sqrt_d"
    """Scale of the activations in which the penalty's weight applies."""
    beta1: float = Field(default=0.0, ge=0, lt=1)
    """Adam's first-moment decay, 0 as in the paper."""
    sparsity: Sparsity = Sparsity(weight=1.0)
    """Weight of the L1 penalty on the gates."""

    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """Create a Gated SAE for training."""
        return GatedTrainee(self, place, seed)


class GatedTrainee(Dictionary):
    """One Gated SAE in training. Its `b_enc` is b_mag."""

    def __init__(self, config: GatedConfig, place: SitePair, seed: int) -> None:
        super().__init__(config, place, seed, unit_norm=True, pre_bias=True)
        self.b_gate = nn.Parameter(torch.zeros(self.d_sae))
        self.r_mag = nn.Parameter(torch.zeros(self.d_sae))
        self.sparsity = SparsityWeight(config.sparsity)

    def loss(
        self, x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_model"], acts: Acts, progress: Progress
    ) -> Float[Tensor, ""]:
        """The sum of the three terms: reconstruction, penalty and auxiliary reconstruction."""
        projected = linear(x, self.W_enc, self._shift())
        gate = projected + self.b_gate
        f = torch.where(gate > 0, projected * self.r_mag.exp() + self.b_enc, 0.0).relu()
        self.dead_latents.record((f > 0).any(0), len(f))
        opened = gate.relu()
        weight = self.sparsity.at(progress, (f > 0).float().sum(1).mean())
        frozen = linear(opened, self.W_dec.detach(), self.b_dec.detach())
        y_hat = linear(f, self.W_dec, self.b_dec)
        return squared_error(y, y_hat) + weight * opened.sum(1).mean() + squared_error(y, frozen)

    def weights(self) -> Weights:
        """Encoder and decoder of the magnitude path, which are the weights that inference uses."""
        grown = self.r_mag.exp()
        return Weights(self.W_enc * grown, self._shift() * grown + self.b_enc, self.W_dec, self.b_dec)

    def activation(self) -> JumpReLU:
        """The gate, written as a threshold on the magnitude's pre-activation."""
        return JumpReLU((self.b_enc - self.r_mag.exp() * self.b_gate).detach())

    def _shift(self) -> Float[Tensor, " d_sae"]:
        """What the pre-encoder bias adds to the projection: -b_dec W_enc."""
        return -self.b_dec @ self.W_enc if self._pre_bias else torch.zeros_like(self.b_enc)
