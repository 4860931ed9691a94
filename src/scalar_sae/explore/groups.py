"""Features that do alike: groups of similar attribution profiles.

    edges.groups(500)                                # of the 500 strongest edges of a ranking
    group_features([(17, 40, 0.3), (18, 40, 0.2)])   # of any weighted edges

The profile of an upstream feature holds the weights of its edges to all downstream features. The profile of a
downstream feature holds the weights of its edges from all upstream features. Two features are as alike as the cosine
between their profiles: 1 if their weights are proportional, 0 if they share no neighbour.

Features are joined by average linkage (Sokal and Michener 1958, as scipy.cluster.hierarchy computes it) as long as the
mean cosine between the members of two groups is at least `alike`. The mean cosine over all pairs of members of a group
is then at least `alike` too, since each pair is among those of one join.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_array
from scipy.spatial.distance import squareform

from scalar_sae.errors import UserError
from scalar_sae.explore.plain import FeatureGroup

MOST = 2_000
"""Maximum number of features at an end. Clustering holds a distance for each pair of them."""
ALIKE = 0.7
"""Usual least mean cosine between the profiles of two groups that are joined."""


def group_features(edges: Iterable[tuple[int, int, float]], alike: float = ALIKE) -> tuple[FeatureGroup, ...]:
    """Group the upstream and the downstream features of some edges by their attribution profiles.

    Args:
        edges: upstream feature, downstream feature and weight of each edge. Weights of zero count as no edge.
        alike: mean cosine that two groups need to be joined, above 0 and at most 1.

    Returns:
        Groups of two or more features, upstream groups first, of each end the one with the largest weights first.
            Features that stand alone are in no group.

    Raises:
        UserError: `alike` is out of range, a weight is negative or not finite, or there are too many features.
    """
    if not 0 < alike <= 1:
        raise UserError(f"alike {alike}: expected a cosine above 0 and at most 1")
    rows = list(edges)
    up, down = (np.array([row[end] for row in rows], dtype=np.int64) for end in (0, 1))
    weight = np.array([row[2] for row in rows], dtype=np.float64)
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise UserError("weights of edges: expected finite numbers of at least 0")
    there = weight > 0
    up, down, weight = up[there], down[there], weight[there]
    return (*_of_end("up", up, down, weight, alike), *_of_end("down", down, up, weight, alike))


def _of_end(
    end: Literal["up", "down"],
    own: Int[np.ndarray, " edge"],
    other: Int[np.ndarray, " edge"],
    weight: Float[np.ndarray, " edge"],
    alike: float,
) -> list[FeatureGroup]:
    """Groups of the features at one end, from their edges to the other."""
    features, row = np.unique(own, return_inverse=True)
    _, column = np.unique(other, return_inverse=True)
    if len(features) > MOST:
        raise UserError(f"{len(features):,} {end}stream features: at most {MOST:,} are grouped; take fewer edges")
    if len(features) < 2:
        return []
    profiles = csr_array((weight, (row, column)))
    total = profiles.sum(1)
    norms = np.sqrt(profiles.multiply(profiles).sum(1))
    cosine = np.clip((profiles @ profiles.T).toarray() / np.outer(norms, norms), 0, 1)
    distance = squareform(1 - cosine, checks=False)
    labels = fcluster(linkage(distance, "average"), 1 - alike + 1e-9, "distance")
    found: list[tuple[float, FeatureGroup]] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) > 1:
            within = cosine[np.ix_(members, members)][np.triu_indices(len(members), 1)]
            order = members[np.argsort(-total[members], kind="stable")]
            group = FeatureGroup(end=end, members=tuple(features[order].tolist()), alike=float(within.mean()))
            found.append((float(total[members].sum()), group))
    found.sort(key=lambda one: -one[0])
    return [group for _, group in found]
