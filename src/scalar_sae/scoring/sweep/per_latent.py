"""Sub-circuits under mean ablation at blocks where tokens do not interact: a downstream latent at a time.

The means of the upstream latents without a kept edge are part of every input (edges.py, `Unkept`). What they add is
the same at every token, and differs between downstream latents and counts. It is therefore computed once for each
downstream latent and count of a prompt, at the upstream site and in the MLP's hidden layer. A token adds the shares of
the few latents that are active there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import pad

from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import Edges, Unkept
from scalar_sae.scoring.sweep.per_token import CACHE_BYTES, SHARE_BYTES, Contributions, Updates

TABLE_BYTES = 2**26
"""Downstream latents are taken so many at a time that what the means add to each of them at every count fits this."""


def updates(
    pair: Pair, readout: Readout, prompt: Prompt, edges: Edges, unkept: Unkept, n_counts: int
) -> Iterator[Updates]:
    """Every change of a downstream pre-activation along the sweep, some latents and tokens at a time."""
    with_all = pair.pre_acts(pair.reconstruct(prompt.z, prompt).unsqueeze(0), prompt)[0]
    parts, text = edges.parts(pair, prompt), prompt.text.nonzero()[:, 0]
    n_active, n_up = prompt.active.latent.shape[1], pair.up.d_sae
    width = max(1, TABLE_BYTES // (n_counts * (4 * (pair.lm.d_model + 2 * readout.width) + 5 * n_up)))
    n_tokens = max(1, SHARE_BYTES // (4 * (n_active + 1) * readout.width))
    for rows in text.split(n_tokens) if len(text) else ():
        shares = Contributions.of(readout, prompt, parts, rows)
        for start in range(0, pair.down.d_sae, width):
            gained = unkept.gained(slice(start, min(start + width, pair.down.d_sae)), n_counts)
            count, latent = (gained > 0).nonzero(as_tuple=True)
            complete = gained.cumsum(0)[count, latent] == n_up
            latent = latent + start
            yield _update(pair, rows, count[complete], latent[complete], with_all[rows][:, latent[complete]])
            count, latent = count[~complete], latent[~complete]
            sets = KeptSets.of(readout, unkept, count, latent, with_hidden=shares.hidden is not None)
            values = _values(readout, prompt, shares, rows, sets)
            yield _update(pair, rows, count, latent, values)


def _update(
    pair: Pair,
    rows: Int[Tensor, " row"],
    count: Int[Tensor, " kept_set"],
    latent: Int[Tensor, " kept_set"],
    values: Float[Tensor, "row kept_set"],
) -> Updates:
    flat_index = rows.unsqueeze(1) * pair.down.d_sae + latent
    return Updates(count.byte().repeat(len(rows)), flat_index.flatten(), values.flatten())


@dataclass(frozen=True, eq=False)
class KeptSets:
    """Kept sets of upstream latents: a downstream latent at a count in each row, and what reads it."""

    keep_index: UInt8[Tensor, "n_up kept_set"]
    """Of the edges into the row's latent."""
    count: Int[Tensor, " kept_set"]
    x: Float[Tensor, "kept_set d_model"]
    """What the means of the latents outside the set add to the upstream site."""
    hidden: Float[Tensor, "kept_set d_hidden"] | None
    """What they add to the hidden layer, before the norm's scale."""
    weights: Float[Tensor, "kept_set d_feature"]
    skip: Float[Tensor, "kept_set d_model"] | None
    constant: Float[Tensor, " kept_set"]

    @classmethod
    def of(
        cls,
        readout: Readout,
        unkept: Unkept,
        count: Int[Tensor, " kept_set"],
        latent: Int[Tensor, " kept_set"],
        *,
        with_hidden: bool,
    ) -> "KeptSets":
        """The sets that these downstream latents keep at these counts."""
        x = unkept.of(latent, count)
        return cls(
            unkept.keep_index[:, latent],
            count,
            x,
            readout.project(x) if with_hidden else None,
            readout.weights[latent],
            None if readout.skip is None else readout.skip[latent],
            readout.constant[latent],
        )

    def split(self, size: int) -> Iterator["KeptSets"]:
        """So many rows at a time."""
        for start in range(0, len(self.count), size):
            some = slice(start, start + size)
            yield KeptSets(
                self.keep_index[:, some],
                self.count[some],
                self.x[some],
                None if self.hidden is None else self.hidden[some],
                self.weights[some],
                None if self.skip is None else self.skip[some],
                self.constant[some],
            )


def _values(
    readout: Readout,
    prompt: Prompt,
    shares: Contributions,
    rows: Int[Tensor, " row"],
    kept_sets: KeptSets,
) -> Float[Tensor, "row kept_set"]:
    """Pre-activations at some tokens: of each kept set's latent."""
    latents, scale = prompt.active.latent[rows], readout.pair.scaled(torch.ones_like(prompt.x_up[:, :1]), prompt)[rows]
    found = shares.x.new_empty(len(rows), len(kept_sets.count))
    done = 0
    for some in kept_sets.split(max(64, CACHE_BYTES // (4 * readout.width))):
        n = len(some.count)
        for at, latent in enumerate(latents):
            kept = (some.keep_index[latent] <= some.count).T.float()
            kept = pad(kept, (0, 1), value=1.0)  # the start is always there
            x = torch.addmm(scale[at] * some.x, kept, shares.x[at])
            if shares.hidden is None or some.hidden is None:
                skip = None if prompt.up_skip is None else prompt.up_skip[:, rows[at]].expand(n, 1, -1)
                features = readout.features(x.unsqueeze(1), skip).squeeze(1)
            else:
                assert readout.hidden_bias is not None
                hidden = torch.addmm(scale[at] * some.hidden, kept, shares.hidden[at])
                features = readout.activate(torch.addcmul(readout.hidden_bias, readout.scale(x), hidden))
            value = torch.linalg.vecdot(features, some.weights) + some.constant
            if some.skip is not None:
                value += torch.linalg.vecdot(x, some.skip)
            found[at, done : done + n] = value
        done += n
    return found
