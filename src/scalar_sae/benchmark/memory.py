"""What scoring a pair keeps in memory, and how a budget is met.

Two things grow with the number of possible edges: their scores (4 bytes) and their levels (1 byte). Ranking also sums
squared effects in float64, for as many downstream latents at a time as the budget leaves room for. Local edges have
both anew for the slots of every prompt, and are ordered as many tokens at a time as fit. A sweep holds a prompt's
changes of downstream latents: at the most one a count, or one an upstream latent that a token uses.
"""

import math

from scalar_sae.benchmark.edges import ORDER_BYTES
from scalar_sae.benchmark.pair import Pair
from scalar_sae.errors import UserError
from scalar_sae.saes.activation import GroupMax, TopK

WORKSPACE = 2**29
"""Activations, logits and whatever else is chunked to a fixed size."""
MOST_RANKING = 2**30
SUM_BYTES = 16
"""What a float64 sum takes: itself, its root in float32, and the root of the sum before it."""
CHANGE_BYTES = 12
"""What a change along a sweep takes: its place and its value."""


def ranking_bytes(pair: Pair, gigabytes: float, n_token: int, n_counts: int, an_edge: int, beside: int = 0) -> int:
    """Bytes for the float64 sums of a ranking under a budget for the whole process; it holds some bytes an edge.

    Args:
        pair: whose edges are ranked.
        gigabytes: the budget.
        n_token: tokens of a prompt.
        n_counts: edge counts of the sweep that follows.
        an_edge: bytes that the ranking holds for every edge.
        beside: bytes that are held for other pairs.

    Raises:
        UserError: the budget is too small for a single downstream latent at a time.
    """
    ranking = beside + _weights(pair) + WORKSPACE + _slots(pair, n_token) + an_edge * pair.n_edges
    least = max(ranking + SUM_BYTES * pair.up.d_sae, beside + _sweep(pair, n_token, n_counts) + 5 * pair.n_edges)
    return min(MOST_RANKING, _left(pair, gigabytes, ranking, least) * 8 // SUM_BYTES)


def columns_bytes(pair: Pair, gigabytes: float) -> int:
    """Bytes for ranking some downstream latents at a time, where no matrix of all edges is kept.

    Raises:
        UserError: the budget is too small for a single downstream latent at a time.
    """
    held = _weights(pair) + WORKSPACE
    return min(MOST_RANKING, _left(pair, gigabytes, held, held + SUM_BYTES * pair.up.d_sae) * 8 // SUM_BYTES)


def local_bytes(pair: Pair, gigabytes: float, n_token: int, n_counts: int, n_slot: int) -> int:
    """Bytes for ordering the local edges of some tokens at a time.

    Raises:
        UserError: the budget is too small for one token at a time.
    """
    edges = n_slot * pair.down.d_sae
    held = _sweep(pair, n_token, n_counts) + 5 * n_token * edges
    return min(MOST_RANKING, _left(pair, gigabytes, held, held + ORDER_BYTES * edges))


def resident(pair: Pair) -> int:
    """What a further pair of a circuit holds while another one is ranked or swept: an SAE and its readout."""
    return 4 * (pair.up.W_enc.numel() + pair.up.W_dec.numel()) + _readout(pair)


def _weights(pair: Pair) -> int:
    """Of the model and both SAEs."""
    weights = sum(p.numel() * p.element_size() for p in pair.lm.parameters())
    ends = {id(sae): sae for sae in (pair.up, pair.down)}.values()
    return weights + sum(t.numel() * 4 for sae in ends for t in (sae.W_enc, sae.W_dec))


def _sweep(pair: Pair, n_token: int, n_counts: int) -> int:
    """What a sweep holds beside the edges."""
    rule = pair.up.activation
    used = rule.k if isinstance(rule, (TopK, GroupMax)) and pair.fill is None else pair.up.d_sae
    if pair.block.mixes_tokens:  # an upstream latent of any token changes all of them
        used = min(used * n_token, pair.up.d_sae)
    changes = CHANGE_BYTES * min(n_counts, used + 1)
    a_place = 40 + changes
    return _weights(pair) + WORKSPACE + _readout(pair) + a_place * n_token * pair.down.d_sae + _slots(pair, n_token)


def _readout(pair: Pair) -> int:
    """Down's encoder times the MLP's output matrix."""
    return 4 * pair.down.d_sae * 5 * pair.lm.d_model


def _slots(pair: Pair, n_token: int) -> int:
    """Under mean ablation every upstream latent has a slot at every token: its place twice, its change and two marks;
    where tokens interact, what it adds too, and its decoder row.
    """
    if pair.fill is None:
        return 0
    adds = 8 * pair.up.d_model if pair.block.mixes_tokens else 0
    return n_token * pair.up.d_sae * (22 + adds)


def _left(pair: Pair, gigabytes: float, held: int, least: int) -> int:
    """What a budget leaves beside what is held."""
    if gigabytes < least / 1e9:
        enough = math.ceil(least / 1e8) / 10
        raise UserError(
            f"memory {gigabytes:g} GB: {pair.up.d_sae:,} x {pair.down.d_sae:,} latents need {enough} GB at the least"
        )
    return int(gigabytes * 1e9 - held)
