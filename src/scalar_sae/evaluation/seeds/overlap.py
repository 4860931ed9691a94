"""Cross-seed overlap: which latents do two trainings share? (Paulo & Belrose, arXiv 2501.16615)

Encoder and decoder directions are matched separately, each to maximise the sum of cosines. A latent is shared if both
matchings give it the same partner and both cosines reach the threshold. The authors' blog requires only the latter:
`require_same_partner=False`. The threshold of 0.7 is theirs.
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
    """The latents of one dictionary matched to another, by encoder and by decoder."""

    encoder: Matching
    decoder: Matching
    threshold: float
    require_same_partner: bool

    @property
    def same_partner(self) -> Bool[np.ndarray, " n_a"]:
        """Mask of the latents for which both matchings agree, at any cosine."""
        return (self.encoder.partner == self.decoder.partner) & (self.decoder.partner >= 0)

    @property
    def shared(self) -> Bool[np.ndarray, " n_a"]:
        """Mask of the latents that the other dictionary shares."""
        both = [np.nan_to_num(side.cosine, nan=-2.0) >= self.threshold for side in (self.encoder, self.decoder)]
        return both[0] & both[1] & (self.same_partner if self.require_same_partner else True)

    @property
    def cosine(self) -> Float[np.ndarray, " n_a"]:
        """Mean of the matched encoder and decoder cosines, the authors' alignment score; NaN without a partner."""
        return (self.encoder.cosine + self.decoder.cosine) / 2

    def turned(self, n_b: int) -> "Overlap":
        """The same matchings seen from the other dictionary, which has n_b latents."""
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
        UserError: the widths differ, there are no latents, values are not finite, or the threshold is not a cosine.
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
    """The overlap of every pair of several seeds: (0, 1), (0, 2), ..., (1, 2), ...

    Raises:
        UserError: there are fewer than two seeds, or as `overlap`.
    """
    if len(seeds) < 2:
        raise UserError("overlap needs the SAEs of two seeds at one site, there is one; train another seed")
    return [overlap(a, b, threshold, require_same_partner, exact, candidates) for a, b in combinations(seeds, 2)]


def appearances(seeds: Sequence[Dictionary], pairs: Sequence[Overlap]) -> list[Int[np.ndarray, " _"]]:
    """For each seed, the number of other seeds that share each of its latents. `pairs` comes from `overlaps`."""
    found = [np.zeros(seed.W_dec.shape[0], dtype=np.int64) for seed in seeds]
    for (i, j), pair in zip(combinations(range(len(seeds)), 2), pairs, strict=True):
        found[i] += pair.shared
        found[j] += pair.turned(len(found[j])).shared
    return found


def check_threshold(threshold: float) -> None:
    """Raise a UserError if the threshold is not a cosine."""
    if not -1 <= threshold <= 1:
        raise UserError(f"threshold {threshold}: cosines lie between -1 and 1")
