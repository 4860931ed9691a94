"""Rule scores: how well does a small rule over the context predict where a latent fires? No language model is needed.

The rule of n tokens looks at the current token and the n - 1 before it. It predicts firing after those contexts after
which the latent fired in at least half of the cases in the even prompts. An unseen context is judged by its last n - 1
tokens. Rules are tested on the odd prompts. The rule of one token is a readable list of tokens.

    scores = rule_scores(tokens, fired)     # fired: sparse booleans, one row per token, one column per latent
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from scalar_sae.evaluation.features.tables import LENGTHS
from scalar_sae.lm.special import First, counted

Sparse = Any
"""A csr_array, whose stubs in scipy are incomplete."""
LISTED = 10
"""Number of tokens listed for a rule of one token."""


class RuleScores(NamedTuple):
    """Scores of the rules on prompts that they were not made from."""

    f1: Float[np.ndarray, "d_sae n_rules"]
    """NaN for latents that never fired there."""
    accuracy: Float[np.ndarray, "d_sae n_rules"]
    """Balanced accuracy, the mean of the accuracies within both classes; NaN for latents that never fired there."""
    tokens: list[list[int]]
    """The rule of one token: the tokens after which the latent fires, most frequent first."""


def rule_scores(
    tokens: Int[Tensor, "prompt token"], fired: Sparse, special: Collection[int | First] = ()
) -> RuleScores:
    """Make a rule for every latent and length from even prompts, and test it on odd ones.

    Args:
        tokens: prompts.
        fired: [prompts * tokens, d_sae], where each latent fires.
        special: tokens at which nothing is learned or tested; they remain context of later tokens.
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
    """For each length, an id of the context at every position. Equal contexts have equal ids; a prompt's start counts
    as a token.
    """
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
    """How often each latent fired in each context, and where that is at least half of the cases."""
    everywhere = np.ones(len(context), dtype=bool)
    counts: Sparse = coo_array(_one_hot(context, everywhere, n_contexts).T @ fired.astype(np.int64))
    times = np.bincount(context, minlength=n_contexts)
    row, column = counts.coords
    often = 2 * counts.data >= times[row]
    rule = coo_array((np.ones(often.sum(), dtype=np.int64), (row[often], column[often])), shape=counts.shape)
    return counts.tocsr(), rule.tocsr()


def _one_hot(context: Int[np.ndarray, " n"], there: Bool[np.ndarray, " n"], n_contexts: int) -> Sparse:
    """[position, context]; a row of zeros where the position does not count."""
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
    """For each column, the rows with the largest counts."""
    columns = counts.tocsc()
    found: list[list[int]] = []
    for start, end in zip(columns.indptr[:-1], columns.indptr[1:], strict=True):
        order = np.argsort(-columns.data[start:end], kind="stable")[:LISTED]
        found.append(columns.indices[start:end][order].tolist())
    return found
