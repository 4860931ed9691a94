"""Compare next-token distributions by KL and cross-entropy, a few tokens at a time.

Logits are large: those of a thousand tokens take 200 MB for a vocabulary of 49,152. They are therefore computed for
some tokens at a time, as many as keep the product with the unembedding fast, and compared for as few as fit in the
cache. Only the reference log-probabilities are held whole.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.kernels import FastCPUOps
from scalar_sae.lm.model import LanguageModel

LOGIT_BYTES = 2**25
"""Maximum size of the logits that are computed at a time."""
CACHE_BYTES = 2**22
"""On a CPU, maximum size of the logits that are compared at a time."""

Divergence = Callable[[Tensor, Tensor], Tensor]
"""From log-probabilities p and q, [..., d_vocab], to the divergence of q from p, [...], in nats."""


class Compared(NamedTuple):
    """Distributions compared with reference distributions."""

    kl: Float[Tensor, "reference batch token"]
    """KL(reference || distribution) in nats."""
    ce: Float[Tensor, "batch token_1"]
    """Next-token cross-entropy in nats; the last token has no target."""


def kl(p: Float[Tensor, "*#batch d_vocab"], q: Float[Tensor, "*#batch d_vocab"]) -> Float[Tensor, "*batch"]:
    """KL(p || q) in nats from log-probabilities. Leading axes are broadcast."""
    return (p.exp() * (p - q)).sum(-1)


@torch.no_grad()
def log_probs(lm: LanguageModel, x: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token d_vocab"]:
    """Next-token log-probabilities, held whole, when the residual stream after the last layer is x."""
    found = x.new_empty(*x.shape[:2], lm.d_vocab)
    for at, some in _pieces(lm, x):
        found[at] = some
    return found


@torch.no_grad()
def compare(
    lm: LanguageModel,
    x: Float[Tensor, "batch token d_model"],
    references: Sequence[Float[Tensor, "_ token d_vocab"]],
    tokens: Int[Tensor, "_ token"],
    divergence: Divergence = kl,
) -> Compared:
    """Compare the distributions that follow from x, the residual stream after the last layer, with references.

    The first axes of x, of each reference and of the tokens are broadcast: each is either the same batch or 1.

    Args:
        lm: the model.
        x: the residual stream after the last layer.
        references: reference log-probabilities.
        tokens: the prompts, from which the targets of the cross-entropy are taken.
        divergence: the divergence from a reference; KL by default.
    """
    batch = max(len(x), len(tokens), *map(len, references))
    next_token = tokens.roll(-1, 1)
    found, ce = x.new_empty(len(references), batch, x.shape[1]), x.new_empty(batch, x.shape[1])
    for (rows, columns), q in _pieces(lm, x):
        for here in [rows] if len(x) == batch else [slice(row, row + 1) for row in range(batch)]:
            for number, reference in enumerate(references):
                found[number, here, columns] = divergence(_rows(reference, here)[:, columns], q)
            target = _rows(next_token, here)[:, columns].expand(q.shape[:2])
            ce[here, columns] = -q.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return Compared(found, ce[:, :-1])


def _pieces(lm: LanguageModel, x: Tensor) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Yield log-probabilities [batch, token, d_vocab] of some prompts and tokens, with their index."""
    cache = CACHE_BYTES if x.device.type == "cpu" else LOGIT_BYTES
    for rows, columns in _cut(x.shape[0], x.shape[1], lm.d_vocab, LOGIT_BYTES):
        with FastCPUOps():
            logits = lm.unembed(x[rows, columns])
        for inner_rows, inner_columns in _cut(logits.shape[0], logits.shape[1], lm.d_vocab, cache):
            here = _within(rows, inner_rows), _within(columns, inner_columns)
            yield here, logits[inner_rows, inner_columns].log_softmax(-1)


def _cut(batch: int, n_token: int, d_vocab: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Cut [batch, token] into pieces whose logits take at most `most` bytes: whole prompts where they fit."""
    fit = max(1, most // (4 * d_vocab))
    height, width = max(1, fit // n_token), min(fit, n_token)
    for row in range(0, batch, height):
        for column in range(0, n_token, width):
            yield slice(row, min(row + height, batch)), slice(column, min(column + width, n_token))


def _rows(x: Tensor, here: slice) -> Tensor:
    """Some rows of a batch, or its only row."""
    return x if len(x) == 1 else x[here]


def _within(outer: slice, inner: slice) -> slice:
    return slice(outer.start + inner.start, outer.start + inner.stop)
