"""Recognise a text by a sample of its passages, whatever its file, its format or the place where it begins.

A passage is a run of 32 tokens. A sketch of a text holds the smallest hashes of its passages. That is a random sample,
and another text that has the same passages draws the same ones, so two texts can be compared although only one is
there. Source: Broder (1997), On the resemblance and containment of documents.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

PASSAGE = 32
"""Tokens of a passage, a power of two."""
KEPT = 2**15
"""Most hashes in a sketch. Of a text with at most as many passages it holds all."""
FEWEST = 4
"""Passages in the sample below which nothing is said."""
_BLOCK = 2**18
"""Tokens that are hashed at once."""
_HASHES = np.iinfo(np.int64).max

Sketch = Int[Tensor, " n_hash"]


def sketch(tokens: Integer[Tensor, "*prompt token"]) -> Sketch:
    """The smallest hashes of the passages of a text or of prompts, in ascending order."""
    found = np.empty(0, np.int64)
    for hashes in _hashes(tokens):
        found = np.unique(np.concatenate([found, hashes[hashes <= _bound(found)]]))[:KEPT]
    return torch.from_numpy(found)


def share_in(tokens: Integer[Tensor, "*prompt token"], of: Sketch) -> float | None:
    """The share of the different passages of some tokens that occur in the text of a sketch.

    It is estimated from a sample: of a text with n different passages the sample has one in n / KEPT. None if the
    sample has fewer than FEWEST passages, for example because the prompts are shorter than a passage.
    """
    known = of.numpy()
    sample = np.unique(np.concatenate([hashes[hashes <= _bound(known)] for hashes in _hashes(tokens)]))
    return None if len(sample) < FEWEST else float(np.isin(sample, known).mean())


def _bound(found: Int[np.ndarray, " n"]) -> int:
    """The largest hash that a sketch can hold."""
    return _HASHES if len(found) < KEPT else int(found[-1])


def _hashes(tokens: Tensor) -> Iterator[Int[np.ndarray, " n"]]:
    """The hashes of all passages, block by block. No passage crosses the end of a prompt."""
    rows = tokens.cpu().numpy().reshape(math.prod(tokens.shape[:-1]), tokens.shape[-1])
    yield np.empty(0, np.int64)
    for some in np.array_split(rows, max(1, rows.size // _BLOCK)) if len(rows) > 1 else [rows]:
        for start in range(0, some.shape[1] - PASSAGE + 1, _BLOCK):
            yield _hash(some[:, start : start + _BLOCK + PASSAGE - 1])


def _hash(rows: Integer[np.ndarray, "row token"]) -> Int[np.ndarray, " n"]:
    """A hash of every passage in rows of tokens: a polynomial in the tokens modulo 2^64, well mixed."""
    hashes, factor, n = _mixed(rows.astype(np.uint64) + np.uint64(1)), np.uint64(0x9E3779B97F4A7C15), 1
    with np.errstate(over="ignore"):
        while n < PASSAGE:  # a passage of 2n tokens is one of n and the next one of n
            hashes, factor, n = hashes[:, :-n] * factor + hashes[:, n:], factor * factor, 2 * n
    return (_mixed(hashes.ravel()) >> np.uint64(1)).astype(np.int64)


def _mixed(x: Integer[np.ndarray, "*n"]) -> Integer[np.ndarray, "*n"]:
    """The bits of 64-bit numbers, mixed by the finaliser of SplitMix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
