"""Every ranking. Names in messages and the table in the documentation come from here.

The command line's help is written out, since it must not wait for PyTorch. A test compares it with this registry.
"""

from collections.abc import Iterable
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from scalar_sae.errors import UserError, unknown
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.rankings.base import (
    EdgeScores,
    EdgewiseRanking,
    GlobalRanking,
    OnProgress,
    Ranking,
    RankingJob,
    nothing,
)
from scalar_sae.scoring.rankings.fisher import FISHER
from scalar_sae.scoring.rankings.from_file import SUFFIXES, in_file
from scalar_sae.scoring.rankings.ig import IG
from scalar_sae.scoring.rankings.leave_one_out import LEAVE_ONE_OUT, LEAVE_ONE_OUT_WITH_PRIOR
from scalar_sae.scoring.rankings.local import LOCAL
from scalar_sae.scoring.rankings.published import PUBLISHED
from scalar_sae.scoring.rankings.random_order import RANDOM
from scalar_sae.scoring.rankings.shapley import SHAPLEY
from scalar_sae.scoring.rankings.unfinished import Unfinished

DEFAULT = LEAVE_ONE_OUT_WITH_PRIOR.name

_ALL: Iterable[Ranking] = (
    LEAVE_ONE_OUT_WITH_PRIOR,
    LEAVE_ONE_OUT,
    FISHER,
    SHAPLEY,
    IG,
    PUBLISHED,
    RANDOM,
    LOCAL,
)
RANKINGS = {ranking.name: ranking for ranking in _ALL}
EDGEWISE = {ranking.name: ranking for ranking in _ALL if isinstance(ranking, EdgewiseRanking)}
"""Rankings that score an edge by itself."""


def find_ranking(name: str) -> Ranking:
    """A ranking by its name, or by the path of a file that holds one.

    Raises:
        UserError: neither a ranking's name nor such a file.
    """
    if name in RANKINGS:
        return RANKINGS[name]
    if Path(name).suffix in SUFFIXES and Path(name).is_file():
        return in_file(name)
    raise unknown("ranking", name, [*RANKINGS, f"a path to a {' or '.join(SUFFIXES)} file"])


def find_edgewise(name: str, what: str) -> EdgewiseRanking:
    """A ranking that scores an edge by itself; `what` needs one.

    Raises:
        UserError: no such ranking, or one that compares the edges of a pair.
    """
    if name in EDGEWISE:
        return EDGEWISE[name]
    if name in RANKINGS:
        raise UserError(f"{what}: {name} compares the edges of one pair; take {', '.join(EDGEWISE)}")
    raise unknown("ranking", name, EDGEWISE)


def find_global(name: str, what: str) -> GlobalRanking:
    """A registered global ranking; `what` needs one.

    Raises:
        UserError: no such ranking.
    """
    found = RANKINGS.get(name)
    if not isinstance(found, GlobalRanking):
        raise unknown(f"ranking of {what}", name, [n for n, one in RANKINGS.items() if isinstance(one, GlobalRanking)])
    return found


def rank(
    pair: Pair,
    tokens: Int[Tensor, "prompt token"],
    name: str,
    seed: int,
    on_progress: OnProgress = nothing,
    room: int = 2**30,
    kept: Unfinished | None = None,
) -> EdgeScores:
    """Score every edge of a pair on ranking text by a registered global ranking; the rest is as in `RankingJob`."""
    job = RankingJob(pair, tokens, seed, on_progress, room, kept or Unfinished())
    return find_global(name, "all edges").scores(job)


def table() -> str:
    """The rankings as a Markdown table."""
    lines = ["| ranking | edges | prompts | score of edge (i, j) |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| `{r.name}` | {r.scope} | {r.prompts} | {r.summary} |" for r in _ALL])
