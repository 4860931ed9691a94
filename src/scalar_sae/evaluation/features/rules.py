"""How well does a small rule over its context say where a latent fires? A score that needs no language model.

The rule of n tokens: the latent fires behind those contexts (the current token and the n - 1 before it) behind which it
fired at least half of the times in the even prompts; a context that is not there is judged by its last n - 1 tokens.
Rules are tried on the odd prompts. The rule of one token is a list of tokens, which can be read.

    scores = rule_scores(tokens, fired)     # fired: sparse booleans, a row a token, a column a latent
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from scalar_sae.lm.special import counted

Sparse = Any
"""A csr_array, of which scipy's stubs know too little."""
LENGTHS = (1, 2, 3)
"""Tokens that the rules look at."""
LISTED = 10
"""Tokens listed of a rule of one token."""


class RuleScores(NamedTuple):
    """How well the rules did, on prompts that they were not made from."""

    f1: Float[np.ndarray, "d_sae n_rules"]
    """NaN for latents that never fired there."""
    accuracy: Float[np.ndarray, "d_sae n_rules"]
    """Balanced: mean of the shares of both classes that are right; NaN for latents that never fired there."""
    tokens: list[list[int]]
    """The rule of one token: those behind which the latent fires, the most frequent first."""


def rule_scores(tokens: Int[Tensor, "prompt token"], fired: Sparse, special: Collection[int] = ()) -> RuleScores:
    """Make a rule for every latent and length from even prompts, and try them on odd ones.

    Args:
        tokens: prompts.
        fired: [prompts * tokens, d_sae], where each latent fires.
        special: ids of tokens at which nothing is learned or tried; they are context of those that follow.
    """
    even = np.repeat(np.arange(len(tokens)) % 2 == 0, tokens.shape[1])
    there = counted(tokens, special).flatten().numpy()
    made, tried = even & there, ~even & there
    truth = fired[tried].astype(np.int64)
    f1, accuracy = (np.empty((fired.shape[1], len(LENGTHS))) for _ in range(2))
    said: Sparse = csr_array(truth.shape, dtype=np.int64)
    one_token: list[list[int]] = []
    for number, context in enumerate(_contexts(tokens)):
        counts, rule = _learned(context[made], int(context.max()) + 1, fired[made])
        known = np.isin(context[tried], context[made])
        seen = _one_hot(context[tried], known, rule.shape[0]) @ rule
        said = seen + _rows(~known) @ said
        f1[:, number], accuracy[:, number] = _scores(said, truth)
        one_token = one_token or _listed(rule.multiply(counts))
    return RuleScores(f1.astype(np.float32), accuracy.astype(np.float32), one_token)


def _contexts(tokens: Int[Tensor, "prompt token"]) -> list[Int[np.ndarray, " n"]]:
    """For each length, a number for every place: the same where the last tokens are (a prompt's start is one)."""
    ids = tokens.numpy().astype(np.int64)
    found = [ids.ravel()]
    before = ids
    for _ in LENGTHS[1:]:
        behind = np.pad(before, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
        pairs = (behind + 1) * (ids.max() + 1) + ids
        before = np.unique(pairs, return_inverse=True)[1].reshape(ids.shape)
        found.append(before.ravel())
    return found


def _learned(context: Int[np.ndarray, " n"], n_contexts: int, fired: Sparse) -> tuple[Sparse, Sparse]:
    """How often each latent fired behind each context, and where that is half of the times or more."""
    everywhere = np.ones(len(context), dtype=bool)
    counts: Sparse = coo_array(_one_hot(context, everywhere, n_contexts).T @ fired.astype(np.int64))
    times = np.bincount(context, minlength=n_contexts)
    row, column = counts.coords
    often = 2 * counts.data >= times[row]
    rule = coo_array((np.ones(often.sum(), dtype=np.int64), (row[often], column[often])), shape=counts.shape)
    return counts.tocsr(), rule.tocsr()


def _one_hot(context: Int[np.ndarray, " n"], there: Bool[np.ndarray, " n"], n_contexts: int) -> Sparse:
    """[place, context]; a row of zeros where the context does not count."""
    rows = np.flatnonzero(there)
    ones = np.ones(len(rows), dtype=np.int64)
    return coo_array((ones, (rows, context[rows])), shape=(len(context), n_contexts)).tocsr()


def _rows(there: Bool[np.ndarray, " n"]) -> Sparse:
    """The diagonal matrix that keeps some rows."""
    return _one_hot(np.arange(len(there)), there, len(there))


def _scores(said: Sparse, truth: Sparse) -> tuple[Float[np.ndarray, " d_sae"], Float[np.ndarray, " d_sae"]]:
    """F1 and balanced accuracy of each column."""
    n = truth.shape[0]
    right, yes, fires = (part.sum(0).astype(float) for part in (said.multiply(truth), said, truth))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, specificity = right / fires, (n - fires - yes + right) / (n - fires)
        return np.where(fires > 0, 2 * right / (yes + fires), np.nan), (recall + specificity) / 2


def _listed(counts: Sparse) -> list[list[int]]:
    """For each column the rows with the largest counts."""
    columns = counts.tocsc()
    found: list[list[int]] = []
    for start, end in zip(columns.indptr[:-1], columns.indptr[1:], strict=True):
        order = np.argsort(-columns.data[start:end], kind="stable")[:LISTED]
        found.append(columns.indices[start:end][order].tolist())
    return found
