"""TopK SAEs (Gao et al., arXiv 2406.04093).

The default is not Gao et al.'s recipe. It is SCALAR's form of TopK, which the SCALAR authors train and which is the
baseline of every comparison: squared error only, W_dec Kaiming-uniform, W_enc its transpose, biases zero, no decoder
normalisation and no auxiliary loss (SCALAR App. B and its code). Gao et al.'s recipe is the preset `topk-gao`:
`unit_norm: true, auxk: 0.03125, median_bias: true`, with their optimiser. Their Multi-TopK is `multi: 4`.
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


class TokenSelection(DictionaryMethod, frozen=True):
    """The fields shared by methods that select k latents for each token."""

    k: int = Field(default=10, gt=0)
    """Latents kept per token."""
    unit_norm: bool = False
    """Keep decoder rows at norm 1 and remove the gradient components along them."""
    median_bias: bool = False
    """Initialise b_dec to the geometric median of the first activations; zero otherwise."""
    auxk: float = Field(default=0.0, ge=0)
    """Weight of the auxiliary loss on dead latents; 1/32 in Gao et al."""
    k_aux: int = Field(default=512, gt=0)
    """Number of dead latents that the auxiliary loss uses per token."""
    dead_tokens: int | None = Field(default=None, gt=0)
    """A latent is dead after this many tokens without firing. None means 10 million, or a tenth of the run if that is
    less.
    """
    multi: int = Field(default=1, gt=0)
    """Multi-TopK: add an eighth of the squared error at `multi` times k latents (4 in Gao et al.). 1 adds nothing."""


class TopKConfig(TokenSelection, frozen=True):
    """Independent TopK SAEs, one per site."""

    method: Literal["topk"] = "topk"
    name: Name = "topk"
    """Folder of these SAEs in a run."""

    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """Create a TopK SAE for training."""
        return TopKTrainee(self, place, seed)


class TopKTrainee(Dictionary):
    """One TopK SAE in training."""

    def __init__(self, config: TokenSelection, place: SitePair, seed: int) -> None:
        super().__init__(config, place, seed, unit_norm=config.unit_norm, pre_bias=True)
        self._config = config
        check_k(config.k * config.multi, self.d_sae, place)

    def prepare(self, acts: Acts) -> None:
        """Freeze the scales and, with `median_bias`, initialise b_dec."""
        super().prepare(acts)
        if self._config.median_bias:
            with torch.no_grad():
                self.b_dec.copy_(geometric_median(acts[self._target] * self.scale[1]))

    def loss(
        self, x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_model"], acts: Acts, progress: Progress
    ) -> Float[Tensor, ""]:
        """The loss of TopK's code."""
        return self.objective(self.coded(x), x, y)

    def objective(
        self, wide: Coded, x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, ""]:
        """Squared error of a code plus the auxiliary terms that are switched on.

        `wide` is the code of the widest loss. The auxiliary loss is multiplied by the frozen variance of y. The total
        is Gao et al.'s loss times that variance.
        """
        config = self._config
        y_hat = wide.first(config.k).decoded()
        loss = squared_error(y, y_hat)
        if config.multi > 1:
            loss = loss + squared_error(y, wide.decoded()) / 8
        if config.auxk > 0:
            dead = self.dead_latents.mask()
            loss = loss + config.auxk * self.variance * auxk_loss(wide.weights, x, y - y_hat, dead, config.k_aux)
        return loss

    def coded(self, x: Float[Tensor, "batch d_model"]) -> Coded:
        """The code with `multi` times k latents; its first k are the SAE's. The latents that fired are counted."""
        k, multi = self._config.k, self._config.multi
        wide = top_k(self.weights(), x, k * multi, ordered=multi > 1)
        self.dead_latents.record(wide.first(k).fired(), len(x))
        return wide

    def activation(self) -> TopK:
        """The same rule as in training."""
        return TopK(self._config.k)


def check_k(k: int, d_sae: int, place: SitePair) -> None:
    """Raise a UserError if k exceeds the number of latents."""
    if k > d_sae:
        raise UserError(f"{place.site}: k = {k} is above d_sae = {d_sae}")


def geometric_median(x: Float[Tensor, "batch d_model"], rounds: int = 50) -> Float[Tensor, " d_model"]:
    """The point with the least total distance to the first 32,768 rows of `x`, by Weiszfeld's iteration."""
    x = x[:32_768]
    centre = x.mean(0)
    for _ in range(rounds):
        near = (x - centre).norm(dim=1).clamp_min(1e-8).reciprocal()
        centre = (near @ x) / near.sum()
    return centre
