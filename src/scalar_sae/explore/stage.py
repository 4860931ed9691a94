"""One pair on one prompt: the downstream latents under any circuit and any interventions.

A downstream latent j of a circuit is computed from its own upstream activations (scoring/README.md):

    x_j = base + sum over upstream latents i and positions s of  w_j[s, i] * change[s, i] * W_dec[i]

`base` is the upstream reconstruction with every latent ablated, `change` is activation less ablated value, and w_j is 1
for a kept edge and 0 for another. Interventions that name the edge multiply it by their factors. Only latents that keep
some but not all of the upstream latents, or that an intervention names, need a computation of their own. All others are
those of the whole reconstruction, or of `base`. Fifty edges in a pair of thousands of latents therefore cost little.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.scoring.sweep.closed_form import Readout

PASS_BYTES = 2**25
"""Latents are computed so many at a time that their widest activation fits this."""
Kept = Bool[Tensor, "_n_up _n_down"] | None
"""The edges of a circuit; None: all."""


class Scaled(NamedTuple):
    """An intervention on one prompt."""

    up: int | None
    down: int | None
    factor: Float[Tensor, " token"]
    """What multiplies an upstream latent's difference from its ablated value, or a downstream latent's activation; 1
    where nothing changes."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One pair on one prompt."""

    pair: Pair
    prompt: Prompt

    def starting_from(self, z: Float[Tensor, "token n_up"]) -> "Stage":
        """The same with other upstream activations, such as those that the pair before it leaves."""
        if torch.equal(z, self.prompt.z):
            return self
        active = self.pair.active(z, self.prompt.x_up, self.prompt.special)
        return replace(self, prompt=replace(self.prompt, z=z, active=active))

    def rows(self, rows: slice) -> "Stage":
        """Some neighbouring tokens of the prompt."""
        prompt = self.prompt
        cut = {
            name: None if value is None else value[:, rows]
            for name in ("tokens", "up_skip", "down_skip", "x_start", "x_down", "x_spliced")
            for value in [getattr(prompt, name)]
        }
        special = None if prompt.special is None else prompt.special[rows]
        active = prompt.active.of_tokens(rows)
        return replace(
            self,
            prompt=replace(prompt, **cut, special=special, z=prompt.z[rows], x_up=prompt.x_up[rows], active=active),
        )

    def upto(self, position: int) -> "Stage":
        """The tokens that the downstream latents at a token depend on. That token is the last of them."""
        return self.rows(slice(0 if self.pair.block.mixes_tokens else position, position + 1))

    @cached_property
    def change(self) -> Float[Tensor, "token n_up"]:
        """What each upstream latent adds along its decoder row."""
        return self.pair.ablation_delta(self.prompt.z, self.prompt.x_up, self.prompt.special)

    @cached_property
    def base(self) -> Float[Tensor, "token d_model"]:
        """The upstream reconstruction with every latent ablated."""
        return self.pair.base(self.prompt)

    @cached_property
    def whole(self) -> Float[Tensor, "token d_model"]:
        """The upstream reconstruction."""
        return self.pair.reconstruct(self.prompt.z, self.prompt)

    @property
    def active(self) -> Bool[Tensor, "token n_up"]:
        """Where upstream latents are active and their removal changes something."""
        return (self.prompt.z != 0) & (self.change != 0)

    @cached_property
    def ablated(self) -> Float[Tensor, "token d_model"]:
        """The upstream reconstruction with every latent ablated where it is active. Elsewhere it stays at zero."""
        return self.pair.with_active_ablated(self.prompt)

    @cached_property
    def pre_acts_without(self) -> Float[Tensor, "token n_down"]:
        """Downstream pre-activations with every upstream latent ablated."""
        return self.pair.pre_acts(self.base.unsqueeze(0), self.prompt)[0]

    @cached_property
    def pre_acts(self) -> Float[Tensor, "token n_down"]:
        """Downstream pre-activations in the full circuit."""
        return self.pair.pre_acts(self.whole.unsqueeze(0), self.prompt)[0]

    @cached_property
    def full(self) -> Float[Tensor, "token n_down"]:
        """Downstream activations in the full circuit."""
        return self.pair.down.activation.select(self.pre_acts)

    @cached_property
    def width(self) -> int:
        """Numbers a token in the widest activation from which downstream latents are read."""
        return Readout.of(self.pair, torch.zeros(0, dtype=torch.long, device=self.pair.device)).width

    @torch.no_grad()
    def acts(self, kept: Kept = None, changes: Sequence[Scaled] = ()) -> Float[Tensor, "token n_down"]:
        """Downstream activations of a circuit under interventions.

        Args:
            kept: the circuit's edges; None: all.
            changes: interventions. Their order does not matter: factors of one latent or edge are multiplied.
        """
        here = self._with_upstream([one for one in changes if one.down is None])
        edges = [one for one in changes if one.up is not None and one.down is not None]
        acts = self.pair.down.activation.select(here._assembled(kept, edges))
        for one in changes:
            if one.up is None and one.down is not None:
                acts[:, one.down] *= one.factor
        return acts

    def n_live_edges(self, kept: Kept, acts: Float[Tensor, "token n_down"]) -> Int[Tensor, " token"]:
        """Kept edges at each token whose two latents are active."""
        live = (self.prompt.z > 0).float()
        if kept is None:
            return (live.sum(1) * (acts > 0).sum(1)).long()
        down = (acts > 0).any(0).nonzero()[:, 0]
        return ((live @ kept[:, down].float()) * (acts[:, down] > 0)).sum(1).long()

    def _with_upstream(self, changes: Sequence[Scaled]) -> "Stage":
        """With these upstream latents changed for every downstream latent."""
        if not changes:
            return self
        z, ablated = self.prompt.z.clone(), self.pair.ablation_value
        for one in changes:
            assert one.up is not None
            rest = 0.0 if ablated is None else ablated[one.up]
            z[:, one.up] = rest + one.factor * (z[:, one.up] - rest)
        return self.starting_from(self.prompt.at_text(z))

    def _assembled(self, kept: Kept, edges: Sequence[Scaled]) -> Float[Tensor, "token n_down"]:
        """Pre-activations of a circuit; some of its edges are scaled."""
        found = self.pre_acts.clone()
        columns = torch.tensor(sorted({one.down for one in edges if one.down is not None}), dtype=torch.long)
        columns = columns.to(self.pair.device)
        if kept is not None:
            used = (self.change != 0).any(0)
            n_used, n_kept = int(used.sum()), kept[used].sum(0)
            found[:, n_kept == 0] = self.pre_acts_without[:, n_kept == 0]
            columns = torch.cat([((n_kept > 0) & (n_kept < n_used)).nonzero()[:, 0], columns]).unique()
        for column, value in self._computed(kept, edges, columns):
            found[:, column] = self.prompt.at_text(value.T)
        return found

    def _computed(
        self, kept: Kept, edges: Sequence[Scaled], columns: Int[Tensor, " column"]
    ) -> Iterator[tuple[Int[Tensor, " some"], Float[Tensor, "some token"]]]:
        """Pre-activations of some downstream latents, each from its own upstream activations."""
        if not len(columns):
            return
        readout = Readout.of(self.pair, columns)  # not kept: that of all latents is as large as the SAEs
        batch = max(1, PASS_BYTES // (4 * len(self.change) * max(self.width, self.pair.lm.d_model)))
        few = torch.zeros_like(columns, dtype=torch.bool) if kept is None else kept[:, columns].sum(0) * 2 <= len(kept)
        for keeps_few, some in ((True, few.nonzero()[:, 0]), (False, (~few).nonzero()[:, 0])):
            for at in some.split(batch) if len(some) else ():
                x = self._inputs(kept, columns[at], keeps_few)
                self._scale(x, kept, edges, columns[at])
                yield columns[at], self._read(x, readout, at)

    def _inputs(self, kept: Kept, column: Int[Tensor, " some"], keeps_few: bool) -> Float[Tensor, "some token d_model"]:
        """What stands at the upstream site for each of some downstream latents: summed up from the latents that they
        keep, or from those that they lack.
        """
        start = self.base if keeps_few else self.whole
        if kept is None:
            return start.repeat(len(column), 1, 1)
        summed = kept[:, column] if keeps_few else ~kept[:, column]
        up = (summed.any(1) & (self.change != 0).any(0)).nonzero()[:, 0]
        weight = summed[up].T.unsqueeze(1).float() * self.change[:, up]
        return torch.add(start, weight @ self.pair.up.W_dec[up], alpha=1.0 if keeps_few else -1.0)

    def _scale(
        self,
        x: Float[Tensor, "some token d_model"],
        kept: Kept,
        edges: Sequence[Scaled],
        column: Int[Tensor, " some"],
    ) -> None:
        """Scale kept edges in the inputs of some downstream latents."""
        factors: dict[tuple[int, int], Tensor] = {}
        for up, down, factor in edges:
            assert up is not None
            assert down is not None
            factors[up, down] = factors[up, down] * factor if (up, down) in factors else factor
        row = {latent: number for number, latent in enumerate(column.tolist())}
        for (i, j), factor in factors.items():
            if j in row and (kept is None or kept[i, j]):
                x[row[j]] += ((factor - 1) * self.change[:, i]).unsqueeze(1) * self.pair.up.W_dec[i]

    def _read(
        self, x: Float[Tensor, "some token d_model"], readout: Readout, at: Int[Tensor, " some"]
    ) -> Float[Tensor, "some token"]:
        """Pre-activation of each latent from its own activation at the upstream site."""
        skip = self.prompt.up_skip
        if readout.start != self.pair.block.up:
            x = self.pair.run_to(readout.start, x, skip)
        features = readout.features(x, skip)
        value = torch.einsum("ctf,cf->ct", features, readout.weights[at]) + readout.constant[at].unsqueeze(1)
        return value if readout.skip is None else value + torch.einsum("ctd,cd->ct", x, readout.skip[at])


def check_latents(pair: Pair, up: Iterable[int | None] = (), down: Iterable[int | None] = ()) -> None:
    """Raise a UserError if a pair has no such latents. None names no latent."""
    for end, latents, width in (("up", up, pair.up.d_sae), ("down", down, pair.down.d_sae)):
        for latent in latents:
            if latent is not None and not 0 <= latent < width:
                raise UserError(f"{end}stream latent {latent}: the SAE at that end has {width:,} latents")
