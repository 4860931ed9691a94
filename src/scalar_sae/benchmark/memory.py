"""What scoring a pair keeps in memory, and how a budget is met.

Two things grow with the number of possible edges: their scores (4 bytes) and their levels (1 byte). Ranking also sums
squared effects in float64, for as many downstream latents at a time as the budget leaves room for. Local edges have
both anew for the slots of every prompt, and are ordered as many tokens at a time as fit.
"""

from scalar_sae.benchmark.edges import ORDER_BYTES
from scalar_sae.benchmark.pair import Pair
from scalar_sae.errors import UserError

WORKSPACE = 2**29
"""Activations, logits and whatever else is chunked to a fixed size."""
MOST_RANKING = 2**30


def ranking_bytes(pair: Pair, gigabytes: float, n_token: int, an_edge: int) -> int:
    """Bytes for the float64 sums of a ranking under a budget for the whole process; it holds some bytes an edge.

    Raises:
        UserError: the budget is too small for a single downstream latent at a time.
    """
    ranking = _weights(pair) + WORKSPACE + an_edge * pair.n_edges
    least = max(ranking + 8 * pair.up.d_sae, _sweep(pair, n_token) + 5 * pair.n_edges)
    return _left(pair, gigabytes, ranking, least)


def columns_bytes(pair: Pair, gigabytes: float) -> int:
    """Bytes for ranking some downstream latents at a time, where no matrix of all edges is kept: 12 an edge.

    Raises:
        UserError: the budget is too small for a single downstream latent at a time.
    """
    held = _weights(pair) + WORKSPACE
    return _left(pair, gigabytes, held, held + 12 * pair.up.d_sae) * 8 // 12


def local_bytes(pair: Pair, gigabytes: float, n_token: int, n_slot: int) -> int:
    """Bytes for ordering the local edges of some tokens at a time.

    Raises:
        UserError: the budget is too small for one token at a time.
    """
    edges = n_slot * pair.down.d_sae
    held = _sweep(pair, n_token) + 5 * n_token * edges
    return _left(pair, gigabytes, held, held + ORDER_BYTES * edges)


def _weights(pair: Pair) -> int:
    """Of the model and both SAEs."""
    weights = sum(p.numel() * p.element_size() for p in pair.lm.parameters())
    ends = {id(sae): sae for sae in (pair.up, pair.down)}.values()
    return weights + sum(t.numel() * 4 for sae in ends for t in (sae.W_enc, sae.W_dec))


def _sweep(pair: Pair, n_token: int) -> int:
    """What a sweep holds beside the edges."""
    readout = 4 * pair.down.d_sae * 5 * pair.lm.d_model  # down's encoder times the MLP's output matrix
    return _weights(pair) + WORKSPACE + readout + 40 * n_token * pair.down.d_sae


def _left(pair: Pair, gigabytes: float, held: int, least: int) -> int:
    """What a budget leaves beside what is held."""
    if gigabytes < least / 1e9:
        raise UserError(
            f"memory {gigabytes:g} GB: {pair.up.d_sae:,} x {pair.down.d_sae:,} latents need {least / 1e9:.1f} GB at "
            "the least"
        )
    return min(MOST_RANKING, int(gigabytes * 1e9 - held))
