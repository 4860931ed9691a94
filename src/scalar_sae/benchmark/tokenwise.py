"""Pre-activations at blocks where tokens do not interact: every distinct kept set of a token is computed once.

With k live latents at a token there are at most 2^k sets to keep, and all downstream latents and edge counts share
them: the block runs once per (token, set), then each downstream latent costs one dot product.
"""

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from scalar_sae.benchmark.pair import Pair

ROWS_AT_ONCE = 4096
"""Rows per call of the block: few enough that the work stays in the processor's cache."""


def entries(
    pair: Pair,
    adds: Float[Tensor, "token slot d_model"],
    level: UInt8[Tensor, "token slot n_down"],
    todo: list[Bool[Tensor, "token n_down"]],
) -> list[Float[Tensor, " n_todo"]]:
    """Pre-activations of the entries in `todo`, for each edge count.

    Args:
        pair: what is scored.
        adds: what each live latent adds to the upstream reconstruction.
        level: index of the first count that keeps the edge from a token's slot to a downstream latent.
        todo: per count, the (token, latent) entries to compute.
    """
    places = [mask.nonzero(as_tuple=True) for mask in todo]
    sizes = [len(token) for token, _ in places]
    token = torch.cat([token for token, _ in places])
    latent = torch.cat([latent for _, latent in places])
    count = torch.arange(len(todo)).repeat_interleave(torch.tensor(sizes))
    fingerprints = torch.cat([_fingerprints(level <= index)[mask] for index, mask in enumerate(todo)])
    _, which = fingerprints.unique(return_inverse=True)
    example = torch.empty(int(which.max()) + 1 if len(which) else 0, dtype=torch.long)
    example[which] = torch.arange(len(which))
    y = _block_outputs(pair, adds, level, token[example], latent[example], count[example])
    found = torch.empty(len(which))
    for rows in torch.arange(len(which)).split(ROWS_AT_ONCE):
        j = latent[rows]
        found[rows] = (y[which[rows]] * pair.down.W_enc.T[j]).sum(-1) + pair.down.b_enc[j]
    return list(found.split(sizes))


def _fingerprints(kept: Bool[Tensor, "token slot n_down"]) -> Int[Tensor, "token n_down"]:
    """A 64-bit number per (token, kept set): the sum of a random number per token and one per kept slot.

    Two different sets collide with probability 2^-64: for the million sets of a long prompt, once in 10^7 prompts.
    """
    n_token, n_slot, _ = kept.shape
    generator = torch.Generator().manual_seed(0)
    of_token, of_slot = (torch.randint(-(2**62), 2**62, (n,), generator=generator) for n in (n_token, n_slot))
    total = of_token.unsqueeze(1).repeat(1, kept.shape[2])
    for slot in range(n_slot):
        total += kept[:, slot] * of_slot[slot]
    return total


def _block_outputs(
    pair: Pair,
    adds: Float[Tensor, "token slot d_model"],
    level: UInt8[Tensor, "token slot n_down"],
    token: Int[Tensor, " row"],
    latent: Int[Tensor, " row"],
    count: Int[Tensor, " row"],
) -> Float[Tensor, "row d_model"]:
    """F on the upstream reconstruction from the slots that a latent keeps at a token and count."""
    y = torch.empty(len(token), pair.up.d_model)
    for rows in torch.arange(len(token)).split(ROWS_AT_ONCE):
        t = token[rows]
        kept = level[t, :, latent[rows]] <= count[rows].unsqueeze(1)
        x = (kept.unsqueeze(-1) * adds[t]).sum(1) + pair.up.b_dec
        y[rows] = pair.compute(x.unsqueeze(1)).squeeze(1)
    return y
