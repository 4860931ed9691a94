"""Which latents do two trainings share? Cross-seed overlap (Paulo & Belrose, arXiv 2501.16615).

Encoder and decoder directions are matched separately, each by the largest sum of cosines. A latent is shared if both
matchings give it the same partner and both cosines reach the threshold. The authors' blog asks only that both cosines
do, whoever the partners are: `require_same_partner=False`. The threshold 0.7 is theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int

from scalar_sae.errors import UserError
from scalar_sae.evaluation.seeds.matching import CANDIDATES, EXACT, Dictionary, Matching, match

THRESHOLD = 0.7


@dataclass(frozen=True, eq=False)
class Overlap:
    """One dictionary's latents in another, by both matchings."""

    encoder: Matching
    decoder: Matching
    threshold: float
    require_same_partner: bool

    @property
    def same_partner(self) -> Bool[np.ndarray, " n_a"]:
        """Both matchings agree, at whatever cosine."""
        return (self.encoder.partner == self.decoder.partner) & (self.decoder.partner >= 0)

    @property
    def shared(self) -> Bool[np.ndarray, " n_a"]:
        """The latents that the other dictionary has too."""
        both = [np.nan_to_num(side.cosine, nan=-2.0) >= self.threshold for side in (self.encoder, self.decoder)]
        return both[0] & both[1] & (self.same_partner if self.require_same_partner else True)

    @property
    def cosine(self) -> Float[np.ndarray, " n_a"]:
        """Mean of encoder's and decoder's matched cosine, the authors' alignment score; NaN without a partner."""
        return (self.encoder.cosine + self.decoder.cosine) / 2

    def turned(self, n_b: int) -> "Overlap":
        """The other dictionary's latents, n_b of them, in this one."""
        return Overlap(self.encoder.turned(n_b), self.decoder.turned(n_b), self.threshold, self.require_same_partner)


def overlap(
    a: Dictionary,
    b: Dictionary,
    threshold: float = THRESHOLD,
    require_same_partner: bool = True,
    exact: int = EXACT,
    candidates: int = CANDIDATES,
) -> Overlap:
    """Match two SAEs of one site by encoder and by decoder.

    Raises:
        UserError: different widths, no latents, values that are not finite, or a threshold that is no cosine.
    """
    check_threshold(threshold)
    encoder = match(a.W_enc, b.W_enc, exact=exact, candidates=candidates)
    decoder = match(a.W_dec, b.W_dec, exact=exact, candidates=candidates)
    return Overlap(encoder, decoder, threshold, require_same_partner)


def overlaps(
    seeds: Sequence[Dictionary],
    threshold: float = THRESHOLD,
    require_same_partner: bool = True,
    exact: int = EXACT,
    candidates: int = CANDIDATES,
) -> list[Overlap]:
    """The overlap of every two of several seeds: (0, 1), (0, 2), ..., (1, 2), ...

    Raises:
        UserError: fewer than two seeds, and as `overlap`.
    """
    if len(seeds) < 2:
        raise UserError("overlap needs the SAEs of two seeds at one site, there is one; train another seed")
    return [overlap(a, b, threshold, require_same_partner, exact, candidates) for a, b in combinations(seeds, 2)]


def appearances(seeds: Sequence[Dictionary], pairs: Sequence[Overlap]) -> list[Int[np.ndarray, " _"]]:
    """For each of several seeds, in how many of the others each of its latents is shared; `pairs` from `overlaps`."""
    found = [np.zeros(seed.W_dec.shape[0], dtype=np.int64) for seed in seeds]
    for (i, j), pair in zip(combinations(range(len(seeds)), 2), pairs, strict=True):
        found[i] += pair.shared
        found[j] += pair.turned(len(found[j])).shared
    return found


def check_threshold(threshold: float) -> None:
    """Raise a UserError for a threshold that is no cosine."""
    if not -1 <= threshold <= 1:
        raise UserError(f"threshold {threshold}: cosines lie between -1 and 1")
