"""Matryoshka SAEs (Bussmann et al., arXiv 2503.17547): nested dictionaries, each of which must reconstruct on its own.

One BatchTopK code over the whole dictionary is truncated at F_1 < ... < F_M = d_sae. The loss is

    L = sum over m of w_m ‖y - f[:F_m] W_dec[:F_m] - b_dec‖² + AuxK on the full residual

Everything else is as in batch_topk.py. The published code applies the factor 1/M to the levels twice or not at all.
Here the level weights w_m are explicit and default to 1/M.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.saes.components.sparse import Ragged
from scalar_sae.saes.methods.base import Name, TrainableSAEs
from scalar_sae.saes.methods.batch_topk import BatchSelection, BatchTopKTrainee
from scalar_sae.saes.methods.dictionary import SitePair


class MatryoshkaConfig(BatchSelection, frozen=True):
    """Independent Matryoshka SAEs."""

    method: Literal["matryoshka"] = "matryoshka"
    name: Name = "matryoshka"
    """Folder of these SAEs in a run."""
    fractions: list[PositiveFloat] = Field(default=[1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32], min_length=1)
    """Share of the latents in each group. The first group is the innermost dictionary. The defaults are SAEBench's."""
    level_weights: list[NonNegativeFloat] = Field(default=[])
    """Weight of each level's reconstruction error; all 1/M by default."""

    @model_validator(mode="after")
    def _consistent(self) -> "MatryoshkaConfig":
        if abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions {self.fractions}: must add up to 1")
        if self.level_weights and len(self.level_weights) != len(self.fractions):
            raise ValueError(f"level_weights: {len(self.level_weights)} for {len(self.fractions)} levels")
        if self.level_weights and sum(self.level_weights) == 0:
            raise ValueError("level_weights: all are 0; give one that is not")
        return self

    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """Create a Matryoshka SAE for training."""
        return MatryoshkaTrainee(self, place, seed)


class MatryoshkaTrainee(BatchTopKTrainee):
    """One Matryoshka SAE in training."""

    def __init__(self, config: MatryoshkaConfig, place: SitePair, seed: int) -> None:
        super().__init__(config, place, seed)
        shares = torch.tensor(config.fractions, dtype=torch.float64).cumsum(0)
        self.ends = [round(share * self.d_sae) for share in shares.tolist()]
        if len({0, *self.ends}) <= len(self.ends):
            raise UserError(
                f"{config.name}: {self.d_sae} latents at {place.site} leave a group of fractions {config.fractions} "
                "empty; give fewer fractions or a larger expansion"
            )
        self.level_weights = config.level_weights or [1 / len(self.ends)] * len(self.ends)

    def reconstruction(
        self, code: Ragged, y: Float[Tensor, "batch d_model"], y_hat: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, ""]:
        """The weighted squared errors of all levels. Each group is decoded once."""
        levels = code.weights.b_dec + code.shares(self.ends).cumsum(1)
        errors = (y.unsqueeze(1) - levels).square().sum(-1).mean(0)
        return errors @ errors.new_tensor(self.level_weights)
