"""The two texts of a score: edges are ranked on one and sub-circuits are scored on the other."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from scalar_sae.corpora import check_tokenizer
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import counted, listed


@dataclass(frozen=True, eq=False)
class Texts:
    """Two held-out texts without overlap. A ranking uses as many of the first ranking prompts as it is given.

    What records are compared by is taken from all ranking prompts: the mean of `ablation="mean"`, the mean that
    faithfulness compares with, and the latents that live.
    """

    ranking: Int[Tensor, "n_ranked token"]
    scoring: Int[Tensor, "n_scored token"]
    data: dict[str, Any]

    def check(self, lm: LanguageModel, special: tuple[int, ...]) -> None:
        """Raise a UserError if the prompts are of another tokenizer than the model's, or hold special tokens alone."""
        if "tokenizer" in self.data:
            check_tokenizer(self.data["tokenizer"], lm, self.data["corpus"])
        for what, tokens in (("rank", self.ranking), ("score", self.scoring)):
            if not counted(tokens, special)[:, 1:].any():
                raise UserError(
                    f"text to {what} on: nothing but special tokens (ids {listed(special)}); give other text"
                )

    def n_special(self, special: tuple[int, ...]) -> int:
        """Positions of special tokens in the scored text."""
        return int((~counted(self.scoring, special)).sum())
