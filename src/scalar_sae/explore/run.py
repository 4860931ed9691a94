"""A run directory as Python sees it: its language model, its SAEs, its text and its results.

    run = load_run("runs/quickstart")
    pair = run.pair("topk", "ff_block.0")
    run.results.table()

Each part is read when it is first asked for.
"""

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
from scalar_sae.saes.sources import Group, site_in
from scalar_sae.saes.store import load_saes
from scalar_sae.scoring.pair import Pair
from scalar_sae.sites import Block, Site


@dataclass(frozen=True)
class Run:
    """What `scalar quickstart` or `scalar train` left in a folder."""

    folder: Path

    @cached_property
    def lm(self) -> LanguageModel:
        """The language model that the run keeps.

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
        """The text that the SAEs were trained on, with the part that was held out from them.

        Raises:
            UserError: it is not there any more, or has changed.
        """
        return evaluation_text(self.lm, [self.folder])

    @cached_property
    def results(self) -> Results:
        """What was scored and measured.

        Raises:
            UserError: nothing was yet, or the file is damaged.
        """
        return Results.read(self.folder / "results.json")

    def pair(self, method: str, block: Block | str, special: Rule = "skip") -> Pair:
        """The SAEs of a method at the two ends of a block.

        Args:
            method: the name of the SAEs in the run.
            block: the block, or its name, such as `ff_block.0`.
            special: what happens at special tokens (lm/special.py).

        Raises:
            UserError: the run has no such SAEs.
        """
        return Pair.between(self.lm, block, self._group(method), special)

    def features(self, method: str, site: Site | str) -> Features:
        """What `scalar features` wrote of the latents of an SAE into this run.

        Raises:
            UserError: it has no such SAE, or `scalar features` was not run.
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
        UserError: it is none.
    """
    run = Run(Path(folder).expanduser())
    if not (run.folder / "config.yaml").is_file() or not (run.folder / "lm").is_dir():
        raise UserError(f"{folder}: not a run directory (it has no config.yaml and lm/); load_saes reads single SAEs")
    return run
