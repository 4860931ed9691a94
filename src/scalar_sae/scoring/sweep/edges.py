"""Which edges does each edge count keep, seen from a prompt: one map for the whole text, or a new one at every token.

`GlobalEdges` are a position-free circuit: n counts edges of the map. `LocalEdges` are chosen at every token by their
effect there, as in an attribution graph: n counts edges per token. A sweep asks both the same question.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from scalar_sae.scoring.pair import Prompt
from scalar_sae.scoring.rankings.order import NOT_KEPT

ORDER_BYTES = 40
"""What ordering an edge takes while it lasts: its effect twice, its place, and as much again for the sort."""


@dataclass(frozen=True, eq=False)
class EdgeTile:
    """The edges from the slots of some of a prompt's tokens to some downstream latents."""

    rows: slice
    columns: slice
    n_down: int
    keep_index: UInt8[Tensor, "token n_col slot"]
    """Index of the first count that keeps the edge; NOT_KEPT in unused slots."""
    first: UInt8[Tensor, "token n_col"]
    """Index of the first count at which the downstream latent has an edge at all."""
    n_used: Int[Tensor, " token"]
    """Used slots."""

    def place(self, token: Int[Tensor, " n"], column: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Flat index into [token, n_down] of the whole prompt."""
        return (token + self.rows.start) * self.n_down + column + self.columns.start


@runtime_checkable
class Edges(Protocol):
    """What a sweep asks."""

    def here(self, prompt: Prompt, rows: slice, columns: slice) -> EdgeTile:
        """The edges of some tokens and downstream latents."""
        ...

    def levels_at(self, prompt: Prompt, token: Int[Tensor, " n"], latent: Int[Tensor, " n"]) -> UInt8[Tensor, "n slot"]:
        """Levels of the edges from a token's slots to a downstream latent."""
        ...


class GlobalEdges:
    """One circuit for every token: the levels of a ranking."""

    def __init__(self, keep_index: UInt8[Tensor, "n_up n_down"]) -> None:
        self._keep_index = keep_index
        self._first = keep_index.amin(0)

    def here(self, prompt: Prompt, rows: slice, columns: slice) -> EdgeTile:
        """The edges of some tokens and downstream latents."""
        slots = prompt.slots.of_tokens(rows)
        keep_index = self._keep_index[:, columns][slots.latent].masked_fill(~slots.used.unsqueeze(-1), NOT_KEPT)
        first = self._first[columns].expand(len(keep_index), -1)
        n_down = self._keep_index.shape[1]
        return EdgeTile(rows, columns, n_down, keep_index.transpose(1, 2).contiguous(), first, slots.used.sum(1))

    def levels_at(self, prompt: Prompt, token: Int[Tensor, " n"], latent: Int[Tensor, " n"]) -> UInt8[Tensor, "n slot"]:
        """Levels of the edges from a token's slots to a downstream latent."""
        return self._keep_index[prompt.slots.latent[token], latent.unsqueeze(1)]


class LocalEdges:
    """A circuit for every token: the edges from its slots in the order of their effect."""

    def __init__(
        self,
        effect: Float[Tensor, "token slot n_down"],
        counts: Int[Tensor, " n_counts"],
        prompt: Prompt,
        room: int = 2**28,
    ) -> None:
        """Order the edges of every token.

        Args:
            effect: size of an edge's effect; ties are taken in the order of the latents.
            counts: edges kept per token, ascending.
            prompt: whose slots the effects belong to.
            room: bytes for ordering; tokens are ordered as many at a time as fit.
        """
        n_token, n_slot, n_down = effect.shape
        self._last = torch.tensor(len(counts) - 1, dtype=torch.uint8, device=effect.device)
        by_rank = torch.searchsorted(counts, torch.arange(n_slot * n_down, device=effect.device), right=True)
        by_rank = by_rank.masked_fill(by_rank == len(counts), NOT_KEPT).byte()
        self._keep_index = torch.empty(n_token, n_down, n_slot, dtype=torch.uint8, device=effect.device)
        padding = ~prompt.slots.used.unsqueeze(-1)
        width = max(1, room // (ORDER_BYTES * n_slot * n_down))
        for start in range(0, n_token, width):
            rows = slice(start, start + width)
            flat = effect[rows].masked_fill(padding[rows], -1.0).flatten(1)
            order = flat.sort(dim=1, descending=True, stable=True).indices
            keep_index = torch.empty_like(flat, dtype=torch.uint8).scatter_(1, order, by_rank.expand_as(order))
            self._keep_index[rows] = (
                keep_index.view(-1, n_slot, n_down).masked_fill(padding[rows], NOT_KEPT).transpose(1, 2)
            )

    def here(self, prompt: Prompt, rows: slice, columns: slice) -> EdgeTile:
        """The edges of some tokens and downstream latents."""
        keep_index = self._keep_index[rows, columns]
        n_used = prompt.slots.used[rows].sum(1)
        first = torch.where(n_used.unsqueeze(1) > 0, keep_index.amin(-1), self._last)  # a silent token: with all edges
        return EdgeTile(rows, columns, self._keep_index.shape[1], keep_index, first, n_used)

    def levels_at(self, prompt: Prompt, token: Int[Tensor, " n"], latent: Int[Tensor, " n"]) -> UInt8[Tensor, "n slot"]:
        """Levels of the edges from a token's slots to a downstream latent."""
        return self._keep_index[token, latent]
