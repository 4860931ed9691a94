"""The strongest edges of each latent to the SAEs before and after it, under one of the benchmark's rankings.

    tables = strongest_edges(lm, {site: sae, ...}, tokens)    # one a site: latent, side, site, other, score

Sites are taken in the order of the forward pass, and each SAE is paired with the next.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.benchmark.pair import Pair
from scalar_sae.benchmark.ranking import rank
from scalar_sae.lm.model import LanguageModel
from scalar_sae.runs import Bar
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Block, Site

SCHEMA = pa.schema({"latent": pa.int32(), "side": pa.string(), "site": pa.string(), "other": pa.int32(),
                    "score": pa.float32()})  # fmt: skip


def strongest_edges(
    lm: LanguageModel,
    saes: Mapping[Site, SAE],
    tokens: Int[Tensor, "prompt token"],
    ranking: str = "ablation",
    n: int = 10,
    seed: int = 0,
) -> dict[Site, pa.Table]:
    """The n strongest edges of every latent on either side (`up`, `down`), strongest first; edges of 0 left out.

    Args:
        lm: the model the SAEs read.
        saes: by site; those that a block cannot begin or end at have no edges.
        tokens: the ranking text.
        ranking: one of the benchmark's.
        n: edges a latent and side.
        seed: of what a ranking samples.
    """
    found: dict[Site, list[pa.Table]] = {site: [] for site in saes}
    plain = [site for site in sorted(saes) if saes[site].writes is None and not saes[site].decodes_from_input]
    with Bar("rank edges", max(0, len(plain) - 1) * len(tokens)) as bar:
        for up, down in pairwise(plain):
            pair = Pair(lm, Block(up, down), saes[up], saes[down])
            scores = rank(pair, tokens, ranking, seed, bar.step)
            found[up].append(_table(scores, "down", down, n))
            found[down].append(_table(scores.T, "up", up, n))
    return {site: pa.concat_tables(tables) if tables else SCHEMA.empty_table() for site, tables in found.items()}


def _table(scores: Float[Tensor, "n_mine n_other"], side: str, site: Site, n: int) -> pa.Table:
    best = scores.topk(min(n, scores.shape[1]), dim=1)
    latent, place = (best.values > 0).nonzero(as_tuple=True)
    columns = {
        "latent": latent.numpy().astype(np.int32),
        "side": [side] * len(latent),
        "site": [str(site)] * len(latent),
        "other": best.indices[latent, place].numpy().astype(np.int32),
        "score": best.values[latent, place].numpy(),
    }
    return pa.table(columns, schema=SCHEMA)
