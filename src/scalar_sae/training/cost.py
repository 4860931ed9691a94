"""What training will cost: parameters, arithmetic and memory of a learner's step, found by running it on a few tokens.

No method is known here. A step on n tokens (loss and gradients) is run for two n, with every matrix product and, after
every operation, the bytes in use counted: both are linear in n. Nothing is changed by it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from scalar_sae.saes.methods.base import Progress, TrainableSAEs
from scalar_sae.training.memory import PROBES, Bytes, History, most, probe, unchanged

MOST_TOKENS = 512
"""Tokens of the smaller probe at the most: more than most work in pieces takes at once."""
START, END = Progress(0, 2), Progress(1, 1)


class Cost(NamedTuple):
    """The cost of training one trainee."""

    parameters: int
    flop_per_token: int
    """Floating-point operations of the matrix products of loss and gradients, by token, late in training."""
    step_bytes: int
    """Most memory that a step takes besides weights and moments: its gradients and what the batch fills. The
    larger of a first and a last step: Llama Scope begins with many latents a token."""


def cost(trainee: TrainableSAEs, d_model: int, batch_tokens: int) -> Cost:
    """The cost of a trainee, steps being of `batch_tokens` on this worker."""
    n = max(PROBES[0], min(MOST_TOKENS, batch_tokens // 4))
    steps = [[_step(trainee, d_model, tokens, progress) for tokens in (n, 2 * n)] for progress in (START, END)]
    in_use = max(most(few, many, batch_tokens / n) for (_, few), (_, many) in steps)
    few, many = (flop for flop, _ in steps[-1])
    return Cost(sum(p.numel() for p in trainee.parameters()), (many - few) // n, in_use)


def _step(trainee: TrainableSAEs, d_model: int, n: int, progress: Progress) -> tuple[int, History]:
    """Floating-point operations of a step on n tokens, and the bytes in use after each operation."""
    acts = probe(trainee, d_model, n)
    known = {torch.ops.mkldnn._linear_pointwise: _linear_flop}
    with (
        unchanged(trainee),
        FlopCounterMode(display=False, custom_mapping=known) as operations,
        Bytes() as used,
    ):
        torch.stack(list(trainee.losses(acts, progress).values())).sum().backward()
        trainee.after_backward()
    trainee.zero_grad()
    return operations.get_total_flops(), used.history


def _linear_flop(x: Sequence[int], W: Sequence[int], *_: Any, **__: Any) -> int:
    """Of kernels.py's product, which torch's counter does not know, from shapes."""
    return 2 * x[0] * x[1] * W[0]
