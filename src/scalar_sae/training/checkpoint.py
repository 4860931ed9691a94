"""Checkpoints, and stopping on a signal.

A checkpoint holds the states of the learners and the position in the stream. Buffer i depends only on (seed, i), and
every random choice of a method only on (seed, site, step). A resumed run therefore ends with the same bytes without
saving the state of any random generator.
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
    """The position in training."""

    step: int = 0
    """Optimiser steps taken."""
    buffer: int = 0
    """Index of the current buffer."""
    batch: int = 0
    """Number of batches of that buffer already used."""


def save(path: Path, at: Position, learners: list[OptimizedSAEs], run: dict[str, Any]) -> None:
    """Write a checkpoint atomically. `run` holds the config and the description of the text, as plain values."""
    learned = [learner.state() for learner in learners]
    with atomic_write(path, "--out") as temporary:
        save_checkpoint(temporary, {"position": tuple(at), "learners": learned, "run": run, "written_by": WRITER})


def resume(path: Path, learners: list[OptimizedSAEs], device: torch.device, run: dict[str, Any]) -> Position:
    """Load the checkpoint onto a device if there is one, and return its position.

    Raises:
        UserError: the checkpoint is damaged or was changed, it belongs to other SAEs or another run, or the workers see
            different checkpoints.
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
    """Records whether SIGINT, SIGTERM or SIGHUP has arrived."""

    received: int | None = None

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number


@contextmanager
def noted() -> Generator[Signals]:
    """Record signals that would end the process instead of acting on them; the block checks for them and ends cleanly.

    A signal that the process already ignores, such as SIGHUP under `nohup`, stays ignored.
    """
    signals = Signals()
    # Python allows signal handlers only in the main thread
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGHUP does not exist on every platform
    numbers = [number for name in names if (number := getattr(signal, name, None)) is not None]
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, signals._note) for number in numbers}  # pyright: ignore[reportPrivateUsage]
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
