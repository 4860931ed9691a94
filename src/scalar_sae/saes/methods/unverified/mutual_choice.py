"""Mutual Choice and Feature Choice SAEs with aux_zipf_loss (Ayonrinde, arXiv 2411.02124).

Our reading: the paper's body was not available to us, only its abstract and its reviews (see also zipf.py). TopK is
"token choice": every token keeps k latents. *Mutual Choice* bounds only the number kept in a whole batch: BatchTopK's
selection and inference, with aux_zipf_loss (AuxK on underused latents, weight 1/32) in place of AuxK on dead ones.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from scalar_sae.saes.components.dead_latents import auxk_loss
from scalar_sae.saes.components.sparse import Ragged
from scalar_sae.saes.components.zipf import Densities, Zipf
from scalar_sae.saes.methods.base import Name, Progress, TrainableSAEs, Weights
from scalar_sae.saes.methods.batch_topk import BatchSelection, BatchTopKTrainee
from scalar_sae.saes.methods.dictionary import SitePair


class ZipfSelection(BatchSelection, frozen=True):
    """Selection over a batch with aux_zipf_loss; `dead_tokens` only says what is reported as dead."""

    zipf: Zipf = Zipf()
    """The law that says which latents are underused."""


class MutualChoiceConfig(ZipfSelection, frozen=True):
    """Independent Mutual Choice SAEs."""

    method: Literal["mutual_choice"] = "mutual_choice"
    name: Name = "mutual-choice"
    """Folder of these SAEs in a run."""

    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """A Mutual Choice SAE in training."""
        return MutualChoiceTrainee(self, place, seed)


class MutualChoiceTrainee(BatchTopKTrainee):
    """One Mutual Choice SAE in training."""

    def __init__(self, config: ZipfSelection, place: SitePair, seed: int) -> None:
        super().__init__(config, place, seed)
        self.densities = Densities(config.zipf, self.d_sae)

    def follow(self, code: Ragged, progress: Progress) -> None:
        """As BatchTopK, and the densities."""
        super().follow(code, progress)
        self.densities.record(code.latents, code.n_tokens)

    def revival(
        self, weights: Weights, x: Float[Tensor, "batch d_model"], residual: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, ""]:
        """aux_zipf_loss."""
        return auxk_loss(weights, x, residual, self.densities.dying(self.k), self.k_aux)
