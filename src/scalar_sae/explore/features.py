"""The latents of an SAE: where they fire, which tokens they promote, and examples of text.

features = Features.of(lm, "resid_mid.0", sae, tokens)
features.examples(17)              # the text around its strongest activations
features.tokens(17)                # the tokens at which it fires most strongly
features.promotes(17)              # the tokens whose logits it raises most, by its direct effect
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Integer
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.features import feature_tables
from scalar_sae.evaluation.features.tables import read_examples, read_table
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import Rule
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site
from scalar_sae.table import Table

Kind = Literal["top", "random", "band", "silent"]
"""The strongest examples, a uniform sample, one per power of two of the activation, or text where the latent is
silent.
"""


class Features:
    """The latents of one SAE, described on a text."""

    def __init__(self, latents: Any, contexts: Any, vocabulary: Mapping[int, str]) -> None:
        """Take two Arrow tables as evaluation/features/tables.py defines them, and the text of each token in them."""
        self._latents: list[dict[str, Any]] = latents.to_pylist()
        self._contexts, self._vocabulary = contexts, vocabulary

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        site: Site | str,
        sae: SAE,
        tokens: Integer[Tensor, "prompt token"],
        n_examples: int = 10,
        seed: int = 0,
        special: Rule = "skip",
    ) -> "Features":
        """Read a text and describe every latent.

        Args:
            lm: the model that the SAE reads.
            site: the site that it reads, or its name.
            sae: the SAE.
            tokens: prompts. A latent that does not fire in them has no examples, so more are better.
            n_examples: examples of each kind per latent.
            seed: seed of the random examples.
            special: the rule for special tokens; by default no latent fires there.

        Raises:
            UserError: the model has no such site, or all tokens are special.
        """
        tables = feature_tables(lm, Site.of(site), sae, tokens.long(), n_examples, seed=seed, special=special)
        words = tables["vocabulary"]
        vocabulary = dict(zip(words["token"].to_pylist(), words["text"].to_pylist(), strict=True))
        return cls(tables["latents"], tables["contexts"], vocabulary)

    @classmethod
    def read(cls, folder: str | Path) -> "Features":
        """Read the tables that `scalar features` wrote into an SAE's folder.

        Raises:
            UserError: there are none, or they are damaged.
        """
        contexts, vocabulary = read_examples(Path(folder))
        return cls(read_table(Path(folder), "latents"), contexts, vocabulary)

    def __repr__(self) -> str:
        return (
            f"Features({self.n_latents:,} latents, {sum(row['density'] > 0 for row in self._latents):,} of them fire)"
        )

    @property
    def n_latents(self) -> int:
        """Number of latents of the SAE."""
        return len(self._latents)

    def tokens(self, latent: int, n: int = 3) -> list[str]:
        """The different tokens at which a latent fires most strongly, at most n.

        Raises:
            UserError: the SAE has no such latent.
        """
        found = [self._vocabulary[row["tokens"][row["position"] - row["start"]]] for row in self._rows(latent, "top")]
        return list(dict.fromkeys(found))[:n]

    def promotes(self, latent: int, n: int = 3) -> list[str]:
        """The tokens whose logits a latent raises most, by its direct effect (evaluation/features/logits.py).

        Empty if the SAE does not write to the residual stream, directly or by addition.

        Raises:
            UserError: the SAE has no such latent.
        """
        return [self._vocabulary[token] for token in self._latent(latent)["promoted"][:n]]

    def suppresses(self, latent: int, n: int = 3) -> list[str]:
        """The tokens whose logits a latent lowers most.

        Raises:
            UserError: the SAE has no such latent.
        """
        return [self._vocabulary[token] for token in self._latent(latent)["suppressed"][:n]]

    def examples(self, latent: int, n: int = 5, kind: Kind = "top") -> Table:
        """Text in which a latent fires.

        Args:
            latent: index of the latent.
            n: maximum number of examples.
            kind: the strongest (`top`), a uniform sample (`random`), one per power of two of the activation (`band`),
                or text where it does not fire (`silent`).

        Returns:
            `activation` at the example's token, `text` around it (with the token between « and »), and its `prompt` and
            `position`.

        Raises:
            UserError: the SAE has no such latent.
        """
        rows = Table()
        for row in self._rows(latent, kind)[:n]:
            pieces, at = [self._vocabulary[token] for token in row["tokens"]], row["position"] - row["start"]
            text = f"{''.join(pieces[:at])}«{pieces[at]}»{''.join(pieces[at + 1 :])}"
            where = {"prompt": row["prompt"], "position": row["position"]}
            rows.append({"activation": row["acts"][at], "text": text, **where})
        return rows

    def table(self) -> Table:
        """One row per latent: how often and how strongly it fires, at which tokens, and which tokens it promotes."""
        return Table(
            {
                "latent": number,
                "density": row["density"],
                "maximum": row["maximum"],
                "mean": row["mean"],
                "tokens": self.tokens(number),
                "promotes": self.promotes(number),
                "suppresses": self.suppresses(number),
            }
            for number, row in enumerate(self._latents)
        )

    def _latent(self, latent: int) -> dict[str, Any]:
        if not 0 <= latent < self.n_latents:
            raise UserError(f"latent {latent}: the SAE has {self.n_latents:,} latents")
        return self._latents[latent]

    def _rows(self, latent: int, kind: str) -> list[dict[str, Any]]:
        """The examples of one kind of a latent, in order."""
        self._latent(latent)
        return self._examples.get((latent, kind), [])

    @cached_property
    def _examples(self) -> dict[tuple[int, str], list[dict[str, Any]]]:
        found: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for row in self._contexts.to_pylist():
            found.setdefault((row["latent"], row["kind"]), []).append(row)
        return found
