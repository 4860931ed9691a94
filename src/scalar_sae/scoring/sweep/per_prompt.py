"""Sub-circuits at blocks with attention: a downstream latent under an edge set is a pass over the whole prompt.

A latent is computed again only when it gained an edge from an upstream latent that the prompt uses; all that keep none
share one pass, all that keep every one share another. The rest run in batches, whatever count they belong to.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from scalar_sae.scoring.pair import ActiveLatents, Pair, Prompt
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import Edges, EdgeTile, Parts
from scalar_sae.scoring.sweep.per_token import Updates

PASS_BYTES = 2**25
"""Passes are taken so many at a time that their widest activation fits this: fewer calls outweigh a cache."""
ADD_BYTES = 2**26
"""What the active latents of a prompt add is held if it fits this, padded to the busiest token."""
KEEP_INDEX_BYTES = 2**26
"""Downstream latents are taken so many at a time that the keep indices of their edges fit this."""


def updates(pair: Pair, readout: Readout, prompt: Prompt, edges: Edges, n_counts: int) -> Iterator[Updates]:
    """Every change of a downstream pre-activation along the sweep, some latents at a time."""
    n_token, n_active = prompt.active.latent.shape
    parts, unkept = edges.parts(pair, prompt), edges.unkept(pair)
    ends = torch.stack([parts.empty, pair.reconstruct(prompt.z, prompt)])
    without, with_all = pair.pre_acts(ends, prompt)
    batch = n_passes(readout, prompt)
    columns = max(1, KEEP_INDEX_BYTES // (n_token * n_active))
    adds = Adds(pair, prompt.active, parts)
    for start in range(0, pair.down.d_sae, columns):
        some = edges.here(prompt, slice(0, n_token), slice(start, min(start + columns, pair.down.d_sae)))
        gained = _gained(some, n_counts) if unkept is None else unkept.gained(some.columns, n_counts)
        count, column, n_kept = _changes(gained, some.first.amin(0))
        n_all = some.n_used.sum() if unkept is None else pair.up.d_sae
        for ends_at, value in ((0, without), (int(n_all), with_all)):
            at = n_kept == ends_at
            if at.any():
                yield _update(some, count[at], column[at], value[:, start + column[at]].T)
        between = (n_kept > 0) & (n_kept < n_all)
        for c, j in zip(count[between].split(batch), column[between].split(batch), strict=True):
            if len(c):
                kept = some.keep_index[:, j] <= c.view(-1, 1)
                means = None if unkept is None else unkept.of(start + j, c)
                yield _update(some, c, j, evaluated(readout, adds, prompt, start + j, kept, means))


def n_passes(readout: Readout, prompt: Prompt) -> int:
    """How many passes are taken at a time: their kept latents, a byte each, take no more than the activations."""
    n_token, n_active = prompt.active.latent.shape
    return max(1, PASS_BYTES // (n_token * max(4 * readout.width, n_active)))


class Adds:
    """What kept active latents add to the upstream reconstruction."""

    def __init__(self, pair: Pair, active: ActiveLatents, parts: Parts) -> None:
        """All are held, or none where a very busy token would make that too much."""
        self.start = parts.start
        self._pair, self._active, self._adds = pair, active, parts.adds
        self._most = max(1, ADD_BYTES // (4 * pair.up.d_model))
        self._held = pair.added(active.latent, parts.adds) if active.latent.numel() <= self._most else None

    def of(self, kept: Bool[Tensor, "token row active"]) -> Float[Tensor, "token row d_model"]:
        """The sum over the kept latents of each row."""
        if self._held is not None:
            return kept.to(self._held.dtype) @ self._held
        active = self._active
        total = self._adds.new_zeros(*kept.shape[:2], self._pair.up.d_model)
        for token, used in enumerate(active.used):
            for some in used.nonzero()[:, 0].split(self._most):
                adds = self._pair.added(active.latent[token, some], self._adds[token, some])
                total[token].addmm_(kept[token][:, some].to(adds.dtype), adds)
        return total


def _gained(some: EdgeTile, n_counts: int) -> Int[Tensor, "n_counts n_col"]:
    """How many edges from active latents of the prompt each count adds to some downstream latents."""
    parts = some.keep_index.split(16)  # sums take int64
    return torch.stack(
        [torch.stack([(part == count).sum((0, 2)) for part in parts]).sum(0) for count in range(n_counts)]
    )


def _changes(
    gained: Int[Tensor, "n_counts n_col"], first: UInt8[Tensor, " n_col"]
) -> tuple[Int[Tensor, " change"], Int[Tensor, " change"], Int[Tensor, " change"]]:
    """Where a count changes a latent: (count, latent, number of edges that it keeps then)."""
    counts = torch.arange(len(gained), device=gained.device).unsqueeze(1)
    count, column = ((gained > 0) | (first == counts)).nonzero(as_tuple=True)
    return count, column, gained.cumsum(0)[count, column]


def _update(
    some: EdgeTile, count: Int[Tensor, " row"], column: Int[Tensor, " row"], value: Float[Tensor, "row token"]
) -> Updates:
    n_token = value.shape[1]
    token = torch.arange(n_token, device=column.device).repeat(len(column))
    flat_index = some.flat_index(token, column.repeat_interleave(n_token))
    return Updates(count.repeat_interleave(n_token).byte(), flat_index, value.flatten())


def evaluated(
    readout: Readout,
    adds: Adds,
    prompt: Prompt,
    latent: Int[Tensor, " row"],
    kept: Bool[Tensor, "token row active"],
    means: Float[Tensor, "row d_model"] | None,
) -> Float[Tensor, "row token"]:
    """Pre-activation of a downstream latent in each row, under the edges that the row keeps; 0 at special tokens."""
    pair = readout.pair
    x = adds.of(kept).transpose(0, 1) + adds.start
    if means is not None:
        x += pair.scaled(means.unsqueeze(1), prompt)
    if readout.start != pair.block.up:
        x = pair.run_to(readout.start, x, prompt.up_skip)
    features = readout.features(x, prompt.up_skip)
    value = _read(features, readout.weights[latent]) + readout.constant[latent].unsqueeze(1)
    value = value if readout.skip is None else value + _read(x, readout.skip[latent])
    return prompt.at_text(value.unsqueeze(-1)).squeeze(-1)


def _read(x: Float[Tensor, "row token d"], weights: Float[Tensor, "row d"]) -> Float[Tensor, "row token"]:
    """Each row's x times its own weights, which stand first: MKL is twice as fast so."""
    return (weights.unsqueeze(1) @ x.transpose(1, 2)).squeeze(1)
