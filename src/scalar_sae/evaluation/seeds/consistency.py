"""Consistency: do two trainings find the same features? PW-MCC and GT-MCC (Song et al., arXiv 2505.20254).

    MCC(A, B) = mean cosine of the decoder directions of A and B under the best one-to-one matching

The mean is over min(n_a, n_b) pairs. For PW-MCC, A and B come from two seeds. For GT-MCC, B is the dictionary that
generated the data. The paper's text ignores signs, but its code does not. Activations are never negative, so an
opposite direction is another feature, and signs count here unless `absolute` is set. Random directions match too, and
better in fewer dimensions. `null` is therefore the same number for isotropic random dictionaries of the same shape, and
`rescaled` is (mcc - null) / (1 - null).
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.evaluation.seeds.matching import CANDIDATES, EXACT, Dictionary, Matching, match, nearest
from scalar_sae.records.sae_results import FrequencyBin, Mcc

NULL_EXACT = 2048
"""Larger random dictionaries are matched on candidates, which is within 0.001 at a fraction of the time."""


def mcc(
    a: Dictionary,
    b: Dictionary,
    absolute: bool = False,
    seed: int = 0,
    exact: int = EXACT,
    candidates: int = CANDIDATES,
    found: Matching | None = None,
) -> Mcc:
    """Mean correlation coefficient of two dictionaries, with its null, and by firing frequency of a's latents.

    Args:
        a: one dictionary; pass `a.alive()` to leave out latents that never fire.
        b: the other dictionary, or the true one.
        absolute: whether a direction and its opposite count as the same.
        seed: seed of the random dictionaries.
        exact: the most rows of either side for which the matching is exact.
        candidates: number of partners for which a row competes in larger dictionaries.
        found: the matching of the decoders, if already computed.

    Raises:
        UserError: the widths differ, there are no latents, or values are not finite.
    """
    found = found or match(a.W_dec, b.W_dec, absolute, exact, candidates)
    g = torch.Generator().manual_seed(seed)
    A, B = (Dictionary.random(*side.W_dec.shape, generator=g).W_dec for side in (a, b))
    null = match(A, B, absolute, min(exact, NULL_EXACT), candidates).mean
    nearest_null = _nearest_both_ways(A, B, absolute)
    nearest_cosine = _nearest_both_ways(a.W_dec, b.W_dec, absolute)
    return Mcc(
        absolute=absolute,
        n_a=a.W_dec.shape[0],
        n_b=b.W_dec.shape[0],
        mcc=found.mean,
        short=found.short,
        null=null,
        rescaled=_rescaled(found.mean, null),
        max_cosine=nearest_cosine,
        max_cosine_null=nearest_null,
        max_cosine_rescaled=_rescaled(nearest_cosine, nearest_null),
        by_frequency=[] if a.density is None else by_frequency(found, a.density, null),
    )


def by_frequency(found: Matching, density: Float[Tensor, " n"], null: float) -> list[FrequencyBin]:
    """Mean matched cosine by decade of firing rate: latents that fire on 1e-7 to 1e-6 of the tokens, 1e-6 to 1e-5, and
    so on.

    Random directions do not depend on frequency, so the null over all latents applies to every decade.
    """
    rate, paired = density.numpy(), ~np.isnan(found.cosine)
    bins: list[FrequencyBin] = []
    for decade in range(-7, 0):
        low, high = 10.0**decade, 10.0 ** (decade + 1)
        some = paired & (rate >= low) & ((rate < high) | (decade == -1))
        if some.any():
            mean = float(found.cosine[some].mean())
            bins.append(FrequencyBin(low=low, high=high, n=int(some.sum()), mcc=mean, null=null))
    return bins


def _nearest_both_ways(A: Tensor, B: Tensor, absolute: bool) -> float:
    """The mean largest cosine (MMCS), averaged over both directions."""
    return float((nearest(A, B, absolute).mean() + nearest(B, A, absolute).mean()) / 2)


def _rescaled(value: float, null: float) -> float:
    return (value - null) / (1 - null) if null < 1 else 0.0
