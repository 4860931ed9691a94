"""A decoder layer as stages: branches that read the residual stream side by side and are added back to it.

    sequential:  resid_pre ─▶ [attention] ─▶ resid_mid ─▶ [MLP] ─▶ resid_post        two stages
    parallel:    resid_pre ─▶ [attention, MLP] ─▶ resid_post                         one

A branch is a line of named places (see sites.py) and the model's own modules between them, called as `transformers`
calls them (attention: see attention.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scalar_sae.errors import UserError

Function = Callable[[Tensor], Tensor]


class SiteState(NamedTuple):
    """The state of a forward pass at a site."""

    x: Float[Tensor, "batch token d_model"]
    """The activation there."""
    skip: Float[Tensor, "batch token d_model"] | None
    """On a side branch: the residual stream to which the branch will be added. None on the residual stream."""


@dataclass(frozen=True, eq=False)
class Branch:
    """A side branch: its places in order, each with the function that leads there from the one before."""

    steps: tuple[tuple[str, Function], ...]

    @cached_property
    def places(self) -> tuple[str, ...]:
        """Names of the branch's places."""
        return tuple(place for place, _ in self.steps)

    def after(self, kind: str) -> tuple[tuple[str, Function], ...]:
        """The steps behind a place; all of them if the place is not on the branch."""
        return self.steps[self.places.index(kind) + 1 :] if kind in self.places else self.steps


@dataclass(frozen=True, eq=False)
class Stage:
    """From one place on the residual stream to the next: the branches between them, added to it."""

    start: str
    branches: tuple[Branch, ...]
    end: str
    stream_first: bool = False
    """Of several branches, which sum is taken first: the stream and the first branch, or the branches."""

    def __contains__(self, kind: str) -> bool:
        return kind == self.start or any(kind in branch.places for branch in self.branches)

    def steps(self, kind: str, here: SiteState) -> Iterator[tuple[str, SiteState]]:
        """Walk from a place of the stage to its end, yielding every place reached and the state there."""
        if kind == self.start and len(self.branches) > 1:
            yield from self._side_by_side(here.x)
            return
        x, skip = (here.x, here.x) if kind == self.start else here
        branch = next(branch for branch in self.branches if kind == self.start or kind in branch.places)
        for place, function in branch.after(kind):
            x = function(x)
            yield place, SiteState(x, skip)
        if skip is None:
            raise UserError("running on from a side branch (attn_*, mlp_*) needs the residual stream it is added to")
        yield self.end, SiteState(x + skip, None)

    def _side_by_side(self, x: Tensor) -> Iterator[tuple[str, SiteState]]:
        """All branches from the stage's start; the stream beside each already holds the others' outputs."""
        reached: list[list[tuple[str, Tensor]]] = []
        for branch in self.branches:
            at: list[tuple[str, Tensor]] = []
            for place, function in branch.steps:
                at.append((place, function(at[-1][1] if at else x)))
            reached.append(at)
        outputs = [at[-1][1] for at in reached]
        for index, at in enumerate(reached):
            skip = sum(outputs[:index] + outputs[index + 1 :], x)
            yield from ((place, SiteState(value, skip)) for place, value in at)
        yield self.end, SiteState(sum(outputs, x) if self.stream_first else sum(outputs[1:], outputs[0]) + x, None)


@dataclass(frozen=True, eq=False)
class Layer:
    """One decoder layer."""

    stages: tuple[Stage, ...]
    mlp_norm: nn.Module
    mlp: nn.Module
    mlp_post: Function | None
    """What the MLP's output passes before it is added to the residual stream: a norm, a constant factor or both."""

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The places that the layer has, in the order of a forward pass."""
        inner = [kind for stage in self.stages for branch in stage.branches for kind in branch.places]
        return ("resid_pre", *inner, *(stage.end for stage in self.stages))

    @cached_property
    def weight(self) -> nn.Parameter:
        """Some weight of the MLP: where the layer lies and in which precision it computes."""
        return next(self.mlp.parameters())

    def leads(self, kind: str, later: str) -> bool:
        """Whether what stands at a place has a part in what stands at a later one: not if their branches run side by
        side.
        """
        stage = next((stage for stage in self.stages if kind in stage), None)
        if stage is None or kind == stage.start or later not in stage:
            return True
        return any(kind in branch.places and later in branch.places for branch in stage.branches)

    def steps(self, kind: str, here: SiteState) -> Iterator[tuple[str, SiteState]]:
        """Walk from a place to the layer's end, yielding every place reached and the state there."""
        here = SiteState(here.x.to(self.weight.device), here.skip)
        for stage in self.stages:
            if kind in stage:
                for place, state in stage.steps(kind, here):
                    yield place, state
                    here = state
                kind = stage.end


@dataclass(frozen=True)
class Scaled:
    """A constant factor, behind another function if there is one."""

    factor: float
    before: Function | None

    def __call__(self, x: Tensor) -> Tensor:
        """The scaled activation."""
        return (x if self.before is None else self.before(x)) * self.factor


class Alone(nn.Module):
    """An MLP that is handed the residual stream and adds it to its output: its output without the stream."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The MLP's output where the stream is zero."""
        return self.inner(x, torch.zeros_like(x))


def branch(name: str, norm: Function, sublayer: Function, post: Function | None) -> Branch:
    """A norm, attention or MLP, and perhaps another norm or a factor: `NAME_in`, (`NAME_raw`,) `NAME_out`."""
    if post is None:
        return Branch(((f"{name}_in", norm), (f"{name}_out", sublayer)))
    return Branch(((f"{name}_in", norm), (f"{name}_raw", sublayer), (f"{name}_out", post)))
