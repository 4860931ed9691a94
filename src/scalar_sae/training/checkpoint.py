"""Checkpoints, and stopping on a signal.

A checkpoint is the learners' states and how far the stream was used: buffer i depends on (seed, i) alone, and every
random choice of a method on (seed, site, step), so no generator's state is needed to go on with the same bytes.
"""

import pickle
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch

from scalar_sae.errors import UserError
from scalar_sae.io import whole
from scalar_sae.training.learner import Learner


class Position(NamedTuple):
    """How far training has come."""

    step: int = 0
    """Optimiser steps done."""
    buffer: int = 0
    """Number of the buffer in use."""
    batch: int = 0
    """Batches of that buffer that were used."""


def save(path: Path, at: Position, learners: list[Learner]) -> None:
    """Write a checkpoint, whole or not at all."""
    with whole(path) as temporary, temporary.open("wb") as file:  # which says what is wrong with the disk
        torch.save({"position": tuple(at), "learners": [learner.state() for learner in learners]}, file)


def resume(path: Path, learners: list[Learner], device: torch.device) -> Position:
    """Load a checkpoint onto a device if there is one.

    Raises:
        UserError: it is damaged, or of other SAEs.
    """
    if not path.exists():
        return Position()
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        for learner, state in zip(learners, saved["learners"], strict=True):
            learner.load(state)
        return Position(*saved["position"])
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a checkpoint of these SAEs ({reason}); delete it to start again") from error


class Signals:
    """Whether SIGINT or SIGTERM has arrived."""

    received: int | None = None

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number


@contextmanager
def noted() -> Generator[Signals]:
    """While the block runs, SIGINT and SIGTERM are noted only; the block looks, and ends in good order."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield signals
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signals._note) for number in numbers}  # pyright: ignore[reportPrivateUsage]
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
