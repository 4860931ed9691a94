"""How much of the full circuit and of the model some edges carry: readings at every token, and their means."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.explore.plain import Measured


@dataclass(frozen=True, eq=False)
class References:
    """What circuits are compared with, at every token of a prompt, in nats."""

    kl_nothing: Float[Tensor, " token"]
    """KL(full circuit || no edges)."""
    kl_mean: Float[Tensor, " token"] | None
    """KL(model || site mean); None where the mean is not known."""
    floor_kl: Float[Tensor, " token"]
    """KL(model || full circuit)."""


@dataclass(frozen=True, eq=False)
class Readings:
    """What is read at every token of a prompt under a circuit. Divergences are in nats."""

    edges: int
    text: Bool[Tensor, " token"]
    """Tokens that count."""
    references: References
    kl_model: Float[Tensor, " token"]
    kl_circuit: Float[Tensor, " token"]
    live_edges: Int[Tensor, " token"]
    l0_down: Int[Tensor, " token"]

    def at(self, position: int) -> "Readings":
        """The same, where a single token counts."""
        text = torch.zeros_like(self.text)
        text[position] = True
        return replace(self, text=text)

    def total(self, values: Tensor) -> float:
        """Sum over the tokens that count."""
        return float(values[self.text].double().sum())


def measured(readings: Sequence[Readings]) -> Measured:
    """Means over the tokens of some prompts.

    Raises:
        UserError: no token counts, or an output is not finite.
    """
    n = sum(int(one.text.sum()) for one in readings)
    if not n:
        raise UserError("text to measure a circuit on: nothing but special tokens; give other text")

    def mean(of: Callable[[Readings], Tensor]) -> float:
        return sum(one.total(of(one)) for one in readings) / n

    kl_model, kl_circuit = mean(lambda one: one.kl_model), mean(lambda one: one.kl_circuit)
    kl_nothing, floor_kl = mean(lambda one: one.references.kl_nothing), mean(lambda one: one.references.floor_kl)
    kl_mean = [one.total(one.references.kl_mean) for one in readings if one.references.kl_mean is not None]
    if not all(map(isfinite, (kl_model, kl_circuit, kl_nothing, floor_kl))):
        raise UserError("the model's output is not finite; check the language model's weights")
    return Measured(
        edges=readings[0].edges,
        kl_model=kl_model,
        kl_circuit=kl_circuit,
        recovery=1 - kl_circuit / (kl_nothing if kl_nothing > 0 else 1.0),
        faithfulness=1 - kl_model * n / sum(kl_mean) if kl_mean else None,
        live_edges=mean(lambda one: one.live_edges),
        l0_down=mean(lambda one: one.l0_down),
        floor_kl=floor_kl,
    )
