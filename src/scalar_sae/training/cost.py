"""The cost of training: parameters and floating-point operations per token, measured by running a step on a few tokens.

This works for every method without knowing it. One step (loss and gradients) is run on n tokens and one on 2n, and all
matrix products are counted. The count is linear in n, so the difference gives the cost per token. The trainee is left
unchanged.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from scalar_sae.saes.methods.base import Acts, Progress, TrainableSAEs

PROBE_TOKENS = 256
"""Number of tokens of the smaller step."""
END = Progress(1, 1)
"""The end of training, where all schedules have reached their final values."""


class Cost(NamedTuple):
    """The cost of training one trainee."""

    parameters: int
    flop_per_token: int
    """Floating-point operations per token in the matrix products of loss and gradients, late in training."""


def cost(trainee: TrainableSAEs, d_model: int) -> Cost:
    """Measure the cost of a trainee that reads activations of width `d_model`."""
    few, many = (_step(trainee, d_model, n) for n in (PROBE_TOKENS, 2 * PROBE_TOKENS))
    return Cost(sum(p.numel() for p in trainee.parameters()), (many - few) // PROBE_TOKENS)


def _step(trainee: TrainableSAEs, d_model: int, n: int) -> int:
    """Count the floating-point operations of one step on n random tokens."""
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
    """Restore the trainee's buffers after the block."""
    counted = {name: buffer.clone() for name, buffer in trainee.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in trainee.named_buffers():
            buffer.copy_(counted[name])


def _linear_flop(x: Sequence[int], W: Sequence[int], *_: Any, **__: Any) -> int:
    """Count the operations of the product in kernels.py, which torch's counter does not know, from its shapes."""
    return 2 * x[0] * x[1] * W[0]
