"""What a page shows of a run's files alone, before the language model is loaded: this module imports no PyTorch.

Cards are read from the tables of `scalar features`. Which pairs there are and what their maps show was worked out by
the engine before: when the run was finished, or when its page was open. These answers are kept in the run directory, in
`explorer/answers/`, each with the state of everything that it depends on. An answer from another state is not used.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scalar_sae
from scalar_sae.console import say_once
from scalar_sae.errors import UserError, unknown
from scalar_sae.explorer.questions import Card
from scalar_sae.io import write_text

if TYPE_CHECKING:
    from scalar_sae.report.cards import Cards

OWN = "explorer"
"""The folder in a run directory that the explorer writes."""
_DEPENDS = ("config.yaml", "features", "lm", "results.json", "saes")
"""The parts of a run that answers depend on."""
_AT_WORK = (".lock", ".owner", ".partial")
"""How files end that are there while a command works."""


class Kept:
    """The answers that are kept in a run directory."""

    def __init__(self, run: Path, about: Any = None) -> None:
        """Take a run directory, and what else of the command its answers depend on, as plain data."""
        self.run, self._about = run, about

    def state(self) -> str | None:
        """A digest of what answers depend on: the run's name, sizes and times of its files and of this package.

        None if the run has a link to a folder, behind which files can change unseen, or if files come and go.
        """
        try:
            found = sorted(_files(self.run))
        except (_LinkError, OSError):
            return None
        files = [one for one in found if Path(one[0]).parts[0] in _DEPENDS and not one[0].endswith(_AT_WORK)]
        return hashlib.sha256(
            json.dumps([self.run.resolve().name, self._about, _package(), files]).encode()
        ).hexdigest()

    def find(self, question: str, state: str | None) -> Any:
        """The answer to a question if it is kept and was worked out in this state; otherwise None."""
        try:
            found = json.loads(self._path(question).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None  # it is worked out anew
        whole = isinstance(found, dict) and state is not None
        return (
            found.get("answer") if whole and (found.get("question"), found.get("state")) == (question, state) else None
        )

    def keep(self, question: str, answer: Any, state: str | None) -> None:
        """Keep an answer that was worked out from files in this state, unless they have changed meanwhile."""
        if state is None or state != self.state():
            return
        content = {"question": question, "state": state, "answer": answer}
        try:
            write_text(self._path(question), json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n")
        except UserError as error:
            say_once(f"answers are not kept, so the page will wait for the model next time: {error}")

    def _path(self, question: str) -> Path:
        return self.run / OWN / "answers" / f"{hashlib.sha256(question.encode()).hexdigest()[:32]}.json"


def card(run: Path | None, pairs: Sequence[Mapping[str, Any]], question: Card) -> dict[str, Any]:
    """The card of a feature; without tables of features only that there are none.

    Args:
        run: the run directory, if there is one.
        pairs: the pairs as the answer to `run` describes them.
        question: the feature.

    Raises:
        UserError: there is no such pair or feature, or its tables are damaged.
    """
    saes = next((pair["saes"] for pair in pairs if pair["key"] == question.pair), None)
    if saes is None:
        raise unknown("pair", question.pair, [pair["key"] for pair in pairs])
    sae, (method, _, _) = saes[question.end], question.pair.partition("/")
    cards = None if run is None else cards_of(run, method, sae["site"], sae["latents"])
    return {"missing": True} if cards is None else cards.card(question.latent)


def cards_of(run: Path, method: str, site: str, latents: int) -> "Cards | None":
    """The tables of features of an SAE; None if there are none. They are read anew when they are written anew.

    Raises:
        UserError: they are damaged, or belong to an SAE with another number of latents.
    """
    folder = run / "features" / method / site
    if not (folder / "latents.parquet").is_file():
        return None
    found = _read(folder, tuple(sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())))
    if found.n_latents != latents:
        raise UserError(
            f"{folder}: tables of {found.n_latents:,} features, the SAE has {latents:,}; move the folder away and run "
            "scalar features again"
        )
    return found


@lru_cache(maxsize=8)
def _read(folder: Path, written: tuple[tuple[str, int], ...]) -> "Cards":
    from scalar_sae.report.cards import Cards  # pyarrow, which the page's address need not wait for

    return Cards.read(folder)


class _LinkError(Exception):
    """A link to a folder, or to nothing."""


def _files(folder: Path, pattern: str = "*") -> Iterator[tuple[str, int, int, int]]:
    """Path, size and times of every file in a folder. As in git's index, a change shows in one of them."""
    for path in folder.rglob(pattern):
        if path.is_file():
            found = path.stat()
            yield str(path.relative_to(folder)), found.st_size, found.st_mtime_ns, found.st_ctime_ns
        elif path.is_symlink():
            raise _LinkError


@cache
def _package() -> list[tuple[str, int, int, int]]:
    """The files of this package, as this process imports them."""
    return sorted(_files(Path(scalar_sae.__file__).parent, "*.py"))
