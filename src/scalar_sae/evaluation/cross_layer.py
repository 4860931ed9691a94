"""Features between layers: which directions come again at a later site? What Staircase SAEs claim to remove.

A decoder direction at one site whose nearest direction at an earlier site has a cosine of `NEAR` or more is a
near-duplicate. In a staircase the later SAE holds the earlier one's rows, so its duplicates are by design and stand in
one shared parameter; compare it by the share among those that the later site added, its last chunk.
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
    """For every two sites, the share of the later SAE's decoder directions that the earlier one has too.

    Args:
        method: name of the SAEs, for the records.
        saes: by site.
        threshold: cosine from which two directions are the same.

    Raises:
        UserError: a threshold that is no cosine.
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
