"""What training will cost: parameters and arithmetic of a learner's step, found by running it on a few tokens.

No method is known here. A step (loss and gradients) is run on n tokens and on two n, with every matrix product counted.
Its operations are linear in n. Nothing is changed by it.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from scalar_sae.saes.methods.base import Acts, Progress, TrainableSAEs

PROBE_TOKENS = 256
"""Tokens of the smaller step."""
END = Progress(1, 1)
"""Late in training: schedules have ended."""


class Cost(NamedTuple):
    """The cost of training one trainee."""

    parameters: int
    flop_per_token: int
    """Floating-point operations of the matrix products of loss and gradients, by token, late in training."""


def cost(trainee: TrainableSAEs, d_model: int) -> Cost:
    """The cost of a trainee that reads activations of width `d_model`."""
    few, many = (_step(trainee, d_model, n) for n in (PROBE_TOKENS, 2 * PROBE_TOKENS))
    return Cost(sum(p.numel() for p in trainee.parameters()), (many - few) // PROBE_TOKENS)


def _step(trainee: TrainableSAEs, d_model: int, n: int) -> int:
    """Floating-point operations of a step on n made-up tokens."""
    generator, device = torch.Generator().manual_seed(0), next(trainee.parameters()).device
    acts: Acts = {read: torch.randn(n, d_model, generator=generator, device="cpu").to(device) for read in trainee.reads}
    known = {torch.ops.mkldnn._linear_pointwise: _linear_flop}
    with _unchanged(trainee), FlopCounterMode(display=False, custom_mapping=known) as operations:
        torch.stack(list(trainee.losses(acts, END).values())).sum().backward()
        trainee.after_backward()
    trainee.zero_grad()
    return operations.get_total_flops()


@contextmanager
def _unchanged(trainee: TrainableSAEs) -> Generator[None]:
    """What a trainee counts in the block is forgotten."""
    counted = {name: buffer.clone() for name, buffer in trainee.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in trainee.named_buffers():
            buffer.copy_(counted[name])


def _linear_flop(x: Sequence[int], W: Sequence[int], *_: Any, **__: Any) -> int:
    """Of kernels.py's product, which torch's counter does not know, from shapes."""
    return 2 * x[0] * x[1] * W[0]
