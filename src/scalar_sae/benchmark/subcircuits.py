"""The exact sweep: downstream pre-activations of every sub-circuit along a ranking, from few edges to many.

For an edge set E and every downstream latent j with at least one kept edge (see README.md):

    p_j(E) = pre-activation j of down's encoder on F(up.decode(z restricted to {i : (i, j) in E}))

and zero for the others. The edge sets of a sweep are nested, so *how many* live upstream latents of j are kept tells
*which* are: a latent is computed again only where that number has changed, all latents that keep none share one pass,
all that keep every one share another. At blocks without attention a token is a sub-circuit of its own, so "where" means
(token, latent); with attention it means the latent, in the whole prompt.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from scalar_sae.benchmark import tokenwise
from scalar_sae.benchmark.pair import Pair
from scalar_sae.benchmark.tokenwise import ROWS_AT_ONCE


@dataclass(frozen=True, eq=False)
class SubCircuit:
    """One prompt under one edge set."""

    pre_acts: Float[Tensor, "token n_down"]
    """p(E); overwritten by the next step of the sweep."""
    acts: Float[Tensor, "token n_down"]
    """Downstream latent activations: the selection rule applied once to the assembled vector."""
    live_edges: Int[Tensor, " token"]
    """Kept edges whose two latents are live at the token."""


@torch.no_grad()
def sweep(
    pair: Pair, z: Float[Tensor, "token n_up"], level: UInt8[Tensor, "n_up n_down"], n_counts: int
) -> Iterator[SubCircuit]:
    """The sub-circuits of one prompt at the edge counts 0, 1, ..., n_counts - 1 of a ranking.

    Args:
        pair: what is scored.
        z: upstream latent activations of the prompt.
        level: for every edge the index of the first count that keeps it (see ranking.levels).
        n_counts: how many counts to yield.
    """
    slots = LiveSlots.of(z)
    level_here = level[slots.latent].masked_fill(~slots.live.unsqueeze(-1), 255)  # token, slot, n_down
    ends = torch.stack([torch.zeros_like(z), z])
    without, with_all = pair.down.pre_acts(pair.compute(pair.up.decode(ends)))
    first = level.amin(0)  # the count at which a downstream latent gets its first edge
    changes = [_changed(pair, level_here, first, count) for count in range(n_counts)]
    whole = _number_kept(pair, slots.live.unsqueeze(-1))
    todo = [changed & (now > 0) & (now < whole) for changed, now in changes]
    adds = slots.contributions(pair)
    found = [] if pair.block.mixes_tokens else tokenwise.entries(pair, adds, level_here, todo)
    pre_acts = torch.zeros_like(with_all)
    for count, (changed, now) in enumerate(changes):
        kept = level_here <= count
        pre_acts = torch.where(changed & (now == 0), without, pre_acts)
        pre_acts = torch.where(changed & (now == whole) & (whole > 0), with_all, pre_acts)
        if pair.block.mixes_tokens:
            _evaluate_latents(pair, adds, kept, todo[count], pre_acts)
        else:
            pre_acts[todo[count]] = found[count]
        acts = pair.down.activation.select(pre_acts)
        yield SubCircuit(pre_acts, acts, ((acts > 0).unsqueeze(1) & kept).sum((1, 2)))


@dataclass(frozen=True, eq=False)
class LiveSlots:
    """The live latents of every token, in as many slots as the busiest token needs."""

    latent: Int[Tensor, "token slot"]
    live: Bool[Tensor, "token slot"]
    act: Float[Tensor, "token slot"]

    @classmethod
    def of(cls, z: Float[Tensor, "token n_up"]) -> "LiveSlots":
        """Gather the live latents of z."""
        n_slots = max(1, int((z > 0).sum(-1).max()))
        act, latent = z.topk(n_slots, dim=-1, sorted=False)
        return cls(latent, act > 0, act)

    def contributions(self, pair: Pair) -> Float[Tensor, "token slot d_model"]:
        """What each live latent adds to the upstream reconstruction."""
        return self.act.unsqueeze(-1) * pair.up.W_dec[self.latent]


def _changed(
    pair: Pair, level: UInt8[Tensor, "token slot n_down"], first: UInt8[Tensor, " n_down"], count: int
) -> tuple[Bool[Tensor, "token_or_1 n_down"], Int[Tensor, "token_or_1 n_down"]]:
    """Where a count keeps more than the one before, and how many live upstream latents it keeps there."""
    gained = _number_kept(pair, level == count) > 0
    return gained | (first == count), _number_kept(pair, level <= count)


def _number_kept(pair: Pair, kept: Bool[Tensor, "token slot n_down"]) -> Int[Tensor, "token_or_1 n_down"]:
    """How many live upstream latents are kept: per token, or in the whole prompt where tokens mix."""
    per_token = kept.sum(1)
    return per_token.sum(0, keepdim=True) if pair.block.mixes_tokens else per_token


def _evaluate_latents(
    pair: Pair,
    adds: Float[Tensor, "token slot d_model"],
    kept: Bool[Tensor, "token slot n_down"],
    todo: Bool[Tensor, "1 n_down"],
    pre_acts: Float[Tensor, "token n_down"],
) -> None:
    """Compute the columns `todo` of `pre_acts` at a block with attention: each latent is a whole prompt."""
    latents = todo[0].nonzero()[:, 0]
    for latent in latents.split(max(1, ROWS_AT_ONCE // len(pre_acts))) if len(latents) else ():
        x = torch.einsum("tsl,tsd->ltd", kept[:, :, latent].to(adds.dtype), adds) + pair.up.b_dec
        y = pair.compute(x)
        pre_acts[:, latent] = torch.einsum("ltd,dl->tl", y, pair.down.W_enc[:, latent]) + pair.down.b_enc[latent]
