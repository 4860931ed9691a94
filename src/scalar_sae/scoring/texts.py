"""The two texts of a score: edges are ranked on one and sub-circuits are scored on the other."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor

from scalar_sae.corpora import check_tokenizer, prompts_fingerprint
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import Special, counted, listed
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.training_text import largest_share, trained_text

PARTS = {"ranking": "rank", "scoring": "score"}
"""The two texts, and what is done on them."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Two held-out texts without overlap. A ranking uses as many of the first ranking prompts as it is given.

    What records are compared by is taken from all ranking prompts: the mean of `ablation="mean"`, the mean that
    faithfulness compares with, and the latents that live.
    """

    ranking: Int[Tensor, "n_ranked token"]
    scoring: Int[Tensor, "n_scored token"]
    data: dict[str, Any]

    def check(self, lm: LanguageModel, special: Special) -> None:
        """Raise a UserError if the prompts are of another tokenizer than the model's, or hold special tokens alone."""
        if "tokenizer" in self.data:
            check_tokenizer(self.data["tokenizer"], lm, self.data["corpus"])
        for name, what in PARTS.items():
            if not counted(getattr(self, name), special)[:, 1:].any():
                raise UserError(f"text to {what} on: nothing but special tokens ({listed(special)}); give other text")

    def compared(self, saes: Iterable[SAE], *, allow: bool) -> "Texts":
        """The same texts, marked if SAEs were trained on one of them.

        Prompts that `held_out` cut from the text of an SAE were held out from it.

        Raises:
            UserError: SAEs were trained on one of them, and that is not allowed.
        """
        cut = self.data.get("prompts") == {name: prompts_fingerprint(getattr(self, name)) for name in PARTS}
        held_out = self.data.get("fingerprint") if cut else None
        texts = [sae.text for sae in saes if sae.text is not None and sae.text.fingerprint != held_out]
        shares = {what: largest_share(texts, getattr(self, name)) for name, what in PARTS.items()}
        if not any(shares.values()) and self.data.get("seen") != "trained on":
            return self
        what, share = max(shares.items(), key=lambda one: one[1])
        if not allow:
            raise UserError(trained_text(f"{self.data.get('corpus', 'text')}, text to {what} on", share))
        return replace(self, data=self.data | {"seen": "trained on"})

    def n_special(self, special: Special) -> int:
        """Positions of special tokens in the scored text."""
        return int((~counted(self.scoring, special)).sum())
