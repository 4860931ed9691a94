"""TopK SAEs (Gao et al., arXiv 2406.04093).

By default in the form the SCALAR authors train, the baseline of every comparison: squared error only, W_dec
Kaiming-uniform, W_enc its transpose, biases zero, no decoder normalisation and no auxiliary loss (SCALAR App. B and its
code). Gao et al.'s own recipe is `unit_norm: true, auxk: 0.03125, median_bias: true`; their Multi-TopK is `multi: 4`.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import TopK
from scalar_sae.saes.components.dead_latents import auxk_loss
from scalar_sae.saes.components.sparse import Coded, top_k
from scalar_sae.saes.methods.base import Acts, Name, Progress, TrainableSAEs, squared_error
from scalar_sae.saes.methods.dictionary import Dictionary, DictionaryMethod, SitePair


class TopKConfig(DictionaryMethod, frozen=True):
    """Independent TopK SAEs, one a site."""

    method: Literal["topk"] = "topk"
    name: Name = "topk"
    """Folder of these SAEs in a run."""
    k: int = Field(default=10, gt=0)
    """Latents kept per token."""
    unit_norm: bool = False
    """Hold decoder rows at norm 1, without following gradients along them."""
    median_bias: bool = False
    """b_dec starts at the geometric median of the first activations (zero otherwise)."""
    auxk: float = Field(default=0.0, ge=0)
    """Weight of the auxiliary loss on dead latents; 1/32 in Gao et al."""
    k_aux: int = Field(default=512, gt=0)
    """Dead latents that the auxiliary loss uses per token."""
    dead_tokens: int | None = Field(default=None, gt=0)
    """Tokens without firing after which a latent is dead; None for 10 million, or a tenth of a shorter run."""
    multi: int = Field(default=1, gt=0)
    """Multi-TopK: an eighth of the loss at `multi` times k is added (4 in Gao et al.; 1 for none)."""

    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """A TopK SAE in training."""
        return TopKTrainee(self, place, seed)


class TopKTrainee(Dictionary):
    """One TopK SAE in training."""

    def __init__(self, config: TopKConfig, place: SitePair, seed: int) -> None:
        super().__init__(config, place, seed, unit_norm=config.unit_norm, pre_bias=True)
        self._config = config
        check_k(config.k * config.multi, self.d_sae, place)

    def prepare(self, acts: Acts) -> None:
        """Scales, and the geometric median if asked for."""
        super().prepare(acts)
        if self._config.median_bias:
            with torch.no_grad():
                self.b_dec.copy_(geometric_median(acts[self._target] * self.scale[1]))

    def loss(
        self, x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_model"], acts: Acts, progress: Progress
    ) -> Float[Tensor, ""]:
        """Squared error, with the auxiliary terms that are switched on.

        The auxiliary loss counts in units of the frozen variance of y: the sum is Gao et al.'s times that variance.
        """
        config = self._config
        wide = self.coded(x)
        y_hat = wide.first(config.k).decoded()
        loss = squared_error(y, y_hat)
        if config.multi > 1:
            loss = loss + squared_error(y, wide.decoded()) / 8
        if config.auxk > 0:
            dead = self.firing.dead()
            loss = loss + config.auxk * self.variance * auxk_loss(wide.weights, x, y - y_hat, dead, config.k_aux)
        return loss

    def coded(self, x: Float[Tensor, "batch d_model"]) -> Coded:
        """The code of the widest loss, whose first k are the SAE's; what fired is counted."""
        k, multi = self._config.k, self._config.multi
        wide = top_k(self.weights(), x, k * multi, ordered=multi > 1)
        self.firing.record(wide.first(k).fired(), len(x))
        return wide

    def activation(self) -> TopK:
        """The same rule as in training."""
        return TopK(self._config.k)


def check_k(k: int, d_sae: int, place: SitePair) -> None:
    """Raise a UserError if more latents are asked for than there are."""
    if k > d_sae:
        raise UserError(f"{place.site}: k = {k} is above d_sae = {d_sae}")


def geometric_median(x: Float[Tensor, "batch d_model"], rounds: int = 50) -> Float[Tensor, " d_model"]:
    """The point with the least sum of distances to at most 32,768 of the rows of `x` (Weiszfeld's iteration)."""
    x = x[:32_768]
    centre = x.mean(0)
    for _ in range(rounds):
        near = (x - centre).norm(dim=1).clamp_min(1e-8).reciprocal()
        centre = (near @ x) / near.sum()
    return centre
