"""How much memory a run will hold at most, found before it starts.

What stays is counted. What a phase of the run fills for a while is found by running the phase on some data and on twice
as much, with the bytes in use counted after every operation: they are linear in the data. Phases take turns, so the
largest counts. Not foreseen is the auxiliary loss on latents that have died by then.
"""

import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scalar_sae.activations.stream import ActivationStream, read_all
from scalar_sae.saes.methods.base import CALIBRATION_TOKENS, Acts, TrainableSAEs
from scalar_sae.training.validation import BATCH_TOKENS, Validation

Some = TypeVar("Some")

PROBES = (64, 128)
"""Tokens that a trainee is probed with."""


class Moment(NamedTuple):
    """After an operation."""

    operation: str
    in_use: int
    """Bytes."""


History = list[Moment]


def reading(stream: ActivationStream) -> int:
    """Bytes that the language model fills while activations are read into a buffer."""
    windows = min(stream.lm_batch, stream.windows_per_buffer)
    one = stream.prompts[:1].to(stream.lm.device)
    return filled(lambda tokens: read_all(stream.lm, tokens, stream.reads), one, torch.cat([one, one]), windows)


def validating(trainees: Sequence[TrainableSAEs], few: Validation, many: Validation, windows: int, context: int) -> int:
    """Bytes that a validation fills: logits, spliced copies, an SAE and its code.

    Args:
        trainees: one of each method.
        few: validation on one window of text.
        many: on two.
        windows: how many there are.
        context: tokens of a window.
    """

    def run(trainee: TrainableSAEs) -> Callable[[Validation], object]:
        return lambda text: (text.loss(trainee), text.measure([trainee], []))

    windows = min(windows, max(1, BATCH_TOKENS // context))
    return max(filled(run(trainee), few, many, windows) for trainee in trainees)


def calibrating(trainees: Sequence[TrainableSAEs], d_model: int, tokens: int) -> int:
    """Bytes that reading thresholds off a buffer of `tokens` fills, at the end."""
    most = 0
    for trainee in trainees:
        with unchanged(trainee):
            few, many = (probe(trainee, d_model, n) for n in PROBES)
            most = max(most, filled(trainee.calibrate, few, many, min(tokens, CALIBRATION_TOKENS) / PROBES[0]))
    return most


def probe(trainee: TrainableSAEs, d_model: int, n: int) -> Acts:
    """Made-up activations for a trainee."""
    generator, device = torch.Generator().manual_seed(0), next(trainee.parameters()).device
    return {read: torch.randn(n, d_model, generator=generator, device="cpu").to(device) for read in trainee.reads}


@contextmanager
def unchanged(trainee: TrainableSAEs) -> Generator[None]:
    """What a trainee counts in the block is forgotten."""
    counted = {name: buffer.clone() for name, buffer in trainee.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in trainee.named_buffers():
            buffer.copy_(counted[name])


def filled(run: Callable[[Some], object], few: Some, many: Some, times: int | float) -> int:
    """Most bytes that `run` has in use on `times` as much as `few`; `many` is twice as much."""
    histories: list[History] = []
    for some in (few, many):
        with Bytes() as used:
            run(some)
        histories.append(used.history)
    return most(histories[0], histories[1], times)


def most(few: History, many: History, times: int | float) -> int:
    """The largest of the bytes after each operation, on `times` as much as `few`; `many` is twice as much.

    Operations are matched from the start and from the end, as far as they are the same, and the fullest moments with
    each other: what is done in pieces of one size takes more operations on more data, not more bytes.
    """
    fullest = [max((moment.in_use for moment in history), default=0) for history in (few, many)]
    matched = [*_matched(few, many), *_matched(few[::-1], many[::-1]), (fullest[0], fullest[1])]
    return round(max(a + (b - a) * (times - 1) for a, b in matched))


def _matched(few: History, many: History) -> list[tuple[int, int]]:
    same = takewhile(lambda both: both[0].operation == both[1].operation, zip(few, many, strict=False))
    return [(a.in_use, b.in_use) for a, b in same]


class Bytes(TorchDispatchMode):
    """Counts the memory of the tensors that are made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.history: History = []
        self._now = 0
        self._live: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {self._key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and (key := self._key(x)) not in self._live | given:
                storage = x.untyped_storage()
                self._live.add(key)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._free, key, storage.nbytes())
        self.history.append(Moment(str(func), self._now))
        return out

    @staticmethod
    def _key(x: Tensor) -> int:
        return x.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]

    def _free(self, key: int, n: int) -> None:
        self._live.discard(key)
        self._now -= n
