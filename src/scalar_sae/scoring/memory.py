"""What scoring a pair keeps in memory, and how a budget is met.

Two things grow with the number of possible edges: their scores (4 bytes) and their keep indices (1 byte). Three stages
follow each other, and the largest counts. Ranking holds the scores, and sums squared effects in float64, for as many
downstream latents at a time as the budget leaves room for. Ordering holds scores and keep indices. A sweep holds the
keep indices and a prompt's changes of downstream latents: at most one per count, or one per upstream latent that a
token uses. What a stage has freed goes back to the system before the next. Local edges have scores and keep indices of
their own for the active latents of every prompt. They are ordered as many tokens at a time as fit. Each of several
workers (`torchrun`) has a budget of its own.
"""

import math

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import GroupMax, TopK
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.sweep.edges import ORDER_BYTES

PROCESS = 450_000_000
"""Python, PyTorch and transformers, before any weights."""
WORKSPACE = 2**29
"""Activations, logits and whatever else is chunked to a fixed size."""
MOST_RANKING = 2**30
SUM_BYTES = 16
"""What a float64 sum takes: itself, its root in float32, and the root of the sum before it."""
PLACE_BYTES = 40
"""What a downstream latent takes at a token: its pre-activation, its activation and what selects it, all copied."""
CHANGE_BYTES = 12
"""What a change along a sweep takes: its place and its value."""
OUTPUT_BYTES = 8
"""What a token takes for each entry of the vocabulary during a sweep: the log-probabilities of the model and of the
full circuit. Those of sub-circuits are made for a few tokens at a time.
"""
LABEL_BYTES = 28
"""What it takes while a ranking draws labels (`fisher`), one label at a time: log-probabilities and their gradients.
"""


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
    held = beside + _always(pair) + WORKSPACE
    ranking = held + _prompt(pair, n_token) + an_edge * pair.n_edges
    ordering = held + 5 * pair.n_edges
    sweep = beside + _sweep(pair, n_token, n_counts) + pair.n_edges
    least = max(ranking + SUM_BYTES * pair.up.d_sae, ordering, sweep)
    return min(MOST_RANKING, _left(pair, gigabytes, ranking, least) * 8 // SUM_BYTES)


def columns_bytes(pair: Pair, gigabytes: float, n_token: int) -> int:
    """Bytes for ranking some downstream latents at a time on prompts of so many tokens, where no matrix of all edges
    is kept.

    Raises:
        UserError: the budget is too small for a single downstream latent at a time.
    """
    held = _always(pair) + WORKSPACE + _prompt(pair, n_token)
    return min(MOST_RANKING, _left(pair, gigabytes, held, held + SUM_BYTES * pair.up.d_sae) * 8 // SUM_BYTES)


def local_bytes(pair: Pair, gigabytes: float, n_token: int, n_counts: int, n_active: int) -> int:
    """Bytes for ordering the local edges of some tokens at a time.

    Raises:
        UserError: the budget is too small for one token at a time.
    """
    edges = n_active * pair.down.d_sae
    held = _sweep(pair, n_token, n_counts) + 5 * n_token * edges
    return min(MOST_RANKING, _left(pair, gigabytes, held, held + ORDER_BYTES * edges))


def fewest_active(pair: Pair) -> int:
    """The fewest latents that are active at a token, as far as this is known before one is read."""
    return _k(pair) or 1


def resident(pair: Pair) -> int:
    """What a further pair of a circuit holds while another one is ranked or swept: an SAE and its readout."""
    return 4 * (pair.up.W_enc.numel() + pair.up.W_dec.numel()) + _readout(pair)


def _always(pair: Pair) -> int:
    """The process, the model, the layers of the block in float32 and both SAEs."""
    weights = sum(p.numel() * p.element_size() for p in pair.lm.parameters())
    weights += pair.lm.copied(pair.block.up, pair.block.down)
    ends = {id(sae): sae for sae in (pair.up, pair.down)}.values()
    return PROCESS + weights + sum(t.numel() * 4 for sae in ends for t in (sae.W_enc, sae.W_dec))


def _sweep(pair: Pair, n_token: int, n_counts: int) -> int:
    """What a sweep holds beside the edges."""
    used = _k(pair) if pair.ablation_value is None else None
    used = used or pair.up.d_sae  # under mean ablation every upstream latent
    if pair.block.mixes_tokens:  # an upstream latent of any token changes all of them
        used = min(used * n_token, pair.up.d_sae)
    changes = CHANGE_BYTES * min(n_counts, used + 1)
    places = (PLACE_BYTES + changes) * n_token * pair.down.d_sae
    return _always(pair) + WORKSPACE + _readout(pair) + places + OUTPUT_BYTES * n_token * pair.lm.d_vocab


def _k(pair: Pair) -> int | None:
    """How many upstream latents every token uses, where that is fixed."""
    rule = pair.up.activation
    return rule.k if isinstance(rule, (TopK, GroupMax)) else None


def _prompt(pair: Pair, n_token: int) -> int:
    """What a prompt takes while edges are ranked on it."""
    labels = LABEL_BYTES * n_token * pair.lm.d_vocab
    return PLACE_BYTES * n_token * pair.down.d_sae + labels


def _readout(pair: Pair) -> int:
    """Down's encoder times the MLP's output matrix."""
    return 4 * pair.down.d_sae * 5 * pair.lm.d_model


def _left(pair: Pair, gigabytes: float, held: int, least: int) -> int:
    """What a budget leaves beside what is held."""
    if gigabytes < least / 1e9:
        enough = math.ceil(least / 1e8) / 10
        raise UserError(
            f"memory {gigabytes:g} GB: {pair.up.d_sae:,} x {pair.down.d_sae:,} latents need {enough} GB at the least"
        )
    return int(gigabytes * 1e9 - held)
