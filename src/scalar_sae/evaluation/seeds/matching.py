"""One-to-one matching of two dictionaries' directions.

    found = match(A, B)            # A [n_a, d], B [n_b, d]
    found.partner, found.cosine    # for each row of A: a row of B (or -1), and the cosine with it

The matching maximises the sum of cosines over min(n_a, n_b) pairs. Up to EXACT rows it is scipy's exact assignment.
Beyond, a row competes only for its CANDIDATES best partners. A pair outside them is credited with the row's worst
candidate, which is at least its true value, so the credited sum is an upper bound. Rows left without a candidate are
matched again among themselves, and exactly once LEFTOVER or fewer are left. `found.short` is the upper bound minus the
sum found, per pair. The mean cosine is too low by at most this amount.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.saes.sae import SAE

EXACT = 16_384
CANDIDATES = 32
LEFTOVER = 2048
"""Maximum number of rows without a candidate that are matched exactly. More would use the memory that pruning saves."""
_CELLS = 2**25
"""Number of cosines held at once if one matrix would be too large: 128 MB."""


class Dictionary(NamedTuple):
    """The directions by which two SAEs are compared, one row per latent."""

    W_enc: Float[Tensor, "n d_model"]
    """Encoder directions: the SAE's W_enc, transposed."""
    W_dec: Float[Tensor, "n d_model"]
    """Decoder directions."""
    density: Float[Tensor, " n"] | None = None
    """Share of tokens on which each latent fires; None if not measured."""

    @classmethod
    def of(cls, sae: SAE, density: Float[Tensor, " n"] | None = None) -> "Dictionary":
        """All latents of an SAE."""
        return cls(sae.W_enc.T, sae.W_dec, density)

    @classmethod
    def random(cls, n: int, d_model: int, generator: torch.Generator) -> "Dictionary":
        """Isotropic random directions, the same for encoder and decoder."""
        W = torch.randn(n, d_model, generator=generator)
        return cls(W, W)

    def alive(self) -> "Dictionary":
        """The latents that fire; all latents if firing was not measured."""
        if self.density is None:
            return self
        some = self.density > 0
        return Dictionary(self.W_enc[some], self.W_dec[some], self.density[some])


@dataclass(frozen=True, eq=False)
class Matching:
    """The partner of each row of A among the rows of B."""

    partner: Int[np.ndarray, " n_a"]
    """Row of B, or -1 for a row without a partner because B is smaller."""
    cosine: Float[np.ndarray, " n_a"]
    """Cosine with the partner, NaN without one; the absolute cosine if signs are ignored."""
    short: float
    """Maximum amount by which the mean cosine is below that of the best matching; 0 for an exact matching."""

    @property
    def mean(self) -> float:
        """Mean cosine of the pairs: the MCC of arXiv 2505.20254."""
        return float(np.nanmean(self.cosine))

    def turned(self, n_b: int) -> "Matching":
        """The same pairs seen from B, which has n_b rows."""
        paired = self.partner >= 0
        partner, cosine = np.full(n_b, -1), np.full(n_b, np.nan)
        partner[self.partner[paired]] = np.flatnonzero(paired)
        cosine[self.partner[paired]] = self.cosine[paired]
        return Matching(partner, cosine, self.short)


def match(
    A: Float[Tensor, "n_a _"],
    B: Float[Tensor, "n_b _"],
    absolute: bool = False,
    exact: int = EXACT,
    candidates: int = CANDIDATES,
) -> Matching:
    """Match the rows of A to rows of B, one to one.

    Args:
        A: directions, of any length.
        B: directions in the same space.
        absolute: whether a direction and its opposite count as the same.
        exact: the most rows of either side for which the matching is exact.
        candidates: number of partners for which a row competes in larger dictionaries.

    Raises:
        UserError: the widths differ, there are no rows, or values are not finite.
    """
    a, b = _unit_rows(A, "first"), _unit_rows(B, "second")
    if a.shape[1] != b.shape[1]:
        raise UserError(f"dictionaries of width {a.shape[1]} and {b.shape[1]} cannot be matched: take the same site")
    if a.shape[0] > b.shape[0]:
        return match(B, A, absolute, exact, candidates).turned(a.shape[0])
    if b.shape[0] <= exact:
        cosines = _cosines(a, b, absolute).numpy()
        rows, partner = linear_sum_assignment(cosines, maximize=True)
        return Matching(partner, cosines[rows, partner].astype(np.float64), 0.0)
    return _pruned(a, b, absolute, exact, candidates)


def nearest(A: Float[Tensor, "n_a d"], B: Float[Tensor, "n_b d"], absolute: bool = False) -> Float[Tensor, " n_a"]:
    """The largest cosine of each row of A with any row of B. Several rows may share a nearest row."""
    a, b = _unit_rows(A, "first"), _unit_rows(B, "second")
    return torch.cat([_cosines(some, b, absolute).amax(1) for some in a.split(max(1, _CELLS // b.shape[0]))])


def _pruned(a: Tensor, b: Tensor, absolute: bool, exact: int, candidates: int) -> Matching:
    n_a, n_b = a.shape[0], b.shape[0]
    partner, cosine = np.full(n_a, -1), np.full(n_a, np.nan)
    rows, columns = np.arange(n_a), np.arange(n_b)
    bound = None
    while len(rows):
        if len(columns) <= min(exact, LEFTOVER):
            last = match(a[rows], b[columns], absolute, exact)
            partner[rows], cosine[rows] = columns[last.partner], last.cosine
            break
        chosen, value, credited = _compete(a[rows], b[columns], absolute, candidates)
        bound = credited if bound is None else bound
        won = chosen >= 0
        if not won.any():  # only ties: no row prefers a partner to staying single
            partner[rows] = columns[: len(rows)]
            signed = (a[rows] * b[partner[rows]]).sum(1).double().numpy()
            cosine[rows] = np.abs(signed) if absolute else signed
            break
        partner[rows[won]], cosine[rows[won]] = columns[chosen[won]], value[won]
        columns = np.delete(columns, chosen[won])
        rows = rows[~won]
    assert bound is not None
    return Matching(partner, cosine, max(0.0, (bound - float(cosine.sum())) / n_a))


def _compete(
    a: Float[Tensor, "n_a d"], b: Float[Tensor, "n_b d"], absolute: bool, candidates: int
) -> tuple[Int[np.ndarray, " n_a"], Float[np.ndarray, " n_a"], float]:
    """The best matching when every row may also stay single for the value of its worst candidate.

    Returns the partners (-1 for single rows), their cosines, and the sum, which is an upper bound for all matchings.
    """
    n_a, n_b = a.shape[0], b.shape[0]
    candidates = min(candidates, n_b)
    best = [_cosines(some, b, absolute).topk(candidates, 1) for some in a.split(max(1, _CELLS // n_b))]
    value = torch.cat([some.values for some in best]).double().numpy()
    column = torch.cat([some.indices for some in best]).numpy()
    row = np.arange(n_a)
    costs = np.concatenate([value.ravel(), value[:, -1]])
    places = (
        np.concatenate([row.repeat(candidates), row]),
        np.concatenate([column.ravel(), n_b + row]),
    )
    # costs must be above 0, because scipy drops zeros
    graph = coo_array((2.0 - costs, places), shape=(n_a, n_b + n_a)).tocsr()
    _, chosen = min_weight_full_bipartite_matching(graph)
    alone = chosen >= n_b
    place = (column == chosen[:, None]).argmax(1)
    worth = np.where(alone, value[:, -1], value[row, place])
    return np.where(alone, -1, chosen), worth, float(worth.sum())


def _unit_rows(W: Float[Tensor, "n d"], which: str) -> Float[Tensor, "n d"]:
    """Scale rows to length 1; rows of zeros stay zero."""
    if W.shape[0] == 0:
        raise UserError(f"the {which} dictionary has no latents to match: none is alive")
    if not W.isfinite().all():
        raise UserError(f"the {which} dictionary holds values that are not finite")
    return torch.nn.functional.normalize(W.detach().float(), dim=1)


def _cosines(a: Tensor, b: Tensor, absolute: bool) -> Tensor:
    cosines = a @ b.T
    return cosines.abs() if absolute else cosines
