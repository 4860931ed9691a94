"""The source positions and attention heads that carry an edge.

An edge (i, j) joins upstream latent i, at every position, to downstream latent j. Its effect at a token t is the
pre-activation of j less what it is when i is removed at every position. Attention recomputes its pattern and an MLP
follows it, so the effects of single positions and heads need not add up to that of the edge. The parts here do:

- Latent i is removed at one position after the other, from the first to the last and, separately, from the last to the
  first. The part of a position is the mean of the two changes that its removal makes.
- At each of these steps the outputs of the heads at token t, and what reaches t past the attention, are exchanged one
  after the other for their values without i at that position: first what passes the attention, then the heads in their
  order, and separately in the reverse order. The part of a head is the mean of the changes.

Each sequence of exchanges leads from the full circuit to the edge's removal, so its changes add up to the edge exactly.
With two positions or two components the mean of the two orders is the Shapley value. The effect on the activation is
split in the same way: the activation rule is applied to each pre-activation while j alone changes.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scalar_sae.errors import UserError
from scalar_sae.explore.local import at_last, at_once
from scalar_sae.explore.plain import Part, Split
from scalar_sae.explore.stage import Stage
from scalar_sae.lm.attention import Attention
from scalar_sae.sites import Site


@torch.no_grad()
def split(stage: Stage, up: int, down: int, position: int, on_progress: Callable[[float], object]) -> Split:
    """The parts of an edge's effect at a token (Journey.split)."""
    here, heads = stage.upto(position), _heads(stage)
    source = (here.change[:, up] != 0).nonzero()[:, 0]
    if not here.prompt.text[-1]:
        source = source[:0]
    value = _Value.of(here, down)
    add = here.change[source, up].unsqueeze(1) * here.pair.up.W_dec[up]
    ends = here.whole.repeat(2, 1, 1)
    ends[1, source] -= add
    pre_acts = value.of_inputs(ends)
    acts = value.activation(pre_acts)
    n_parts = 1 if heads is None else heads.n + 1
    found = torch.zeros(2, len(source), n_parts)
    for number, order in enumerate(
        (torch.arange(len(source)), torch.arange(len(source)).flip(0)) if len(source) else ()
    ):
        found[:, order] += _along(here, heads, value, source[order], add[order]).cpu() / 2
        on_progress((number + 1) / 2)
    first = position + 1 - len(here.change)
    parts = [
        Part(source=first + s, head=head - 1 if head else None, effect=effect[head], pre_act=pre_act[head])
        for s, effect, pre_act in zip(source.tolist(), *found.tolist(), strict=True)
        for head in range(n_parts)
        if pre_act[head] != 0
    ]
    return Split(
        block=str(stage.pair.block),
        up=up,
        down=down,
        position=position,
        effect=float(acts[0] - acts[1]),
        pre_act=float(pre_acts[0] - pre_acts[1]),
        parts=tuple(sorted(parts, key=lambda part: -abs(part.pre_act))),
    )


def _along(
    here: Stage,
    heads: "_Heads | None",
    value: "_Value",
    source: Int[Tensor, " source"],
    add: Float[Tensor, "source d_model"],
) -> Float[Tensor, "two source part"]:
    """Changes of activation and pre-activation as latent i is removed at these positions in this order, by what passes
    the attention (first) and by head.
    """
    n, n_parts = len(source), 1 if heads is None else heads.n + 1
    x = here.whole.repeat(n + 1, 1, 1)
    for step in range(n):
        x[step + 1 :, source[step]] -= add[step]
    at_heads = None if heads is None else heads.outputs(here, x)
    found = torch.zeros(2, n, n_parts, device=x.device)
    exchanged = torch.ones(n_parts + 1, n_parts, dtype=torch.bool, device=x.device).tril(-1)  # row m: the first m
    for order in (torch.arange(n_parts), torch.arange(n_parts).flip(0)):
        mask = exchanged[:, order.argsort(), None]  # exchange, part, one
        stream = torch.where(mask[:, 0], x[1:, None, -1], x[:-1, None, -1]).flatten(0, 1).unsqueeze(1)
        if heads is None or at_heads is None:
            pre_acts = value.of_inputs(stream)
        else:
            mixed = torch.where(mask[:, 1:], at_heads[1:, None], at_heads[:-1, None])
            with heads.replaced(mixed.flatten(2).flatten(0, 1)):
                pre_acts = value.of_inputs(stream)
        for row, along in enumerate((value.activation(pre_acts), pre_acts)):
            steps = along.view(n, n_parts + 1)
            found[row][:, order] += (steps[:, :-1] - steps[:, 1:]) / 2
    return found


@dataclass(frozen=True, eq=False)
class _Value:
    """A downstream latent at the last token of a prompt, while all others stay what they are in the full circuit."""

    here: Stage
    latent: int
    threshold: Float[Tensor, "one n_down"]

    @classmethod
    def of(cls, here: Stage, latent: int) -> "_Value":
        return cls(here, latent, here.pair.down.activation.competing_threshold(here.pre_acts[-1:]))

    def of_inputs(self, x: Float[Tensor, "row token d_model"]) -> Float[Tensor, " row"]:
        """Its pre-activation when x stands at the upstream site."""
        down, here = self.here.pair.down, self.here
        if x.shape[1] < len(here.change):
            here = here.rows(slice(len(here.change) - 1, len(here.change)))
        rows = x.split(at_once(here))
        return torch.cat([at_last(here, some) @ down.W_enc[:, self.latent] + down.b_enc[self.latent] for some in rows])

    def activation(self, pre_acts: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Its activation."""
        rule, n_down = self.here.pair.down.activation, self.here.pair.down.d_sae
        changed = pre_acts.view(-1, 1, 1).expand(-1, 1, n_down)
        return rule.activate_independently(changed, self.threshold)[:, 0, self.latent]


@dataclass(frozen=True, eq=False)
class _Heads:
    """The heads of the one attention layer of a block: the input of its output projection, a piece a head."""

    projection: nn.Module
    n: int

    def outputs(self, here: Stage, x: Float[Tensor, "row token d_model"]) -> Float[Tensor, "row head d_head"]:
        """What each head gives at the last token."""
        found: list[Tensor] = []

        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            found.append(args[0][:, -1].unflatten(-1, (self.n, -1)))

        hook = self.projection.register_forward_pre_hook(see)
        try:
            for some in x.split(at_once(here)):
                here.pair.compute(some, here.prompt.up_skip)
        finally:
            hook.remove()
        return torch.cat(found)

    @contextmanager
    def replaced(self, outputs: Float[Tensor, "row d_heads"]) -> Generator[None]:
        """Within the block the heads give these outputs at a prompt's only token."""
        done = 0

        def give(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
            nonlocal done
            some = outputs[done : done + len(args[0])]
            done += len(some)
            return (some.unsqueeze(1).to(args[0]),)

        hook = self.projection.register_forward_pre_hook(give)
        try:
            yield
        finally:
            hook.remove()


def _heads(stage: Stage) -> _Heads | None:
    """The heads between the two ends of a block; None where no attention lies between them.

    Raises:
        UserError: there are several attention layers, or the heads cannot be told apart.
    """
    block = stage.pair.block
    layers = [
        number
        for number in range(block.up.layer, block.down.layer + 1)
        if block.up.depth <= Site("attn_in", number).depth < block.down.depth
    ]
    if not layers:
        return None
    if len(layers) > 1:
        raise UserError(f"{block}: holds {len(layers)} attention layers; an edge is split over the heads of one")
    attention = next(
        function
        for one in stage.pair.computation.layers[layers[0]].stages
        for branch in one.branches
        for _, function in branch.steps
        if isinstance(function, Attention)
    )
    n_heads = getattr(stage.pair.lm.hf.config.get_text_config(), "num_attention_heads", 0)
    projection = _projection(attention, stage)
    if projection is None or not n_heads:
        raise UserError(f"{block}: the heads of {type(attention.module).__name__} cannot be told apart")
    return _Heads(projection, n_heads)


def _projection(attention: Attention, stage: Stage) -> nn.Module | None:
    """The linear map whose output is the attention's: the last that its forward calls. None if there is none."""
    called: list[tuple[nn.Module, Tensor]] = []

    def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            called.append((module, output))

    linear = [
        m for m in attention.module.modules() if isinstance(w := getattr(m, "weight", None), Tensor) and w.dim() == 2
    ]
    hooks = [module.register_forward_hook(see) for module in linear]
    try:
        output = attention(stage.whole[:1].unsqueeze(0).to(next(attention.module.parameters())))
    finally:
        for hook in hooks:
            hook.remove()
    module, last = called[-1] if called else (None, None)
    return module if last is not None and last.equal(output) else None
