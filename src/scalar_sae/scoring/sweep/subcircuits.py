"""The exact sweep: downstream pre-activations of every sub-circuit along a ranking, from few edges to many.

For an edge set E and every downstream latent j with at least one kept edge (see README.md):

    p_j(E) = pre-activation j of down's encoder on F(up.decode(z restricted to {i : (i, j) in E}))

and zero for the others. The edge sets of a sweep are nested, so only what changes from one count to the next is
computed: per token where tokens do not interact (per_token.py), per prompt where they do (per_prompt.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.scoring.sweep import per_prompt, per_token
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import Edges

LIVE_BYTES = 2**27
"""Live downstream latents are looked at so many at a time that the levels and places of their edges fit this."""


@dataclass(frozen=True, eq=False)
class SubCircuit:
    """One prompt under one edge set."""

    pre_acts: Float[Tensor, "token n_down"]
    """p(E); overwritten by the next step of the sweep."""
    acts: Float[Tensor, "token n_down"]
    """Downstream latent activations: the activation rule applied once to the assembled vector."""
    live_edges: Int[Tensor, " token"]
    """Kept edges whose two latents are live at the token."""


@torch.no_grad()
def sweep(
    pair: Pair,
    prompt: Prompt,
    edges: Edges,
    n_counts: int,
    readout: Readout | None = None,
    select: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[SubCircuit]:
    """The sub-circuits of one prompt at the edge counts 0, 1, ..., n_counts - 1 of a ranking.

    Args:
        pair: what is scored.
        prompt: one of its prompts.
        edges: which edges each count keeps.
        n_counts: how many counts to yield.
        readout: the pair's, where the caller has it already.
        select: from the assembled pre-activations to activations; by default down's rule.
    """
    select = select or pair.down.activation.select
    how = per_prompt if pair.block.mixes_tokens else per_token
    steps: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(n_counts)]  # places and values
    for change in how.updates(pair, readout or Readout.of(pair), prompt, edges, n_counts):
        by_count = change.count.sort(stable=True)
        counts, sizes = (part.tolist() for part in by_count.values.unique_consecutive(return_counts=True))
        for count, at in zip(counts, by_count.indices.split(sizes), strict=True):
            steps[count].append((change.place[at], change.value[at]))
    pre_acts = prompt.z.new_zeros(len(prompt.z), pair.down.d_sae)
    for index, step in enumerate(steps):
        for place, value in step:
            pre_acts.view(-1)[place] = value
        acts = select(pre_acts)
        yield SubCircuit(pre_acts, acts, _live_edges(prompt, edges, acts, index))


def _live_edges(prompt: Prompt, edges: Edges, acts: Float[Tensor, "token n_down"], index: int) -> Int[Tensor, " token"]:
    token, latent = (acts > 0).nonzero(as_tuple=True)
    width = max(1, LIVE_BYTES // (12 * prompt.slots.latent.shape[1]))
    total = torch.zeros(len(acts), dtype=torch.long, device=acts.device)
    for t, j in zip(token.split(width), latent.split(width), strict=True):
        kept = edges.levels_at(prompt, t, j) <= index
        total.index_add_(0, t, (kept & prompt.slots.live[t]).sum(1))
    return total
