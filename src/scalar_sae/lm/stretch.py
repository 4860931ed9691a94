"""Layers of a model that follow each other, as a function from one site to a later one."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.lm.feedforward import FeedForward
from scalar_sae.lm.layers import Layer, SiteState
from scalar_sae.sites import Site


@dataclass(frozen=True, eq=False)
class Stretch:
    """All layers of a model, or some."""

    layers: Mapping[int, Layer]
    name: str
    """The model's, for messages."""

    def run(
        self,
        start: Site,
        end: Site,
        x: Float[Tensor, "batch token d_model"],
        skip: Float[Tensor, "batch token d_model"] | None = None,
    ) -> Float[Tensor, "batch token d_model"]:
        """The activation at `end` when `x` stands at `start`.

        Args:
            start: a site before `end`.
            end: a later site.
            x: the activation put in at `start`.
            skip: on a side branch, the residual stream that the branch is added to; needed only when that happens
                before `end`.

        Raises:
            UserError: `skip` is needed and missing, or nothing leads from `start` to `end`.
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

    def feed_forward(self, layer: int) -> FeedForward:
        """The norm and MLP of one layer as plain tensors.

        Raises:
            UserError: they are not of the form that FeedForward describes.
        """
        return FeedForward.of(self.layers[layer], f"{self.name}, layer {layer}")

    def walk(self, start: Site, end: Site, here: SiteState) -> Iterator[tuple[Site, SiteState]]:
        """Walk from one place to a later one, yielding every place reached and the state there."""
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
    """As the caller sees it: at least float32, on the device of what was given."""
    return x.to(given.device, torch.promote_types(x.dtype, torch.float32))
