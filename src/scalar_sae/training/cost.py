"""What training will cost: parameters, arithmetic and memory of a learner's step, found by running it on a few tokens.

No method is known here. A step on n tokens (loss and gradients) is run for two n, with every matrix product and, after
every operation, the bytes in use counted: both are linear in n. Nothing is changed by it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from scalar_sae.saes.trainee import Progress, Trainee
from scalar_sae.training.memory import PROBES, Bytes, most, probe, unchanged


class Cost(NamedTuple):
    """The cost of training one trainee."""

    parameters: int
    flop_per_token: int
    """Floating-point operations of the matrix products of loss and gradients, by token."""
    step_bytes: int
    """Most memory that a step takes besides weights and moments: its gradients and what the batch fills."""


def cost(trainee: Trainee, d_model: int, batch_tokens: int) -> Cost:
    """The cost of a trainee, steps being of `batch_tokens` on this worker."""
    (few, few_bytes), (many, many_bytes) = (_step(trainee, d_model, n) for n in PROBES)
    in_use = most(few_bytes, many_bytes, batch_tokens / PROBES[0])
    return Cost(sum(p.numel() for p in trainee.parameters()), (many - few) // (PROBES[1] - PROBES[0]), in_use)


def _step(trainee: Trainee, d_model: int, n: int) -> tuple[int, list[int]]:
    """Floating-point operations of a step on n tokens, and the bytes in use after each operation."""
    acts = probe(trainee, d_model, n)
    known = {torch.ops.mkldnn._linear_pointwise: _linear_flop}
    with (
        unchanged(trainee),
        FlopCounterMode(display=False, custom_mapping=known) as operations,
        Bytes() as used,
    ):
        torch.stack(list(trainee.losses(acts, Progress(1, 1)).values())).sum().backward()
        trainee.after_backward()
    trainee.zero_grad()
    return operations.get_total_flops(), used.history


def _linear_flop(x: Sequence[int], W: Sequence[int], *_: Any, **__: Any) -> int:
    """Of linear.py's product, which torch's counter does not know, from shapes."""
    return 2 * x[0] * x[1] * W[0]
