"""What scoring a pair keeps in memory, and how a budget is met.

Two things grow with the number of possible edges: their scores (4 bytes) and their levels (1 byte). Ranking also sums
squared effects in float64, for as many downstream latents at a time as the budget leaves room for.
"""

from scalar_sae.benchmark.pair import Pair
from scalar_sae.errors import UserError

WORKSPACE = 2**29
"""Activations, logits and whatever else is chunked to a fixed size."""
MOST_RANKING = 2**30


def ranking_bytes(pair: Pair, gigabytes: float, n_token: int) -> int:
    """Bytes for the float64 sums of a ranking under a budget for the whole process.

    Raises:
        UserError: the budget is too small for a single downstream latent at a time.
    """
    weights = sum(p.numel() * p.element_size() for p in pair.lm.parameters())
    ends = {id(sae): sae for sae in (pair.up, pair.down)}.values()
    weights += sum(t.numel() * 4 for sae in ends for t in (sae.W_enc, sae.W_dec))
    readout = 4 * pair.down.d_sae * 5 * pair.lm.d_model  # down's encoder times the MLP's output matrix
    ranking = weights + WORKSPACE + 4 * pair.n_edges
    sweep = weights + WORKSPACE + readout + 5 * pair.n_edges + 40 * n_token * pair.down.d_sae
    column = 8 * pair.up.d_sae
    least = max(ranking + column, sweep) / 1e9
    if gigabytes < least:
        raise UserError(
            f"memory {gigabytes:g} GB: {pair.up.d_sae:,} x {pair.down.d_sae:,} latents need {least:.1f} GB at the least"
        )
    return min(MOST_RANKING, int(gigabytes * 1e9 - ranking))
