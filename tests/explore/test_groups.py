"""Groups of features by attribution profile, against planted groups and the definition of the cosine."""

from itertools import combinations

import numpy as np
import pytest
import torch

import scalar_sae as ss
from scalar_sae.errors import UserError
from scalar_sae.explore import groups
from tests.helpers import tiny_pair

Weights = list[tuple[int, int, float]]


def planted(seed: int) -> tuple[Weights, list[set[int]]]:
    """Edges of three kinds of upstream features, each with downstream features of its own, and of one that is alone."""
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(200)
    kinds = [set(numbers[:5].tolist()), set(numbers[5:9].tolist()), set(numbers[9:11].tolist())]
    edges = [(int(numbers[11]), 90, 0.5)]
    for kind, members in enumerate(kinds):
        profile = rng.uniform(0.5, 1, 6) / (1 + kind)
        for up in sorted(members):
            scale = rng.uniform(0.3, 3)
            edges += [(up, 10 * kind + j, float(scale * w * rng.uniform(0.8, 1.2))) for j, w in enumerate(profile)]
    rng.shuffle(edges)
    return edges, kinds


@pytest.mark.parametrize("seed", range(3))
def test_planted_groups_are_found_and_nobody_else_is_in_them(seed: int):
    edges, kinds = planted(seed)
    found = ss.group_features(edges, alike=0.8)
    up = [set(group.members) for group in found if group.end == "up"]
    assert sorted(map(sorted, up)) == sorted(map(sorted, kinds))
    assert [set(g.members) for g in ss.group_features([(j, i, w) for i, j, w in edges], 0.8) if g.end == "down"] == up


def test_the_mean_cosine_of_a_group_is_the_one_of_its_profiles_and_at_least_what_was_asked_for():
    scores = torch.rand(12, 9, generator=torch.Generator().manual_seed(0)) ** 3
    edges = ss.RankedEdges(tiny_pair("ff_block.0"), "x", torch.nn.functional.pad(scores, (0, 11, 0, 12)))
    for alike in (0.5, 0.7, 0.9):
        found = edges.groups(12 * 9, alike)
        for group in found:
            profiles = (scores if group.end == "up" else scores.T).double()
            profiles = profiles / profiles.norm(dim=1, keepdim=True)
            cosines = [float(profiles[i] @ profiles[j]) for i, j in combinations(group.members, 2)]
            assert group.alike == pytest.approx(np.mean(cosines), rel=1e-6)
            assert group.alike >= alike - 1e-6
        members = [(group.end, one) for group in found for one in group.members]
        assert len(members) == len(set(members))
    assert edges.groups(12 * 9, 0.5)


def test_features_without_a_common_neighbour_are_in_no_group_and_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch):
    apart = [(0, 0, 1.0), (1, 1, 1.0), (2, 2, 0.0), (3, 2, 1.0)]
    assert ss.group_features(apart) == ()
    assert ss.group_features([]) == ()
    for alike in (0.0, 1.1, float("nan")):
        with pytest.raises(UserError, match="alike"):
            ss.group_features(apart, alike)
    with pytest.raises(UserError, match="finite"):
        ss.group_features([(0, 0, -1.0)])
    monkeypatch.setattr(groups, "MOST", 2)
    with pytest.raises(UserError, match="take fewer edges"):
        ss.group_features(apart)
