"""The exact sweep: downstream pre-activations of every sub-circuit along a ranking, from few edges to many.

For an edge set E and every downstream latent j (see README.md):

    p_j(E) = pre-activation j of down's encoder on F(up.decode(z where (i, j) in E, ablated elsewhere))

The edge sets of a sweep are nested, so only what changes from one count to the next is computed. Where tokens do not
interact this is done per token (per_token.py), or under mean ablation per downstream latent (per_latent.py). Where they
do it is done per prompt (per_prompt.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.scoring.conventions import EXACT, Conventions
from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.scoring.sweep import per_latent, per_prompt, per_token
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import Edges
from scalar_sae.scoring.sweep.per_token import Updates

LIVE_BYTES = 2**27
"""Live downstream latents are looked at so many at a time that the keep indices and places of their edges fit this."""


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
    conventions: Conventions = EXACT,
) -> Iterator[SubCircuit]:
    """The sub-circuits of one prompt at the edge counts 0, 1, ..., n_counts - 1 of a ranking.

    Args:
        pair: what is scored.
        prompt: one of its prompts.
        edges: which edges each count keeps.
        n_counts: how many counts to yield.
        readout: the pair's, where the caller has it already.
        conventions: ours or the authors'.
    """
    steps: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(n_counts)]  # places and values
    for change in _updates(pair, readout or Readout.of(pair), prompt, edges, n_counts):
        by_count = change.count.sort(stable=True)
        counts, sizes = (part.tolist() for part in by_count.values.unique_consecutive(return_counts=True))
        for count, at in zip(counts, by_count.indices.split(sizes), strict=True):
            steps[count].append((change.flat_index[at], change.value[at]))
    pre_acts = conventions.without_edges(pair.pre_acts(edges.parts(pair, prompt).empty.unsqueeze(0), prompt)[0])
    for index, step in enumerate(steps):
        for flat_index, value in step:
            pre_acts.view(-1)[flat_index] = value
        acts = conventions.select(pair, pre_acts)
        yield SubCircuit(pre_acts, acts, _live_edges(prompt, edges, acts, index))


def _updates(pair: Pair, readout: Readout, prompt: Prompt, edges: Edges, n_counts: int) -> Iterator[Updates]:
    """Every change of a downstream pre-activation, in the cheapest way."""
    if pair.block.mixes_tokens:
        return per_prompt.updates(pair, readout, prompt, edges, n_counts)
    unkept = edges.unkept(pair)
    if unkept is None:
        return per_token.updates(pair, readout, prompt, edges, n_counts)
    return per_latent.updates(pair, readout, prompt, edges, unkept, n_counts)


def _live_edges(prompt: Prompt, edges: Edges, acts: Float[Tensor, "token n_down"], index: int) -> Int[Tensor, " token"]:
    token, latent = (acts > 0).nonzero(as_tuple=True)
    width = max(1, LIVE_BYTES // (12 * prompt.active.latent.shape[1]))
    total = torch.zeros(len(acts), dtype=torch.long, device=acts.device)
    for t, j in zip(token.split(width), latent.split(width), strict=True):
        kept = edges.keep_index_at(prompt, t, j) <= index
        total.index_add_(0, t, (kept & prompt.active.used[t]).sum(1))
    return total
