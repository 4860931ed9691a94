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

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.explore.attention import Heads, heads_of
from scalar_sae.explore.passes import at_last, at_once
from scalar_sae.explore.plain import Part, Split
from scalar_sae.explore.stage import Stage


@torch.no_grad()
def split(stage: Stage, up: int, down: int, position: int, on_progress: Callable[[float], object]) -> Split:
    """The parts of an edge's effect at a token (Journey.split)."""
    here, heads = stage.upto(position), heads_of(stage)
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
    heads: Heads | None,
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
