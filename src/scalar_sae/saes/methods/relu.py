"""ReLU SAEs with an L1 penalty, in the form of Anthropic's April 2024 update ("Circuits Updates").

    f = ReLU(x W_enc + b_enc)        x_hat = f W_dec + b_dec        L = ‖x - x_hat‖² + lambda sum_i f_i ‖W_dec_i‖

Decoder norms are free. Rows of W_dec start at norm 0.1, W_enc is its transpose, and biases start at zero. Activations
are scaled to E‖x‖ = √d_model, for which the update chooses lambda = 5. There is no pre-encoder bias and no resampling.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from scalar_sae.bounds import Rate
from scalar_sae.saes.activation import ReLU
from scalar_sae.saes.components.sparsity_control import PenaltyMethod, Sparsity, SparsityWeight
from scalar_sae.saes.methods.base import Acts, Name, Progress, Scale, TrainableSAEs, squared_error
from scalar_sae.saes.methods.dictionary import Dictionary, SitePair


class ReluConfig(PenaltyMethod, frozen=True):
    """Independent ReLU SAEs with an L1 penalty."""

    method: Literal["relu"] = "relu"
    name: Name = "relu"
    """Folder of these SAEs in a run."""
    scale: Scale = "sqrt_d"
    """Scale of the activations in which the penalty's weight applies."""
    lr_scale: Rate = 3.0
    """Factor on the run's learning rate. An L1 penalty needs about three times TopK's rate (docs/training.md)."""
    sparsity: Sparsity = Sparsity(weight=5.0)
    """Weight of the L1 penalty."""

    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """Create a ReLU SAE for training."""
        return ReluTrainee(self, place, seed)


class ReluTrainee(Dictionary):
    """One ReLU SAE in training."""

    def __init__(self, config: ReluConfig, place: SitePair, seed: int) -> None:
        super().__init__(config, place, seed, norm=0.1)
        self.sparsity = SparsityWeight(config.sparsity)

    def loss(
        self, x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_model"], acts: Acts, progress: Progress
    ) -> Float[Tensor, ""]:
        """Squared error plus the L1 norm weighted by decoder norms."""
        weights = self.weights()
        f = weights.pre_acts(x).relu()
        self.dead_latents.record((f > 0).any(0), len(f))
        weight = self.sparsity.at(progress, (f > 0).float().sum(1).mean())
        return squared_error(y, weights.decode(f)) + weight * (f @ weights.norms()).mean()

    def activation(self) -> ReLU:
        """The same rule as in training."""
        return ReLU()
