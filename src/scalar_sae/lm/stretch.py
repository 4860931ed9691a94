"""Consecutive layers of a model, as a function from one site to a later one."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.lm.feedforward import FeedForward
from scalar_sae.lm.layers import Layer, SiteState
from scalar_sae.sites import Site

Replacement = Callable[[Tensor], Tensor]
"""From the activation at a site to its replacement, both [batch, token, d_model]."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """Some or all layers of a model."""

    layers: Mapping[int, Layer]
    name: str
    """The model's name, for messages."""

    def run(
        self,
        start: Site,
        end: Site,
        x: Float[Tensor, "batch token d_model"],
        skip: Float[Tensor, "batch token d_model"] | None = None,
    ) -> Float[Tensor, "batch token d_model"]:
        """The activation at `end` when the activation at `start` is `x`.

        Args:
            start: a site before `end`.
            end: a later site.
            x: the activation at `start`.
            skip: for a start on a side branch, the residual stream to which the branch is added; needed only if that
                addition lies before `end`.

        Raises:
            UserError: `skip` is needed and missing, or `start` does not influence `end`.
        """
        if start.same_place(end):
            return widened(x.to(self.layers[start.layer].weight), x)
        if end.depth < start.depth:
            raise UserError(f"{start}->{end}: the model runs in the other direction")
        weight = self.layers[start.layer].weight
        here = SiteState(x.to(weight), None if skip is None else skip.to(weight))
        [(place, here)] = deque(self.walk(start, end, here), maxlen=1)
        if not place.same_place(end):
            raise UserError(f"{start}->{end}: {self.name} runs attention and MLP side by side; none leads to the other")
        return widened(here.x, x)

    def spliced(self, first: SiteState, replace: Mapping[Site, Replacement]) -> SiteState:
        """The state at the last of some sites, with the activation at each of them replaced.

        A replacement is a function of the current activation, so a later site sees the effect of earlier ones.

        Args:
            first: the state at the first of the sites.
            replace: the replacement at each site, in any order.
        """
        places = sorted(replace)
        here = first._replace(x=replace[places[0]](first.x))
        for start, stop in pairwise(places):
            if start.same_place(stop):
                continue
            weight = self.layers[start.layer].weight
            here = SiteState(here.x.to(weight), None if here.skip is None else here.skip.to(weight))
            [(_, here)] = deque(self.walk(start, stop, here), maxlen=1)
            here = SiteState(widened(here.x, first.x), None if here.skip is None else widened(here.skip, first.x))
            here = here._replace(x=replace[stop](here.x))
        return here

    def feed_forward(self, layer: int) -> FeedForward:
        """The norm and MLP of one layer as plain tensors.

        Raises:
            UserError: they are not of the form that FeedForward describes.
        """
        return FeedForward.of(self.layers[layer], f"{self.name}, layer {layer}")

    def walk(self, start: Site, end: Site, here: SiteState) -> Iterator[tuple[Site, SiteState]]:
        """Walk from one site to a later one and yield every site reached with its state."""
        kind = start.kind
        for number in range(start.layer, max(self.layers) + 1):
            for reached, state in self.layers[number].steps(kind, here):
                place = Site(reached, number)
                yield place, state
                if place.depth >= end.depth:
                    return
                here = state
            kind = "resid_pre"


def widened(x: Tensor, given: Tensor) -> Tensor:
    """Cast a result for the caller: at least float32, on the device of `given`."""
    return x.to(given.device, torch.promote_types(x.dtype, torch.float32))


def between(start: Site, end: Site) -> range:
    """The layers that a run from one site to another passes through."""
    return range(start.layer, max(start.layer + 1, end.layer + (end.kind != "resid_pre")))
