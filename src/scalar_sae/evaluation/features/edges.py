"""The strongest edges of each latent to the SAEs before and after it, under one of the edge rankings.

    tables = strongest_edges(lm, {site: sae, ...}, tokens)    # one per site: latent, side, site, other, score

Sites are taken in the order of the forward pass, and each SAE is paired with the next SAE that it influences. If
attention and MLP run in parallel, both are paired with the SAE after them. The matrix of all edges is never held: as
many downstream latents are ranked at a time as fit in the memory budget.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.console import Bar
from scalar_sae.evaluation.features.tables import EDGES, by_latent
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import Rule
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring.memory import columns_bytes
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.rankings.base import RankingJob, summed
from scalar_sae.scoring.rankings.registry import find_edgewise
from scalar_sae.sites import Block, Site


def strongest_edges(
    lm: LanguageModel,
    saes: Mapping[Site, SAE],
    tokens: Int[Tensor, "prompt token"],
    ranking: str = "leave_one_out",
    n: int = 10,
    seed: int = 0,
    memory: int | float = 8.0,
    special: Rule = "skip",
) -> dict[Site, pa.Table]:
    """The n strongest edges of every latent on each side (`up`, `down`), strongest first. Edges with score 0 are left
    out.

    Args:
        lm: the model that the SAEs read.
        saes: SAEs by site; those that cannot stand at an end of a block have no edges.
        tokens: the prompts on which edges are ranked.
        ranking: the name of a ranking.
        n: number of edges per latent and side.
        seed: seed of rankings that sample.
        memory: gigabytes that the computation may use.
        special: the rule for special tokens (lm/special.py); skipped tokens have no edges.

    Raises:
        UserError: the ranking does not score an edge by itself, or the memory is too small.
    """
    rule = find_edgewise(ranking, "edges of features").rule
    saes = {site: sae.to(lm.device) for site, sae in saes.items()}
    found: dict[Site, list[pa.Table]] = {site: [] for site in saes}
    plain = [site for site in sorted(saes) if saes[site].writes is None and not saes[site].decodes_from_input]
    later = {up: next((down for down in plain[n:] if lm.leads(up, down)), None) for n, up in enumerate(plain, start=1)}
    pairs = [(up, down) for up, down in later.items() if down is not None]
    with Bar("rank edges", len(pairs) * len(tokens)) as bar:
        for up, down in pairs:
            pair = Pair(lm, Block(up, down), saes[up], saes[down], special=lm.special_ids(special))
            room = columns_bytes(pair, memory, tokens.shape[1])
            of_up = _Best.none(pair.up.d_sae, n)
            for columns, here in summed(rule, RankingJob(pair, tokens, seed, bar.step, room)):
                scores = here.cpu()
                of_up = of_up.merge(_Best.of(scores, columns.start, n))
                found[down].append(_table(_Best.of(scores.T, 0, n), columns.start, "up", up))
            found[up].append(_table(of_up, 0, "down", down))
    return {
        site: by_latent(pa.concat_tables(tables)) if tables else EDGES.empty_table() for site, tables in found.items()
    }


class _Best(NamedTuple):
    """The strongest edges of some latents so far, strongest first. A score of 0 marks an empty entry."""

    score: Float[Tensor, "latent n"]
    other: Int[Tensor, "latent n"]

    @classmethod
    def none(cls, n_latents: int, n: int) -> "_Best":
        return cls(torch.zeros(n_latents, n), torch.zeros(n_latents, n, dtype=torch.long))

    @classmethod
    def of(cls, scores: Float[Tensor, "latent other"], first: int, n: int) -> "_Best":
        """The strongest of these edges. The other latents are numbered from `first`."""
        best = scores.topk(min(n, scores.shape[1]), dim=1)
        return cls(best.values, best.indices + first)

    def merge(self, more: "_Best") -> "_Best":
        """The strongest edges of both."""
        best = torch.cat([self.score, more.score], 1).topk(self.score.shape[1], dim=1)
        return _Best(best.values, torch.cat([self.other, more.other], 1).gather(1, best.indices))


def _table(best: _Best, first: int, side: str, site: Site) -> pa.Table:
    """The edges as a table. The latents are numbered from `first`."""
    latent, place = (best.score > 0).nonzero(as_tuple=True)
    columns = {
        "latent": (latent + first).numpy().astype(np.int32),
        "side": [side] * len(latent),
        "site": [str(site)] * len(latent),
        "other": best.other[latent, place].numpy().astype(np.int32),
        "score": best.score[latent, place].numpy(),
    }
    return pa.table(columns, schema=EDGES)
