"""Mutual Choice and Feature Choice SAEs with aux_zipf_loss (Ayonrinde, arXiv 2411.02124).

Our reading: the paper's body was not available to us, only its abstract and its reviews (see also zipf.py). TopK is
"token choice": every token keeps k latents. *Mutual Choice* bounds only the number kept in a whole batch. It selects
and infers as BatchTopK does, and has aux_zipf_loss (weight 1/32) in place of AuxK. aux_zipf_loss is AuxK on the dying
latents: those that are dead, and those that fire less than a fitted Zipf law says. The law is fitted at the end of a
first phase, which is our guess. Before that, and throughout with `tau = 1`, aux_zipf_loss is AuxK, bit for bit.
"""

from typing import Any, Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from scalar_sae.saes.components.dead_latents import auxk_loss
from scalar_sae.saes.components.sparse import Ragged
from scalar_sae.saes.components.zipf import Densities, Zipf
from scalar_sae.saes.methods.base import Acts, Name, Progress, TrainableSAEs, Weights
from scalar_sae.saes.methods.batch_topk import BatchSelection, BatchTopKTrainee
from scalar_sae.saes.methods.dictionary import SitePair


class ZipfSelection(BatchSelection, frozen=True):
    """Selection over a batch with aux_zipf_loss."""

    zipf: Zipf = Zipf()
    """The law that says which latents are underused."""
    first_phase: float = Field(default=0.2, gt=0, lt=1)
    """Share of training, at its start, that selects as Mutual Choice and has AuxK; the law is fitted at its end."""


class MutualChoiceConfig(ZipfSelection, frozen=True):
    """Independent Mutual Choice SAEs."""

    method: Literal["mutual_choice"] = "mutual_choice"
    name: Name = "mutual_choice"
    """Folder of these SAEs in a run."""

    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """A Mutual Choice SAE in training."""
        return MutualChoiceTrainee(self, place, seed)


class MutualChoiceTrainee(BatchTopKTrainee):
    """One Mutual Choice SAE in training."""

    def __init__(self, config: ZipfSelection, place: SitePair, seed: int) -> None:
        super().__init__(config, place, seed)
        self._first_phase = config.first_phase
        self.densities = Densities(config.zipf, self.d_sae)

    def loss(
        self, x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_model"], acts: Acts, progress: Progress
    ) -> Float[Tensor, ""]:
        """Squared error and aux_zipf_loss, in units of the frozen variance of y."""
        if progress.fraction >= self._first_phase:
            self.settle()
        return super().loss(x, y, acts, progress)

    def settle(self) -> None:
        """End the first phase, if it has not ended yet: the law is fitted."""
        self.densities.fit()

    def follow(self, code: Ragged, progress: Progress) -> None:
        """Follow the threshold as BatchTopK does, and the densities."""
        super().follow(code, progress)
        self.densities.record(code.latents, code.n_tokens)

    def dying(self) -> Bool[Tensor, " d_sae"]:
        """Latents that are dead or underused."""
        return self.dead_latents.mask() | self.densities.underused()

    def revival(
        self, weights: Weights, x: Float[Tensor, "batch d_model"], residual: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, ""]:
        """The loss aux_zipf_loss."""
        return auxk_loss(weights, x, residual, self.dying(), self.k_aux)

    def found(self) -> dict[str, Any]:
        """The law that was fitted."""
        law = self.densities.law
        return {} if law is None else {"zipf": law._asdict()}
