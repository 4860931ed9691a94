"""What a page of the explorer is about: a model, pairs of SAEs in it, their records, text, and tables of features."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from scalar_sae.console import say_once
from scalar_sae.corpora import Corpus
from scalar_sae.errors import UserError, unknown
from scalar_sae.evaluation.features.judges import Judge
from scalar_sae.explore.journey import Journey
from scalar_sae.explore.run import Run
from scalar_sae.explorer.files import cards_of
from scalar_sae.lm.model import LanguageModel
from scalar_sae.records.results import Record, Results
from scalar_sae.report.cards import Cards
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.sources import Group, site_in
from scalar_sae.scoring.ablation import DRAWS
from scalar_sae.scoring.config import ScoreConfig, held_out
from scalar_sae.scoring.pair import Pair, upstream
from scalar_sae.scoring.rankings.registry import RANKINGS
from scalar_sae.scoring.score import prepared
from scalar_sae.scoring.texts import Texts
from scalar_sae.sites import Block, Site

RANKING = "leave_one_out"
"""The ranking of a pair without a record."""
PROMPTS = 16
"""Prompts that such a pair is ranked on, and measured on."""


@dataclass(frozen=True, eq=False)
class PairSubject:
    """A pair, and the records of it under global rankings."""

    key: str
    """METHOD/BLOCK."""
    method: str
    block: Block
    group: Group
    records: tuple[Record, ...] = ()

    def site(self, end: str) -> Site:
        """The site that the SAE at the `up` or `down` end reads."""
        found = site_in(self.group, self.block.down) if end == "down" else upstream(self.group, self.block.up)
        assert found is not None  # `Pair.between` finds both
        return found

    def sae(self, end: str) -> SAE:
        """The SAE at the `up` or `down` end."""
        return self.group[self.site(end)]

    @property
    def rankings(self) -> list[str]:
        """Rankings that the page can show, the first by default."""
        return [record.ranking for record in self.records] or [RANKING]

    def leads_to(self, other: "PairSubject") -> bool:
        """Whether the other pair begins where this one ends, so that both make a chain."""
        return self.method == other.method and self.block.down.same_place(other.block.up)

    def record(self, ranking: str) -> Record | None:
        """The record under a ranking; None if the pair has none at all.

        Raises:
            UserError: there are records, but under other rankings.
        """
        if ranking not in self.rankings:
            raise unknown("ranking", ranking, self.rankings)
        return next((record for record in self.records if record.ranking == ranking), None)


@dataclass(eq=False)
class Subject:
    """A model and its pairs by key. Text, pairs and tables are read when they are first asked for."""

    name: str
    lm: LanguageModel
    read_text: Callable[[], Corpus]
    pairs: Mapping[str, PairSubject]
    folder: Path | None = None
    """The run directory, where tables of features lie and ranked edges are kept; None: single SAEs."""
    judge: Judge | None = None
    """Explains edges and groups; None: nobody does."""
    last_journey: tuple[object, Journey] | None = None
    """The prompt that was looked at last."""
    _pairs: dict[tuple[str, str], Pair] = field(default_factory=dict[tuple[str, str], Pair])

    @classmethod
    def of_run(cls, run: Run) -> "Subject":
        """Every pair of neighbouring SAEs in a run directory; those with records come first.

        Raises:
            UserError: the run has no SAEs, or its files are damaged.
        """
        results = Results.read_if_there(run.folder / "results.json")
        found = [
            PairSubject(f"{method}/{block}", method, block, group, _records(results, method, block))
            for method, group in run.saes.items()
            for block in _blocks(results, method, group)
        ]
        if not found:
            raise UserError(f"{run.folder}: no two neighbouring SAEs; an explorer needs a pair")
        found.sort(key=lambda pair: not pair.records)
        name = run.folder.resolve().name
        return cls(name, run.lm, lambda: run.text, {pair.key: pair for pair in found}, run.folder)

    @classmethod
    def of_saes(
        cls, name: str, lm: LanguageModel, groups: Mapping[str, Group], block: Block, read_text: Callable[[], Corpus]
    ) -> "Subject":
        """One block between SAEs that belong to no run."""
        pairs = {
            f"{method}/{block}": PairSubject(f"{method}/{block}", method, block, g) for method, g in groups.items()
        }
        return cls(name, lm, read_text, pairs)

    def pair_subject(self, key: str) -> PairSubject:
        """A pair by its key.

        Raises:
            UserError: there is none.
        """
        if key not in self.pairs:
            raise unknown("pair", key, self.pairs)
        return self.pairs[key]

    def config(self, record: Record | None) -> ScoreConfig:
        """The settings of a record; without one, a ranking on a few prompts."""
        if record is None:
            context = min(self.lm.context, self.text.context(self.lm.context))
            return ScoreConfig(ranking=RANKING, rank_prompts=PROMPTS, prompts=PROMPTS, context=context)
        known: dict[str, Any] = {
            name: record.config[name] for name in ScoreConfig.model_fields if name in record.config
        }
        known |= {"ranking": record.ranking, "control": None}
        if known.get("ablation") in DRAWS:
            say_once(f"the record was made with ablation {known['ablation']}: here ablated latents take their means")
            known["ablation"] = "mean"
        return ScoreConfig(**known)

    @cached_property
    def text(self) -> Corpus:
        """The evaluation text.

        Raises:
            UserError: it no longer exists, or has changed.
        """
        return self.read_text()

    def texts(self, record: Record | None) -> Texts:
        """The ranking and the scoring text of a record."""
        return held_out(self.text, self.config(record))

    def pair(self, key: str, ranking: str) -> Pair:
        """A pair as its record scored it.

        Raises:
            UserError: there is no such pair, or its files are damaged.
        """
        subject = self.pair_subject(key)
        record = subject.record(ranking)
        if (key, ranking) not in self._pairs:
            pair = Pair.between(self.lm, subject.block, subject.group)
            self._pairs[key, ranking] = prepared(pair, self.texts(record), self.config(record))
        return self._pairs[key, ranking]

    def cards(self, key: str, end: str) -> Cards | None:
        """The tables of features of the SAE at the `up` or `down` end of a pair; None if there are none.

        Raises:
            UserError: they are damaged.
        """
        pair = self.pair_subject(key)
        if self.folder is None:
            return None
        return cards_of(self.folder, pair.method, str(pair.site(end)), pair.sae(end).d_sae)


def _records(results: Results, method: str, block: Block) -> tuple[Record, ...]:
    """The records of a pair under global rankings that can be computed anew."""
    return tuple(
        record
        for record in results.records
        if (record.method, record.block, record.control, record.scope) == (method, str(block), None, "global")
        and record.ranking in RANKINGS
    )


def _blocks(results: Results, method: str, group: Group) -> list[Block]:
    """The blocks that were scored, and those between neighbouring SAEs."""
    scored = [Block.parse(name) for name in dict.fromkeys(r.block for r in results.records if r.method == method)]
    ends = [(group[up].writes or up, down) for up, down in pairwise(sorted(group))]
    return list(dict.fromkeys([*scored, *(Block(up, down) for up, down in ends if up < down)]))
