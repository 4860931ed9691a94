"""The weights of a trainee that did best on validation text.

They are judged by the trainee's own loss, the sum over its sites: a Staircase is one trainee, so what is kept are
weights that existed together. (The SCALAR authors keep a Staircase only where every site is at its best at the same
moment, which can freeze an early one.)

A loss is not the same function all along: penalties warm up, a weight is steered to a wanted L0, K anneals. So at every
validation the present weights and the kept ones are both judged by the present function, with its schedules at their
end; the later ones win a tie.
"""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from scalar_sae.saes.methods.base import TrainableSAEs


class Best:
    """The best weights so far; none before the first validation."""

    def __init__(self) -> None:
        self.step = 0
        """Step after which the weights stood."""
        self.loss = math.inf
        """Their loss, as it was found last."""
        self._state: dict[str, Tensor] | None = None

    def judge(self, trainee: TrainableSAEs, step: int, loss: Callable[[TrainableSAEs], float]) -> float:
        """Keep the present weights if they are no worse than the kept ones; returns their loss."""
        if self._state is not None:
            with _instead(trainee, self._state):
                self.loss = loss(trainee)
        now = loss(trainee)
        if now <= self.loss:
            self.step, self.loss = step, now
            self._keep(trainee)
        return now

    def _keep(self, trainee: TrainableSAEs) -> None:
        """Copy the present weights over those kept before."""
        present = trainee.state_dict()
        if self._state is None:
            self._state = {name: torch.empty_like(tensor) for name, tensor in present.items()}
        for name, tensor in present.items():
            self._state[name].copy_(tensor)

    def restore(self, trainee: TrainableSAEs) -> None:
        """Put the kept weights and what was counted with them into the trainee."""
        if self._state is not None:
            trainee.load_state_dict(self._state)

    def remark(self) -> dict[str, Any]:
        """Which weights these are, for an SAE's card; nothing where nothing was judged."""
        return {"step": self.step, "val_loss": self.loss} if self._state is not None else {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"step": self.step, "loss": self.loss, "state": self._state}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.step, self.loss, self._state = state["step"], state["loss"], state["state"]


@contextmanager
def _instead(trainee: TrainableSAEs, state: dict[str, Tensor]) -> Generator[None]:
    """The parameters of `state` in place of the trainee's; its buffers, which make the loss what it is, stay."""
    present = {name: parameter.data for name, parameter in trainee.named_parameters()}
    try:
        for name, parameter in trainee.named_parameters():
            parameter.data = state[name]
        yield
    finally:
        for name, parameter in trainee.named_parameters():
            parameter.data = present[name]
