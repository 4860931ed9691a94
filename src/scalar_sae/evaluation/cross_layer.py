"""Cross-layer duplicates: decoder directions that recur at a later site, which Staircase SAEs claim to avoid.

A decoder direction at one site is a near-duplicate if its nearest direction at an earlier site has a cosine of `NEAR`
or more. In a staircase the later SAE contains the earlier one's rows, so these duplicates are by design and share one
parameter. Compare a staircase by the share of duplicates in the last chunk, which the later site added.
"""

from collections.abc import Mapping
from itertools import combinations

from scalar_sae.errors import UserError
from scalar_sae.evaluation.seeds.matching import nearest
from scalar_sae.records.sae_results import Duplicates
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site

NEAR = 0.9


def duplicates(method: str, saes: Mapping[Site, SAE], threshold: float = NEAR) -> list[Duplicates]:
    """For every pair of sites, the share of the later SAE's decoder directions that the earlier SAE has too.

    Args:
        method: name of the SAEs, for the records.
        saes: SAEs by site.
        threshold: cosine from which two directions count as the same.

    Raises:
        UserError: the threshold is not a cosine.
    """
    if not -1 <= threshold <= 1:
        raise UserError(f"threshold {threshold}: cosines lie between -1 and 1")
    found: list[Duplicates] = []
    for first, later in combinations(sorted(saes), 2):
        a, b = saes[first], saes[later]
        cosine = nearest(b.W_dec, a.W_dec)
        new = cosine[b.chunks[-2] :] if len(b.chunks) > 1 else None
        found.append(
            Duplicates(
                method=method,
                first=str(first),
                later=str(later),
                n=len(cosine),
                threshold=threshold,
                share=(cosine >= threshold).float().mean().item(),
                mean_nearest=cosine.mean().item(),
                n_new=None if new is None else len(new),
                share_new=None if new is None else (new >= threshold).float().mean().item(),
            )
        )
    return found
