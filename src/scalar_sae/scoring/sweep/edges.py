"""Which edges does each edge count keep, seen from a prompt: one map for the whole text, or a new one at every token.

`GlobalEdges` are a position-free circuit: n counts edges of the map. `LocalEdges` are chosen at every token by their
effect there, as in an attribution graph: n counts edges per token. A sweep asks both the same question.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.scoring.rankings.order import NOT_KEPT

ORDER_BYTES = 40
"""What ordering an edge takes while it lasts: its effect twice, its index, and as much again for the sort."""


@dataclass(frozen=True, eq=False)
class EdgeTile:
    """The edges from the active latents at some of a prompt's tokens to some downstream latents."""

    rows: slice
    columns: slice
    n_down: int
    keep_index: UInt8[Tensor, "token n_col active"]
    """Index of the first count that keeps the edge; NOT_KEPT in padding."""
    first: UInt8[Tensor, "token n_col"]
    """Index of the first count at which the downstream latent has an edge at all."""
    n_used: Int[Tensor, " token"]
    """Number of active upstream latents."""

    def flat_index(self, token: Int[Tensor, " n"], column: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Flat index into [token, n_down] of the whole prompt."""
        return (token + self.rows.start) * self.n_down + column + self.columns.start


class Parts(NamedTuple):
    """What the upstream site is made of when a downstream latent is recomputed."""

    start: Float[Tensor, "token d_model"]
    """What is there whatever is kept."""
    adds: Float[Tensor, "token active"]
    """What a kept active latent adds to it along its decoder row."""
    empty: Float[Tensor, "token d_model"]
    """What is there when nothing is kept."""


@runtime_checkable
class Edges(Protocol):
    """What a sweep asks."""

    def parts(self, pair: Pair, prompt: Prompt) -> Parts:
        """What the upstream site is made of."""
        ...

    def unkept(self, pair: Pair) -> "Unkept | None":
        """What stands in for edges that are not kept, where it depends on the downstream latent and the count."""
        ...

    def here(self, prompt: Prompt, rows: slice, columns: slice) -> EdgeTile:
        """The edges of some tokens and downstream latents."""
        ...

    def keep_index_at(
        self, prompt: Prompt, token: Int[Tensor, " n"], latent: Int[Tensor, " n"]
    ) -> UInt8[Tensor, "n active"]:
        """Keep indices of the edges from a token's active latents to a downstream latent."""
        ...


@dataclass(frozen=True, eq=False)
class Unkept:
    """The means of upstream latents without a kept edge, under mean ablation.

    Such a latent adds its mean at every token, whether or not it is active there. What these latents add together
    depends on the downstream latent and on the count, and on no token.
    """

    keep_index: UInt8[Tensor, "n_up n_down"]
    adds: Float[Tensor, "n_up d_model"]
    """What the mean of each upstream latent adds."""

    def of(self, column: Int[Tensor, " row"], count: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
        """Their sum, for a downstream latent at a count in each row."""
        return (self.keep_index[:, column] > count).T.float() @ self.adds

    def gained(self, columns: slice, n_counts: int) -> Int[Tensor, "n_counts n_col"]:
        """How many edges each count adds to some downstream latents."""
        keep_index = self.keep_index[:, columns].long().clamp(max=n_counts)
        gained = keep_index.new_zeros(n_counts + 1, keep_index.shape[1])
        return gained.scatter_add_(0, keep_index, torch.ones_like(keep_index))[:-1]


class GlobalEdges:
    """One circuit for every token: the keep indices of a ranking."""

    def __init__(self, keep_index: UInt8[Tensor, "n_up n_down"]) -> None:
        self.keep_index = keep_index
        self._first = keep_index.amin(0)

    def parts(self, pair: Pair, prompt: Prompt) -> Parts:
        """What the upstream site is made of, but for what `unkept` adds."""
        return Parts(pair.bias(prompt), prompt.active.adds, pair.base(prompt))

    def unkept(self, pair: Pair) -> "Unkept | None":
        """The means of the latents without a kept edge; None under zero ablation."""
        if pair.ablation_value is None:
            return None
        return Unkept(self.keep_index, pair.ablation_value.unsqueeze(1) * pair.up.W_dec)

    def here(self, prompt: Prompt, rows: slice, columns: slice) -> EdgeTile:
        """The edges of some tokens and downstream latents."""
        active = prompt.active.of_tokens(rows)
        keep_index = self.keep_index[:, columns][active.latent].masked_fill(~active.used.unsqueeze(-1), NOT_KEPT)
        first = self._first[columns].expand(len(keep_index), -1)
        n_down = self.keep_index.shape[1]
        return EdgeTile(rows, columns, n_down, keep_index.transpose(1, 2).contiguous(), first, active.used.sum(1))

    def keep_index_at(
        self, prompt: Prompt, token: Int[Tensor, " n"], latent: Int[Tensor, " n"]
    ) -> UInt8[Tensor, "n active"]:
        """Keep indices of the edges from a token's active latents to a downstream latent."""
        return self.keep_index[prompt.active.latent[token], latent.unsqueeze(1)]


class LocalEdges:
    """A circuit for every token: the edges from its active latents in the order of their effect.

    Latents that are not active at a token have no edges there. They stay at zero, also under mean ablation.
    """

    def __init__(
        self,
        effect: Float[Tensor, "token active n_down"],
        counts: Int[Tensor, " n_counts"],
        prompt: Prompt,
        room: int = 2**28,
    ) -> None:
        """Order the edges of every token.

        Args:
            effect: what edges are ordered by; ties are taken in the order of the latents.
            counts: edges kept per token, ascending.
            prompt: whose active latents the effects belong to.
            room: bytes for ordering; tokens are ordered as many at a time as fit.
        """
        n_token, n_active, n_down = effect.shape
        self._last = torch.tensor(len(counts) - 1, dtype=torch.uint8, device=effect.device)
        by_rank = torch.searchsorted(counts, torch.arange(n_active * n_down, device=effect.device), right=True)
        by_rank = by_rank.masked_fill(by_rank == len(counts), NOT_KEPT).byte()
        self._keep_index = torch.empty(n_token, n_down, n_active, dtype=torch.uint8, device=effect.device)
        padding = ~prompt.active.used.unsqueeze(-1)
        width = max(1, room // (ORDER_BYTES * n_active * n_down))
        for start in range(0, n_token, width):
            rows = slice(start, start + width)
            flat = effect[rows].masked_fill(padding[rows], -torch.inf).flatten(1)
            order = flat.sort(dim=1, descending=True, stable=True).indices
            keep_index = torch.empty_like(flat, dtype=torch.uint8).scatter_(1, order, by_rank.expand_as(order))
            self._keep_index[rows] = (
                keep_index.view(-1, n_active, n_down).masked_fill(padding[rows], NOT_KEPT).transpose(1, 2)
            )

    def parts(self, pair: Pair, prompt: Prompt) -> Parts:
        """What the upstream site is made of."""
        ablated = pair.with_active_ablated(prompt)
        return Parts(ablated, prompt.active.change, ablated)

    def unkept(self, pair: Pair) -> "Unkept | None":
        """Nothing beyond `parts`."""
        return None

    def here(self, prompt: Prompt, rows: slice, columns: slice) -> EdgeTile:
        """The edges of some tokens and downstream latents."""
        keep_index = self._keep_index[rows, columns]
        n_used = prompt.active.used[rows].sum(1)
        first = torch.where(n_used.unsqueeze(1) > 0, keep_index.amin(-1), self._last)  # a silent token: with all edges
        return EdgeTile(rows, columns, self._keep_index.shape[1], keep_index, first, n_used)

    def keep_index_at(
        self, prompt: Prompt, token: Int[Tensor, " n"], latent: Int[Tensor, " n"]
    ) -> UInt8[Tensor, "n active"]:
        """Keep indices of the edges from a token's active latents to a downstream latent."""
        return self._keep_index[token, latent]
