"""A run directory in Python: its language model, its SAEs, its text and its results.

    run = load_run("runs/quickstart")
    pair = run.pair("topk", "ff_block.0")
    run.results.table()

Each part is read on first use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from scalar_sae.corpora import Corpus
from scalar_sae.errors import UserError, unknown
from scalar_sae.explore.features import Features
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import Rule
from scalar_sae.own_text import evaluation_text
from scalar_sae.records.results import Results
from scalar_sae.run_folder import run_folder
from scalar_sae.saes.sources import Group, site_in
from scalar_sae.saes.store import load_saes
from scalar_sae.scoring.chain import chain
from scalar_sae.scoring.pair import Pair
from scalar_sae.sites import Block, Site


@dataclass(frozen=True)
class Run:
    """The content of a folder that `scalar quickstart` or `scalar train` wrote."""

    folder: Path

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def lm(self) -> LanguageModel:
        """The language model that is kept in the run.

        Raises:
            UserError: its files are damaged.
        """
        return LanguageModel.load(self.folder / "lm")

    @cached_property
    def saes(self) -> dict[str, Group]:
        """The SAEs by the name of their group and by site: `run.saes["topk"]["resid_mid.0"]`.

        Raises:
            UserError: there are none, or their files are damaged.
        """
        return load_saes(self.folder)

    @cached_property
    def text(self) -> Corpus:
        """The training text of the SAEs, with the part that was held out from them.

        Raises:
            UserError: it no longer exists, or has changed.
        """
        return evaluation_text(self.lm, [self.folder])

    @cached_property
    def results(self) -> Results:
        """The run's scores and measurements.

        Raises:
            UserError: there are none yet, or the file is damaged.
        """
        return Results.read(self.folder / "results.json")

    def pair(self, method: str, block: Block | str, special: Rule = "skip") -> Pair:
        """The SAEs of a method at the two ends of a block.

        Args:
            method: the name of the SAEs in the run.
            block: the block, or its name, such as `ff_block.0`.
            special: the rule for special tokens (lm/special.py).

        Raises:
            UserError: the run has no such SAEs.
        """
        return Pair.between(self.lm, block, self._group(method), special)

    def chain(self, method: str, sites: Sequence[Site | str], special: Rule = "skip") -> list[Pair]:
        """The pairs between neighbouring sites of a whole-model circuit.

        Args:
            method: the name of the SAEs in the run.
            sites: at least three sites on the residual stream, or their names.
            special: the rule for special tokens (lm/special.py).

        Raises:
            UserError: the run has no such SAEs, or the sites make no chain.
        """
        return chain(self.lm, self._group(method), [Site.of(site) for site in sites], self.lm.special_ids(special))

    def features(self, method: str, site: Site | str) -> Features:
        """The feature tables that `scalar features` wrote for an SAE of this run.

        Raises:
            UserError: the run has no such SAE, or `scalar features` was not run.
        """
        group, site = self._group(method), Site.of(site)
        stored = site_in(group, site)
        if stored is None:
            raise UserError(f"{method}: no SAE at {site}; there are SAEs at {', '.join(map(str, sorted(group)))}")
        return Features.read(self.folder / "features" / method / str(stored))

    def _group(self, method: str) -> Group:
        if method not in self.saes:
            raise unknown("method", method, self.saes)
        return self.saes[method]


def load_run(folder: str | Path) -> Run:
    """Open a run directory.

    Raises:
        UserError: it is not a run directory.
    """
    return Run(run_folder(folder))
