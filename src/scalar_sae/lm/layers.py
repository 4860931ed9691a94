"""A decoder layer as a sequence of stages. The branches of a stage read the residual stream in parallel and are added
to it.

    sequential:  resid_pre ─▶ [attention] ─▶ resid_mid ─▶ [MLP] ─▶ resid_post        two stages
    parallel:    resid_pre ─▶ [attention, MLP] ─▶ resid_post                         one

A branch is a sequence of named places (see sites.py) with the model's own modules between them. The modules are called
as `transformers` calls them; for attention see attention.py.
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
    """The activation at the site."""
    skip: Float[Tensor, "batch token d_model"] | None
    """On a side branch: the residual stream to which the branch will be added. None on the residual stream."""


@dataclass(frozen=True, eq=False)
class Branch:
    """A side branch: its places in order, each with the function that computes it from the place before."""

    steps: tuple[tuple[str, Function], ...]

    @cached_property
    def places(self) -> tuple[str, ...]:
        """Names of the branch's places."""
        return tuple(place for place, _ in self.steps)

    def after(self, kind: str) -> tuple[tuple[str, Function], ...]:
        """The steps after a place; all steps if the place is not on the branch."""
        return self.steps[self.places.index(kind) + 1 :] if kind in self.places else self.steps


@dataclass(frozen=True, eq=False)
class Stage:
    """A step from one place on the residual stream to the next: parallel branches that are added to it."""

    start: str
    branches: tuple[Branch, ...]
    end: str
    stream_first: bool = False
    """With several branches: whether the stream and the first branch are added first, or the branches."""

    def __contains__(self, kind: str) -> bool:
        return kind == self.start or any(kind in branch.places for branch in self.branches)

    def steps(self, kind: str, here: SiteState) -> Iterator[tuple[str, SiteState]]:
        """Walk from a place to the end of the stage and yield every place reached with its state."""
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
        """Yield the states of all branches from the stage's start. The stream beside each already includes the others'
        outputs.
        """
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
    """What is applied to the MLP's output before it is added to the residual stream: a norm, a constant factor or
    both.
    """

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The places that the layer has, in the order of a forward pass."""
        inner = [kind for stage in self.stages for branch in stage.branches for kind in branch.places]
        return ("resid_pre", *inner, *(stage.end for stage in self.stages))

    @cached_property
    def weight(self) -> nn.Parameter:
        """A weight of the MLP, from which the layer's device and precision are read."""
        return next(self.mlp.parameters())

    def leads(self, kind: str, later: str) -> bool:
        """Whether the activation at a place influences that at a later one. It does not if they lie on parallel
        branches.
        """
        stage = next((stage for stage in self.stages if kind in stage), None)
        if stage is None or kind == stage.start or later not in stage:
            return True
        return any(kind in branch.places and later in branch.places for branch in stage.branches)

    def steps(self, kind: str, here: SiteState) -> Iterator[tuple[str, SiteState]]:
        """Walk from a place to the end of the layer and yield every place reached with its state."""
        here = SiteState(here.x.to(self.weight.device), here.skip)
        for stage in self.stages:
            if kind in stage:
                for place, state in stage.steps(kind, here):
                    yield place, state
                    here = state
                kind = stage.end


@dataclass(frozen=True)
class Scaled:
    """Multiplication by a constant factor, after another function if there is one."""

    factor: float
    before: Function | None

    def __call__(self, x: Tensor) -> Tensor:
        """The scaled activation."""
        return (x if self.before is None else self.before(x)) * self.factor


class Alone(nn.Module):
    """The output, without the residual stream, of an MLP module that receives the stream and adds it to its output."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The MLP's output, computed with a zero residual stream."""
        return self.inner(x, torch.zeros_like(x))


def branch(name: str, norm: Function, sublayer: Function, post: Function | None) -> Branch:
    """A branch of a norm, then attention or MLP, then optionally another norm or factor: `NAME_in`, (`NAME_raw`,)
    `NAME_out`.
    """
    if post is None:
        return Branch(((f"{name}_in", norm), (f"{name}_out", sublayer)))
    return Branch(((f"{name}_in", norm), (f"{name}_raw", sublayer), (f"{name}_out", post)))
