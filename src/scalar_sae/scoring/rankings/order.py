"""From scores to an order: which of a pair's edges does each edge count keep?

An edge's place is one integer key: its score in the upper half, a seeded hash of its index in the lower. Keys never
tie, so every count is met exactly, and equal scores (zeros, most often) come in an order that a seed fixes and that
an index does not. Among more keys than fit a chunk the n-th largest is found by counting, 16 bits at a time.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor

from scalar_sae.errors import UserError

NOT_KEPT = 255
"""The keep index of an edge that no count keeps."""
MOST_COUNTS = 254

_CHUNK = 2**20
_DIGITS = 2**16


def keep_indices(
    scores: Float[Tensor, "n_up n_down"], counts: Int[np.ndarray, " n_counts"], seed: int
) -> UInt8[Tensor, "n_up n_down"]:
    """For every edge the index of the first count that keeps it, edges taken in descending order of score.

    Raises:
        UserError: a score is NaN, or there are more than 2^32 edges.
    """
    assert len(counts) <= MOST_COUNTS
    if scores.numel() > 2**32:
        raise UserError(f"{scores.numel():,} edges: rankings hold at most 2^32; score fewer latents")
    if scores.max().isnan():  # a maximum is NaN if anything is, and takes no memory
        up, down = (int(i) for i in scores.isnan().nonzero()[0])
        raise UserError(f"ranking: the score of edge ({up}, {down}) is NaN")
    bounds = _nth_largest(scores, counts[counts > 0], seed).flip(0)  # ascending
    keep_index = torch.empty(scores.numel(), dtype=torch.uint8, device=scores.device)
    for start, keys in _keys(scores, seed):
        index = len(counts) - torch.bucketize(keys, bounds, right=True)
        keep_index[start : start + len(keys)] = index.masked_fill(index == len(counts), NOT_KEPT).byte()
    return keep_index.view(scores.shape)


def strongest(scores: Float[Tensor, "n_up n_down"], n: int, seed: int) -> Int64[Tensor, "n_kept two"]:
    """The n edges that `keep_indices` keeps first, strongest first, an upstream and a downstream latent each.

    A pair with fewer edges gives all.
    """
    keys, index = scores.new_empty(0, dtype=torch.long), scores.new_empty(0, dtype=torch.long)
    for start, some in _keys(scores, seed):
        keys = torch.cat([keys, some])
        index = torch.cat([index, torch.arange(start, start + len(some), device=some.device)])
        keys, best = keys.topk(min(n, len(keys)))
        index = index[best]
    return torch.stack([index // scores.shape[1], index % scores.shape[1]], 1)


def _keys(scores: Float[Tensor, "n_up n_down"], seed: int) -> Iterator[tuple[int, Int64[Tensor, " edge"]]]:
    """The keys of all edges, chunk by chunk, with the index of each chunk's first edge."""
    flat = scores.flatten()
    for start in range(0, flat.numel(), _CHUNK):
        bits = (flat[start : start + _CHUNK].float() + 0.0).view(torch.int32)  # + 0.0: no negative zero
        rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
        index = torch.arange(start, start + len(bits), device=flat.device)
        yield start, (rising.long() << 32) | _shuffled(index, seed)


def _shuffled(index: Int64[Tensor, " edge"], seed: int) -> Int64[Tensor, " edge"]:
    """A permutation of the 32-bit integers that a seed chooses (the finaliser of MurmurHash3)."""
    h = (index + _offset(seed)) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ (h >> 16)


def _offset(seed: int) -> int:
    return int(np.random.default_rng(seed).integers(2**32))


def _nth_largest(scores: Float[Tensor, "n_up n_down"], ranks: Int[np.ndarray, " n"], seed: int) -> Int64[Tensor, " n"]:
    """The key at each rank (1 is the largest), for ascending ranks."""
    if scores.numel() <= _CHUNK:
        ((_, keys),) = _keys(scores, seed)
        return keys.sort(descending=True).values[torch.from_numpy(ranks - 1)]
    found = torch.zeros(
        len(ranks), dtype=torch.long, device="cpu"
    )  # the upper bits of each key, as far as they are known
    left = torch.from_numpy(ranks.astype(np.int64))  # rank among the edges that share these bits
    for shift in (48, 32, 16, 0):
        prefixes, which = found.unique(return_inverse=True)
        histogram = torch.zeros(len(prefixes) * _DIGITS, dtype=torch.long, device="cpu")
        for _, keys in _keys(scores, seed):
            digits = (keys >> shift) - (-(2**15) if shift == 48 else 0)
            if shift == 48:
                histogram += torch.bincount(digits, minlength=_DIGITS).cpu()
                continue
            above = keys >> (shift + 16)
            place = torch.bucketize(above, prefixes.to(keys.device)).clamp(max=len(prefixes) - 1)
            match = prefixes.to(keys.device)[place] == above
            bins = place[match] * _DIGITS + (digits[match] & 0xFFFF)
            histogram += torch.bincount(bins, minlength=len(histogram)).cpu()
        from_above = histogram.view(-1, _DIGITS).flip(1).cumsum(1)[which]  # edges at or above a digit
        steps = torch.searchsorted(from_above, left.unsqueeze(1)).squeeze(1)
        before = torch.where(steps > 0, from_above.gather(1, (steps - 1).clamp(min=0).unsqueeze(1)).squeeze(1), 0)
        digit = _DIGITS - 1 - steps
        found = digit - 2**15 if shift == 48 else (found << 16) | digit
        left = left - before
    return found.to(scores.device)
