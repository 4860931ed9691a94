"""Keep the weights of a trainee that did best on validation text.

Weights are judged by the trainee's own loss, summed over its sites. A Staircase is one trainee, so the kept weights of
all its sites come from the same step. The SCALAR authors differ here: they keep a Staircase only when every site is at
its best at the same step, which can freeze an early one.

The loss function changes during training: penalties warm up, weights are steered to a target L0, and K anneals. Losses
of different steps are therefore not comparable. Every validation evaluates both the current and the kept weights with
the current loss function, its schedules at their final values. On a tie the current weights win.
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
        """Step after which the weights were kept."""
        self.loss = math.inf
        """Their loss at the latest validation."""
        self._state: dict[str, Tensor] | None = None

    def judge(self, trainee: TrainableSAEs, step: int, loss: Callable[[TrainableSAEs], float]) -> float:
        """Keep the current weights if their loss is no higher than that of the kept ones. Returns the current loss."""
        if self._state is not None:
            with _instead(trainee, self._state):
                self.loss = loss(trainee)
        now = loss(trainee)
        if now <= self.loss:
            self.step, self.loss = step, now
            self._keep(trainee)
        return now

    def _keep(self, trainee: TrainableSAEs) -> None:
        """Copy the current weights into the buffers of the kept ones."""
        present = trainee.state_dict()
        if self._state is None:
            self._state = {name: torch.empty_like(tensor) for name, tensor in present.items()}
        for name, tensor in present.items():
            self._state[name].copy_(tensor)

    def restore(self, trainee: TrainableSAEs) -> None:
        """Load the kept weights and buffers into the trainee."""
        if self._state is not None:
            trainee.load_state_dict(self._state)

    def remark(self) -> dict[str, Any]:
        """The step and loss of the kept weights, for an SAE's card; empty before the first validation."""
        return {"step": self.step, "val_loss": self.loss} if self._state is not None else {}

    def state(self) -> dict[str, Any]:
        """The state to save in a checkpoint."""
        return {"step": self.step, "loss": self.loss, "state": self._state}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.step, self.loss, self._state = state["step"], state["loss"], state["state"]


@contextmanager
def _instead(trainee: TrainableSAEs, state: dict[str, Tensor]) -> Generator[None]:
    """Temporarily replace the trainee's parameters by those in `state`.

    Its buffers stay, because they define the current loss function.
    """
    present = {name: parameter.data for name, parameter in trainee.named_parameters()}
    try:
        for name, parameter in trainee.named_parameters():
            parameter.data = state[name]
        yield
    finally:
        for name, parameter in trainee.named_parameters():
            parameter.data = present[name]
