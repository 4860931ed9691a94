"""What training will cost: parameters, arithmetic and memory of a learner's step, found by running it on a few tokens.

No method is known here. A step on n tokens (loss and gradients) is run for two n, with every matrix product and, after
every operation, the bytes in use counted: both are linear in n. Nothing is changed by it.
"""

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from scalar_sae.saes.trainee import Progress, Trainee

PROBES = (64, 128)
STATES = 3
"""Numbers kept for every weight besides its gradient: the weight and the optimiser's two moments."""


class Cost(NamedTuple):
    """The cost of training one trainee."""

    parameters: int
    flop_per_token: int
    """Floating-point operations of the matrix products of loss and gradients, by token."""
    step_bytes: int
    """Most memory that a step takes besides weights and moments: its gradients and what the batch fills."""


def cost(trainee: Trainee, d_model: int, batch_tokens: int) -> Cost:
    """The cost of a trainee, steps being of `batch_tokens` on this worker."""
    (few, few_bytes), (many, many_bytes) = (_probe(trainee, d_model, n) for n in PROBES)
    n, more = PROBES[1] - PROBES[0], batch_tokens - PROBES[0]
    in_use = (a + (b - a) / n * more for a, b in zip(few_bytes, many_bytes, strict=False))
    return Cost(sum(p.numel() for p in trainee.parameters()), (many - few) // n, round(max(in_use)))


def memory(costs: Sequence[Cost], kept: bool) -> dict[str, int]:
    """Bytes that trainees need while they take turns: weights and moments of all, the step of one at a time.

    Args:
        costs: of every trainee.
        kept: whether the best weights so far are kept beside the present ones.
    """
    weights = 4 * sum(one.parameters for one in costs)
    found = {"weights and moments": STATES * weights, "one step": max(one.step_bytes for one in costs)}
    return found | ({"best weights": weights} if kept else {})


def _probe(trainee: Trainee, d_model: int, n: int) -> tuple[int, list[int]]:
    """Floating-point operations of a step on n tokens, and the bytes in use after each operation."""
    counted = {name: buffer.clone() for name, buffer in trainee.named_buffers()}
    generator = torch.Generator().manual_seed(0)
    acts = {read: torch.randn(n, d_model, generator=generator) for read in trainee.reads}
    known = {torch.ops.mkldnn._linear_pointwise: _linear_flop}
    with FlopCounterMode(display=False, custom_mapping=known) as operations, _Bytes() as used:
        torch.stack(list(trainee.losses(acts, Progress(1, 1)).values())).sum().backward()
        trainee.after_backward()
    trainee.zero_grad()
    with torch.no_grad():
        for name, buffer in trainee.named_buffers():
            buffer.copy_(counted[name])
    return operations.get_total_flops(), used.history


def _linear_flop(x: Sequence[int], W: Sequence[int], *_: Any, **__: Any) -> int:
    """Of linear.py's product, which torch's counter does not know, from shapes."""
    return 2 * x[0] * x[1] * W[0]


class _Bytes(TorchDispatchMode):
    """Counts the memory of the tensors that are made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[int] = []
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
        self.history.append(self._now)
        return out

    @staticmethod
    def _key(x: Tensor) -> int:
        return x.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]

    def _free(self, key: int, n: int) -> None:
        self._live.discard(key)
        self._now -= n
