"""Cards of features: what a page shows of a latent. The report's pages of features and the explorer show the same."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.judged import Judged, read_judged
from scalar_sae.evaluation.features.tables import EDGES, LENGTHS, OCTAVES, as_arrow, as_numpy, read_examples, read_table
from scalar_sae.report.text import token_text, visible

_OF_A_LATENT = ("octaves", "rule_f1", "rule_accuracy", "rule_tokens", "promoted", "promoted_by", "suppressed",
                "suppressed_by")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Cards:
    """The feature tables of one SAE, as cards."""

    latents: pa.Table
    contexts: pa.Table
    """Examples, sorted by latent."""
    edges: pa.Table
    judged: list[Judged]
    vocabulary: Mapping[int, str]
    """The text of each token in the tables, with every character visible."""

    @classmethod
    def read(cls, folder: Path) -> "Cards":
        """Read the tables that `scalar features` wrote into an SAE's folder.

        Raises:
            UserError: there are none, or they are damaged.
        """
        latents = read_table(folder, "latents")
        contexts, vocabulary = read_examples(folder)
        edges = read_table(folder, "edges") if (folder / "edges.parquet").exists() else _no_edges()
        shown = {token: token_text(text) for token, text in vocabulary.items()}
        found = cls(latents, _by_latent(_shown(contexts)), _by_latent(edges), read_judged(folder), shown)
        pa.default_memory_pool().release_unused()
        return found

    @property
    def n_latents(self) -> int:
        """Number of latents of the SAE."""
        return self.latents.num_rows

    def index(self) -> dict[str, Any]:
        """What a page needs to know before it shows a card: lists with a number of every latent."""
        return {
            "octaves": list(OCTAVES),
            "lengths": LENGTHS,
            "density": self.latents["density"].to_pylist(),
            "maximum": self.latents["maximum"].to_pylist(),
            "f1": [number(scores[-1]) for scores in self.latents["rule_f1"].to_pylist()],
        }

    def of(self, some: range) -> dict[int, dict[str, Any]]:
        """The cards of some latents, by latent."""
        rows = self.latents.slice(some.start, len(some)).to_pylist()
        cards = {row["latent"]: _plain(row) | {"examples": [], "edges": [], "judged": []} for row in rows}
        for kind, table in (("examples", self.contexts), ("edges", self.edges)):
            start, end = np.searchsorted(as_numpy(table["latent"]), [some.start, some.stop])
            for row in table.slice(start, end - start).to_pylist():
                if kind == "examples":
                    row["acts"] = np.round(np.array(row["acts"], float), 3).tolist()
                cards[row.pop("latent")][kind].append(row)
        for row in self.judged:
            if row.latent in cards:
                cards[row.latent]["judged"].append(_said(row))
        return cards

    def card(self, latent: int) -> dict[str, Any]:
        """One card with all that it needs: its latent's numbers and the texts of its tokens beside it.

        Raises:
            UserError: the SAE has no such latent.
        """
        if not 0 <= latent < self.n_latents:
            raise UserError(f"latent {latent}: the SAE has {self.n_latents:,} latents")
        card = self.of(range(latent, latent + 1))[latent]
        used = {*card["rule_tokens"], *card["promoted"], *card["suppressed"]}
        used |= {token for example in card["examples"] for token in example["tokens"]}
        numbers = {name: self.latents[name][latent].as_py() for name in ("density", "maximum")}
        vocabulary = {token: self.vocabulary[token] for token in sorted(used) if token in self.vocabulary}
        return {**card, **numbers, "octave_of": list(OCTAVES), "lengths": LENGTHS, "vocabulary": vocabulary}

    def labels(self, some: Collection[int], n: int = 3) -> dict[int, dict[str, Any]]:
        """In a few words what each of some latents does: density, tokens where it is strongest, tokens it promotes."""
        chosen = sorted(some)
        rows = self.latents.take(as_arrow(np.array(chosen, np.int64)))
        density, promoted = rows["density"].to_pylist(), rows["promoted"].to_pylist()
        return {
            latent: {
                "density": density[at],
                "tokens": self._strongest.get(latent, [])[:n],
                "promotes": [self.vocabulary[token] for token in promoted[at][:n]],
            }
            for at, latent in enumerate(chosen)
        }

    @cached_property
    def _strongest(self) -> dict[int, list[str]]:
        """The different tokens at which each latent fires most strongly."""
        top = self.contexts.take(_where(self.contexts, lambda kind: kind == "top"))
        tokens = top["tokens"].combine_chunks()
        latent, position, start = (as_numpy(top[name]) for name in ("latent", "position", "start"))
        at = as_numpy(tokens.offsets)[:-1] + position - start
        found: dict[int, dict[str, None]] = {}
        for fired, token in zip(latent.tolist(), as_numpy(tokens.values)[at].tolist(), strict=True):
            found.setdefault(fired, {})[self.vocabulary[token]] = None
        return {latent: list(tokens) for latent, tokens in found.items()}


def number(value: float) -> float | None:
    """Four digits of a number; None for what JSON lacks."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A latent's lists, without what JSON lacks."""
    return {
        name: [number(value) if isinstance(value, float) else value for value in row[name]] for name in _OF_A_LATENT
    }


def _said(row: Judged) -> dict[str, Any]:
    """What a judge said, with every character visible."""
    explanation = None if row.explanation is None else visible(row.explanation)
    judge = {"model": visible(str(row.judge.get("model")))}
    return {**row.model_dump(exclude={"latent"}), "explanation": explanation, "judge": judge}


def _shown(contexts: pa.Table) -> pa.Table:
    """What is shown of the contexts."""
    return contexts.take(_where(contexts, lambda kind: kind != "silent")).drop_columns(["prompt"])


def _where(contexts: pa.Table, wanted: Callable[[str], bool]) -> Any:
    """The rows of some kinds of examples."""
    return as_arrow(np.flatnonzero([wanted(kind) for kind in contexts["kind"].to_pylist()]))


def _no_edges() -> pa.Table:
    return pa.Table.from_arrays([pa.nulls(0, field.type) for field in EDGES], schema=EDGES)  # as_arrow says why


def _by_latent(table: pa.Table) -> pa.Table:
    return table.take(as_arrow(np.argsort(as_numpy(table["latent"]), kind="stable")))
