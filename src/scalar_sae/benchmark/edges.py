"""Which edges does each edge count keep, seen from a prompt: one map for the whole text, or a new one at every token.

`GlobalEdges` are a position-free circuit: n counts edges of the map. `LocalEdges` are chosen at every token by their
effect there, as in an attribution graph: n counts edges per token. A sweep asks both the same question.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from scalar_sae.benchmark.order import NEVER
from scalar_sae.benchmark.pair import Prompt


@dataclass(frozen=True, eq=False)
class Tokens:
    """The edges from the slots of some of a prompt's tokens to some downstream latents."""

    rows: slice
    columns: slice
    n_down: int
    level: UInt8[Tensor, "token n_col slot"]
    """Index of the first count that keeps the edge; NEVER in unused slots."""
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

    def here(self, prompt: Prompt, rows: slice, columns: slice) -> Tokens:
        """The edges of some tokens and downstream latents."""
        ...

    def levels_at(self, prompt: Prompt, token: Int[Tensor, " n"], latent: Int[Tensor, " n"]) -> UInt8[Tensor, "n slot"]:
        """Levels of the edges from a token's slots to a downstream latent."""
        ...


class GlobalEdges:
    """One circuit for every token: the levels of a ranking."""

    def __init__(self, level: UInt8[Tensor, "n_up n_down"]) -> None:
        self._level = level
        self._first = level.amin(0)

    def here(self, prompt: Prompt, rows: slice, columns: slice) -> Tokens:
        """The edges of some tokens and downstream latents."""
        slots = prompt.slots.of_tokens(rows)
        level = self._level[:, columns][slots.latent].masked_fill(~slots.used.unsqueeze(-1), NEVER)
        first = self._first[columns].expand(len(level), -1)
        n_down = self._level.shape[1]
        return Tokens(rows, columns, n_down, level.transpose(1, 2).contiguous(), first, slots.used.sum(1))

    def levels_at(self, prompt: Prompt, token: Int[Tensor, " n"], latent: Int[Tensor, " n"]) -> UInt8[Tensor, "n slot"]:
        """Levels of the edges from a token's slots to a downstream latent."""
        return self._level[prompt.slots.latent[token], latent.unsqueeze(1)]


class LocalEdges:
    """A circuit for every token: the edges from its slots in the order of their effect."""

    def __init__(
        self, effect: Float[Tensor, "token slot n_down"], counts: Int[Tensor, " n_counts"], prompt: Prompt
    ) -> None:
        """Order the edges of every token.

        Args:
            effect: size of an edge's effect; ties are taken in the order of the latents.
            counts: edges kept per token, ascending.
            prompt: whose slots the effects belong to.
        """
        flat = effect.masked_fill(~prompt.slots.used.unsqueeze(-1), -1.0).flatten(1)
        rank = flat.sort(dim=1, descending=True, stable=True).indices.argsort(1)  # 0 is the first to be kept
        self._last = torch.tensor(len(counts) - 1, dtype=torch.uint8, device=effect.device)
        level = torch.searchsorted(counts, rank, right=True)
        level = level.masked_fill(level == len(counts), NEVER).byte().view(effect.shape)
        self._level = level.masked_fill(~prompt.slots.used.unsqueeze(-1), NEVER).transpose(1, 2).contiguous()

    def here(self, prompt: Prompt, rows: slice, columns: slice) -> Tokens:
        """The edges of some tokens and downstream latents."""
        level = self._level[rows, columns]
        n_used = prompt.slots.used[rows].sum(1)
        first = torch.where(n_used.unsqueeze(1) > 0, level.amin(-1), self._last)  # a silent token: with all edges
        return Tokens(rows, columns, self._level.shape[1], level, first, n_used)

    def levels_at(self, prompt: Prompt, token: Int[Tensor, " n"], latent: Int[Tensor, " n"]) -> UInt8[Tensor, "n slot"]:
        """Levels of the edges from a token's slots to a downstream latent."""
        return self._level[token, latent]
