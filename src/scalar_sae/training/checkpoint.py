"""Checkpoints, and stopping on a signal.

A checkpoint is the learners' states and how far the stream was used: buffer i depends on (seed, i) alone, and every
random choice of a method on (seed, site, step), so no generator's state is needed to go on with the same bytes.
"""

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

from scalar_sae import distributed
from scalar_sae.errors import UserError, reason
from scalar_sae.io import atomic_write, differences
from scalar_sae.readers import WRITER
from scalar_sae.sealed import load_checkpoint, save_checkpoint
from scalar_sae.training.learner import OptimizedSAEs

REMEDY = "move it away and run the same command to start again"


class Position(NamedTuple):
    """How far training has come."""

    step: int = 0
    """Optimiser steps done."""
    buffer: int = 0
    """Number of the buffer in use."""
    batch: int = 0
    """Batches of that buffer that were used."""


def save(path: Path, at: Position, learners: list[OptimizedSAEs], run: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; `run` is the config and the text, as plain values."""
    learned = [learner.state() for learner in learners]
    with atomic_write(path, "--out") as temporary:
        save_checkpoint(temporary, {"position": tuple(at), "learners": learned, "run": run, "written_by": WRITER})


def resume(path: Path, learners: list[OptimizedSAEs], device: torch.device, run: dict[str, Any]) -> Position:
    """Load a checkpoint onto a device if there is one.

    Raises:
        UserError: it is damaged, was changed, is of other SAEs or another run, or another worker sees another one.
    """
    at = _loaded(path, learners, device, run) if os.path.lexists(path) else Position()
    distributed.check_agreement(str(path), at)
    return at


def _loaded(path: Path, learners: list[OptimizedSAEs], device: torch.device, run: dict[str, Any]) -> Position:
    saved = load_checkpoint(path, device, "a checkpoint of these SAEs", REMEDY)
    if differing := differences(saved.get("run", {}), run):
        raise UserError(f"{path}: not a checkpoint of these SAEs (of another run: {'; '.join(differing)}); {REMEDY}")
    try:
        for learner, state in zip(learners, saved["learners"], strict=True):
            learner.load(state)
        return Position(*saved["position"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a checkpoint of these SAEs ({reason(error)}); {REMEDY}") from error


class Signals:
    """Whether SIGINT, SIGTERM or SIGHUP has arrived."""

    received: int | None = None

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number


@contextmanager
def noted() -> Generator[Signals]:
    """While the block runs, signals that end a process are noted only; the block looks, and ends in good order.

    A signal that the process ignores, as SIGHUP under `nohup`, stays ignored.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield signals
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is not known everywhere
    numbers = [number for name in names if (number := getattr(signal, name, None)) is not None]
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, signals._note) for number in numbers}  # pyright: ignore[reportPrivateUsage]
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
