"""The edges of a pair in the order of a ranking, as a table and as circuits of the first n edges.

edges = rank_edges(pair, texts.ranking)          # exact effect of removing each edge
edges.top(20)                                    # the strongest twenty
edges.circuit(500)                               # the circuit at 500 edges of the curve
edges.groups(500)                                # features that these edges join to the same others
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from scalar_sae.console import Bar
from scalar_sae.errors import UserError
from scalar_sae.explore.circuit import Circuit
from scalar_sae.explore.features import Features
from scalar_sae.explore.groups import ALIKE, group_features
from scalar_sae.explore.plain import FeatureGroup
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.rankings.base import RankingJob
from scalar_sae.scoring.rankings.order import strongest
from scalar_sae.scoring.rankings.registry import find_global
from scalar_sae.table import Table


@dataclass(frozen=True, eq=False)
class RankedEdges:
    """The score of every edge of a pair. Edges with larger scores are kept first."""

    pair: Pair
    ranking: str
    """The ranking that scored them."""
    scores: Float[Tensor, "n_up n_down"]
    seed: int = 0
    """Seed that decides the order of equal scores."""

    def __repr__(self) -> str:
        n_scored = int((self.scores > 0).sum())
        return f"RankedEdges({self.pair.block} by {self.ranking}: {n_scored:,} of {self.pair.n_edges:,} edges above 0)"

    def top(self, n: int = 20, up: Features | None = None, down: Features | None = None) -> Table:
        """The n strongest edges, strongest first. Ties are in the order in which a curve keeps them.

        Args:
            n: number of edges.
            up: descriptions of the upstream latents; adds the columns `up_tokens` and `up_promotes`.
            down: descriptions of the downstream latents, likewise.

        Returns:
            `up` and `down` (the edge's latents) and `weight` (its score). For latents with descriptions also the tokens
                at
            which each fires most strongly and those that it promotes most.

        Raises:
            UserError: the descriptions belong to another SAE.
        """
        described = {end: features for end, features in (("up", up), ("down", down)) if features is not None}
        for end, features in described.items():
            width = getattr(self.pair, end).d_sae
            if features.n_latents != width:
                raise UserError(f"{end}: features of {features.n_latents:,} latents; the pair's SAE has {width:,}")
        rows = Table()
        for i, j in strongest(self.scores, n, self.seed).tolist():
            row: dict[str, Any] = {"up": i, "down": j, "weight": float(self.scores[i, j])}
            for end, features in described.items():
                row[f"{end}_tokens"] = features.tokens(row[end])
                row[f"{end}_promotes"] = features.promotes(row[end])
            rows.append(row)
        return rows

    def groups(self, n: int, alike: float = ALIKE) -> tuple[FeatureGroup, ...]:
        """Group the features of the n strongest edges by their attribution profiles (explore/groups.py).

        Args:
            n: number of edges.
            alike: mean cosine that two groups need to be joined.

        Raises:
            UserError: `alike` is out of range, or there are too many features.
        """
        up, down = strongest(self.scores, n, self.seed).T
        weights = self.scores[up, down].tolist()
        return group_features(zip(up.tolist(), down.tolist(), weights, strict=True), alike)

    def circuit(self, n: int) -> Circuit:
        """The circuit of the n strongest edges: the one that a curve under this ranking has at n edges.

        Raises:
            UserError: the pair has fewer edges.
        """
        if not 0 <= n <= self.pair.n_edges:
            raise UserError(f"{n} edges: the pair has {self.pair.n_edges:,}")
        kept = torch.zeros_like(self.scores, dtype=torch.bool)
        up, down = strongest(self.scores, n, self.seed).T
        kept[up, down] = True
        return Circuit(self.pair, kept)


def rank_edges(
    pair: Pair,
    tokens: Integer[Tensor, "prompt token"],
    ranking: str = "leave_one_out",
    seed: int = 0,
    memory: int | float = 8.0,
    on_progress: Callable[[float], object] | None = None,
) -> RankedEdges:
    """Score every edge of a pair on a text.

    Args:
        pair: the pair.
        tokens: the ranking text, such as `held_out(corpus, config).ranking`.
        ranking: the name of a ranking. The default computes the removal of each edge exactly.
        seed: seed of rankings that sample, and of the order of tied edges.
        memory: gigabytes that the process may take.
        on_progress: called with the share of a prompt's work that was finished. None: a progress bar is shown.

    Raises:
        UserError: the ranking is unknown or needs more memory, or the model cannot read the tokens.
    """
    found = find_global(ranking, "all edges")
    room = found.room(pair, memory, tokens.shape[1], n_counts=2)
    with Bar("rank edges", len(tokens)) as bar:
        scores = found.scores(RankingJob(pair, tokens.long(), seed, on_progress or bar.step, room))
    return RankedEdges(pair, ranking, scores, seed)
