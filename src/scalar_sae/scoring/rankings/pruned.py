"""What removing one edge of a sub-circuit costs: the raw material of the ranking `pruned`.

`ablation` removes an edge from the full circuit, where a lost input is often made good by others. In a small circuit
it is not. So edges are removed in rounds, the least costly half of those left each time, and after each round the cost
of every edge that is left is found anew, in the sub-circuit that is left: for a downstream latent j that keeps the
upstream latents S,

    cost(i, j) = sum over tokens of (a_j(S without i) - a_j)^2 - (a_j(S) - a_j)^2

a_j is j's activation in the full circuit and a_j(.) its activation, after selection, when it alone is recomputed. The
cost is negative where a circuit is better without the edge. In the first round S is everything and this is `ablation`.
A latent whose last edge goes is taken for what it is without any input: that a sub-circuit then leaves it out is not
part of the cost.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.scoring.sweep import per_prompt, per_token
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import GlobalEdges


@torch.no_grad()
def add_costs(
    pair: Pair,
    readout: Readout,
    kept: Bool[Tensor, "n_up n_down"],
    edges: GlobalEdges,
    prompt: Prompt,
    columns: slice,
    total: Float[Tensor, "n_up n_col"],
) -> None:
    """Add a prompt's costs of the kept edges to some downstream latents to `total`, float64.

    `edges` are the kept ones, at level 0.
    """
    full = pair.pre_acts(pair.reconstruct(prompt.z, prompt).unsqueeze(0), prompt)[0]
    error = _Error(pair, pair.down.activation.competing_threshold(full), pair.down.activation.select(full))
    if pair.block.mixes_tokens:
        costs = _over_prompt(pair, readout, kept, prompt, columns, error)
    else:
        costs = _at_tokens(readout, edges, prompt, columns, error)
    for latent, column, cost in costs:
        total.view(-1).index_add_(0, latent * total.shape[1] + column - columns.start, cost.double())


class _Error:
    """Squared distance of activations from those of the full circuit."""

    def __init__(
        self, pair: Pair, competing_threshold: Float[Tensor, "token n_down"], acts: Float[Tensor, "token n_down"]
    ) -> None:
        self._rule, self._competing_threshold, self._acts = pair.down.activation, competing_threshold, acts

    def __call__(
        self, pre_acts: Float[Tensor, " entry"], token: Int[Tensor, " entry"], latent: Int[Tensor, " entry"]
    ) -> Float[Tensor, " entry"]:
        now = self._rule.activate_independently(
            pre_acts.unsqueeze(0), self._competing_threshold[token, latent].unsqueeze(0)
        )[0]
        return (now - self._acts[token, latent]).square()


_Costs = Iterator[tuple[Int[Tensor, " edge"], Int[Tensor, " edge"], Float[Tensor, " edge"]]]
"""(upstream latent, downstream latent, cost), an edge as often as it is met."""


def _at_tokens(readout: Readout, edges: GlobalEdges, prompt: Prompt, columns: slice, error: _Error) -> _Costs:
    """Where tokens do not interact: the cost at every token at which the upstream latent is used."""
    for some, shares in per_token.pieces(readout, prompt, edges, columns):
        sets = _Sets.of(some.keep_index == 0)
        value = per_token.evaluated(
            readout, prompt, some, shares, sets.token, sets.column, sets.codes(), sets.kept_slots
        )
        token, column = sets.token + some.rows.start, sets.column + some.columns.start
        n_whole, cost = sets.compare(error(value, token, column))
        yield prompt.slots.latent[token[n_whole:], sets.without[n_whole:]], column[n_whole:], cost


@dataclass(frozen=True, eq=False)
class _Sets:
    """Kept sets of latents at tokens: first all that keep anything, as they are, then each without one of its slots."""

    kept: Bool[Tensor, "token n_col slot"]
    token: Int[Tensor, " set"]
    column: Int[Tensor, " set"]
    without: Int[Tensor, " set"]
    """The slot that is left out; -1: none."""

    @classmethod
    def of(cls, kept: Bool[Tensor, "token n_col slot"]) -> "_Sets":
        """The sets of some tokens and latents."""
        token, column = kept.any(-1).nonzero(as_tuple=True)
        tokens, columns, slot = kept.nonzero(as_tuple=True)
        without = torch.cat([torch.full_like(token, -1), slot])
        return cls(kept, torch.cat([token, tokens]), torch.cat([column, columns]), without)

    def codes(self) -> Int64[Tensor, " set"]:
        """A number for each set."""
        numbers = per_token.codes(self.kept.shape[-1], self.kept.device)
        whole = (self.kept * numbers).sum(-1)[self.token, self.column]
        return whole - torch.where(self.without < 0, 0, numbers[self.without])

    def kept_slots(self, at: Int[Tensor, " row"]) -> Bool[Tensor, "row slot"]:
        """The slots of some of the sets."""
        slot = torch.arange(self.kept.shape[-1], device=at.device)
        return self.kept[self.token[at], self.column[at]] & (slot != self.without[at].unsqueeze(1))

    def compare(self, error: Float[Tensor, " set"]) -> tuple[int, Float[Tensor, " edge"]]:
        """How many sets are whole, and the errors of the others less those of the sets they come from."""
        n_whole = int((self.without < 0).sum())
        whole = error.new_zeros(self.kept.shape[:2])
        whole[self.token[:n_whole], self.column[:n_whole]] = error[:n_whole]
        return n_whole, error[n_whole:] - whole[self.token[n_whole:], self.column[n_whole:]]


def _over_prompt(
    pair: Pair, readout: Readout, kept: Bool[Tensor, "n_up n_down"], prompt: Prompt, columns: slice, error: _Error
) -> _Costs:
    """Where they do: the cost over the whole prompt, from which the latent is gone at every token."""
    slots, adds, n_token = prompt.slots, per_prompt.Adds(pair, prompt.slots), len(prompt.z)
    used = slots.latent[slots.used].unique()
    mine = kept[used, columns]
    if not mine.any():
        return
    (whole,) = mine.any(0).nonzero(as_tuple=True)
    row, column = mine.nonzero(as_tuple=True)
    without = torch.cat([torch.full_like(whole, -1), used[row]])
    down = torch.cat([whole, column]) + columns.start
    errors: list[Tensor] = []
    batch = per_prompt.n_passes(readout, prompt)
    for gone, latent in zip(without.split(batch), down.split(batch), strict=True):
        sets = kept[slots.latent.unsqueeze(1), latent.view(1, -1, 1)] & slots.used.unsqueeze(1)
        sets &= slots.latent.unsqueeze(1) != gone.view(1, -1, 1)
        value = per_prompt.evaluated(readout, adds, prompt, latent, sets)
        token = torch.arange(n_token, device=latent.device).repeat(len(latent))
        errors.append(error(value.flatten(), token, latent.repeat_interleave(n_token)).view(-1, n_token).sum(1))
    found = torch.cat(errors)
    before = found.new_zeros(mine.shape[1])
    before[whole] = found[: len(whole)]
    yield used[row], column + columns.start, found[len(whole) :] - before[column]
