"""Gradient SAEs, g-SAE (Olmo et al., arXiv 2411.10397): TopK that prefers latents which matter to the model's loss.

Our reading: the paper's body was not available to us, only its abstract and a summary with formulas. Selected are the k
largest of z_i (1 + beta |g W_dec_i|), kept is z_i = ReLU(u_i); g is the gradient of the model's loss in the activation,
rescaled to mean norm 1 over the batch, and detached. Guesses are fields of the config: the sum (or the product alone),
beta, the rescaling. At inference plain TopK on z: a gradient needs labels, and no deployed SAE has them.
With beta = 0 this is TopK, bit for bit.
"""

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.activations.reading import Gradient
from scalar_sae.saes.activation import TopK
from scalar_sae.saes.components.sparse import Coded, chosen, largest, pre_acts
from scalar_sae.saes.methods.base import Acts, Name, Progress, TrainableSAEs, squared_error
from scalar_sae.saes.methods.dictionary import Dictionary, DictionaryMethod, SitePair
from scalar_sae.saes.methods.topk import check_k
from scalar_sae.sites import Site


class GSAEConfig(DictionaryMethod, frozen=True):
    """Independent g-SAEs."""

    method: Literal["g_sae"] = "g_sae"
    name: Name = "g_sae"
    """Folder of these SAEs in a run."""
    k: int = Field(default=10, gt=0)
    """Latents kept per token."""
    beta: float = Field(default=1.0, ge=0)
    """Weight of the gradient in the selection."""
    combine: Literal["sum", "product"] = "sum"
    """Select by z (1 + beta |g W_dec|), or by z |g W_dec| alone."""
    rescale: bool = True
    """Rescale gradients to mean norm 1 over a batch; their own size depends on how the loss is averaged."""

    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """A g-SAE in training."""
        return GSAETrainee(self, place, seed)


class GSAETrainee(Dictionary):
    """One g-SAE in training."""

    def __init__(self, config: GSAEConfig, place: SitePair, seed: int) -> None:
        super().__init__(config, place, seed, pre_bias=True)
        self._config = config
        check_k(config.k, self.d_sae, place)

    @property
    def reads(self) -> tuple[Site | Gradient, ...]:
        """The gradient at what is reconstructed, too."""
        return (*super().reads, Gradient(self.target(self.sites[0])))

    def loss(
        self, x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_model"], acts: Acts, progress: Progress
    ) -> Float[Tensor, ""]:
        """Squared error of the selected latents."""
        coded = self.coded(x, acts[Gradient(self.target(self.sites[0]))])
        self.firing.record(coded.fired(), len(x))
        return squared_error(y, coded.decoded())

    def coded(self, x: Float[Tensor, "batch d_model"], g: Float[Tensor, "batch d_model"]) -> Coded:
        """The selected latents; gradients flow through their values alone."""
        config, weights = self._config, self.weights()
        if config.rescale:
            g = g / distributed.all_mean(g.norm(dim=1).mean()).clamp_min(1e-12)
        u = pre_acts(weights, x)
        pull = (g @ weights.W_dec.detach().T).abs()
        latents = largest(u * (1 + config.beta * pull if config.combine == "sum" else pull), config.k)
        return Coded(weights, chosen(weights, x, u, latents).relu(), latents)

    def activation(self) -> TopK:
        """Plain TopK."""
        return TopK(self._config.k)
