"""Cards of features: what a page shows of a latent. The report's pages of features and the explorer show the same."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.judged import Judged, read_judged
from scalar_sae.evaluation.features.tables import (
    LENGTHS,
    OCTAVES,
    as_arrow,
    as_numpy,
    read_examples,
    read_rows,
    read_table,
)
from scalar_sae.report.text import token_text, visible

_OF_A_LATENT = ("octaves", "rule_f1", "rule_accuracy", "rule_tokens", "promoted", "promoted_by", "suppressed",
                "suppressed_by")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Cards:
    """The feature tables of one SAE, as cards. They stay on disk: rows are read when they are shown."""

    folder: Path
    n_latents: int
    strongest: Mapping[int, list[str]]
    """The different tokens at which each latent fires most strongly; latents that never fire are left out."""
    has_edges: bool
    judged: list[Judged]
    vocabulary: Mapping[int, str]
    """The text of each token in the tables, with every character visible."""

    @classmethod
    def read(cls, folder: Path) -> "Cards":
        """Read the tables that `scalar features` wrote into an SAE's folder.

        Raises:
            UserError: there are none, or they are damaged.
        """
        n_latents = read_table(folder, "latents").num_rows
        contexts, vocabulary = read_examples(folder)
        has_edges = (folder / "edges.parquet").exists()
        if has_edges:
            read_table(folder, "edges")
        shown = {token: token_text(text) for token, text in vocabulary.items()}
        return cls(folder, n_latents, _strongest(contexts, shown), has_edges, read_judged(folder), shown)

    def index(self) -> dict[str, Any]:
        """What a page needs to know before it shows a card: lists with a number of every latent."""
        latents = self._latents(range(self.n_latents), "density", "maximum", "rule_f1")
        return {
            "octaves": list(OCTAVES),
            "lengths": LENGTHS,
            "density": latents["density"].to_pylist(),
            "maximum": latents["maximum"].to_pylist(),
            "f1": [number(scores[-1]) for scores in latents["rule_f1"].to_pylist()],
        }

    def of(self, some: range) -> dict[int, dict[str, Any]]:
        """The cards of some latents, by latent."""
        rows = self._latents(some).to_pylist()
        cards = {row["latent"]: _plain(row) | {"examples": [], "edges": [], "judged": []} for row in rows}
        contexts = read_rows(self.folder, "contexts", some)
        for row in _of_kinds(contexts, "top", "random", "band").drop_columns(["prompt"]).to_pylist():
            row["acts"] = np.round(np.array(row["acts"], float), 3).tolist()
            cards[row.pop("latent")]["examples"].append(row)
        for row in read_rows(self.folder, "edges", some).to_pylist() if self.has_edges else []:
            cards[row.pop("latent")]["edges"].append(row)
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
        one = range(latent, latent + 1)
        card, latents = self.of(one)[latent], self._latents(one)
        used = {*card["rule_tokens"], *card["promoted"], *card["suppressed"]}
        used |= {token for example in card["examples"] for token in example["tokens"]}
        numbers = {name: latents[name][0].as_py() for name in ("density", "maximum")}
        vocabulary = {token: self.vocabulary[token] for token in sorted(used) if token in self.vocabulary}
        return {**card, **numbers, "octave_of": list(OCTAVES), "lengths": LENGTHS, "vocabulary": vocabulary}

    def labels(self, some: Collection[int], n: int = 3) -> dict[int, dict[str, Any]]:
        """In a few words what each of some latents does: density, tokens where it is strongest, tokens it promotes."""
        rows = self._latents(range(self.n_latents), "density", "promoted").take(
            as_arrow(np.array(sorted(some), np.int64))
        )
        return {
            latent: {
                "density": density,
                "tokens": self.strongest.get(latent, [])[:n],
                "promotes": [self.vocabulary[token] for token in promoted[:n]],
            }
            for latent, density, promoted in zip(
                *(rows[name].to_pylist() for name in ("latent", "density", "promoted")), strict=True
            )
        }

    def _latents(self, some: range, *columns: str) -> pa.Table:
        """Columns of some latents, besides their numbers; all columns if none is named."""
        return read_rows(self.folder, "latents", some, ["latent", *columns] if columns else None)


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


def _strongest(contexts: pa.Table, vocabulary: Mapping[int, str]) -> dict[int, list[str]]:
    """The different tokens at which each latent fires most strongly."""
    top = _of_kinds(contexts, "top")
    tokens = top["tokens"].combine_chunks()
    latent, position, start = (as_numpy(top[name]) for name in ("latent", "position", "start"))
    at = as_numpy(tokens.offsets)[:-1] + position - start
    found: dict[int, dict[str, None]] = {}
    for fired, token in zip(latent.tolist(), as_numpy(tokens.values)[at].tolist(), strict=True):
        found.setdefault(fired, {})[vocabulary[token]] = None
    return {latent: list(tokens) for latent, tokens in found.items()}


def _of_kinds(contexts: pa.Table, *kinds: str) -> pa.Table:
    """The examples of some kinds."""
    kind = contexts["kind"].combine_chunks().dictionary_encode()
    wanted = np.array([name in kinds for name in kind.dictionary.to_pylist()], dtype=bool)
    return contexts.take(as_arrow(np.flatnonzero(wanted[as_numpy(kind.indices)])))
