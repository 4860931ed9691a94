"""Known circuits in superposition: a linear block, a ReLU MLP and an attention head."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from scalar_sae.records.results import Faithfulness
from scalar_sae.scoring.pair import Pair, read
from scalar_sae.scoring.rankings.registry import rank
from tests.validity.circuits import Kind, Planted, superposed
from tests.validity.readings import found_among, headline, scored
from tests.validity.worse import dense, merged, random, rotated, split

LEVEL: dict[Kind, Faithfulness] = {"linear": "80", "relu": "90", "attention": "80"}
"""A linear block passes on what overlaps and its SAEs do not, so its pairs have a floor of a seventh of the divisor."""
CIRCUITS: list[tuple[Kind, int]] = [("relu", 3), ("relu", 10), ("linear", 3), ("attention", 3)]
SHARES = (0.5, 0.7, 0.85, 1.0, 1.25, 2.0)

circuit_of = cache(superposed)


def edges_of(circuit: Planted, pair: Pair, level: Faithfulness, **changes: str) -> float:
    """Edges that a pair needs, in shares of the planted ones, on a grid around them."""
    edges = ",".join(str(round(circuit.n_edges * share)) for share in SHARES)
    texts = replace(circuit.texts, scoring=circuit.texts.scoring[:10])
    return headline(scored(pair, texts, ranking="leave_one_out", edges=edges, **changes), level) / circuit.n_edges


@pytest.mark.parametrize("kind", ["linear", "relu", "attention"])
def test_features_outnumber_dimensions_overlap_little_and_are_sparse(kind: Kind):
    circuit = circuit_of(kind, 3)
    pair = circuit.pair()
    for D in (circuit.D_up, circuit.D_down):
        assert len(D) > D.shape[1]
        assert float((D @ D.T - torch.eye(len(D))).abs().max()) < 0.3
    live = torch.cat([(prompt.z > 0).sum(1) for prompt in read(pair, circuit.texts.scoring)])
    assert set(live.tolist()) <= {1, 2, 3}


def test_the_attention_head_moves_the_features_of_a_source_to_all_later_tokens():
    circuit = circuit_of("attention", 3)
    pair = circuit.pair()
    for prompt in read(pair, circuit.texts.scoring[:5]):
        source = (prompt.z[1] > 0) & (torch.arange(len(circuit.D_up)) > 0)
        targets = circuit.edges[source].any(0)
        moved = pair.full_circuit(prompt)[1:] > 0
        assert bool((moved == targets).float().mean(1).min() > 0.95)
        assert bool(moved[:, targets].float().mean() > 0.9)


@pytest.mark.parametrize(("kind", "per_latent"), CIRCUITS)
def test_the_planted_edges_rank_first_and_the_headline_is_their_number(kind: Kind, per_latent: int):
    circuit = circuit_of(kind, per_latent)
    scores = rank(circuit.pair(), circuit.texts.ranking, "leave_one_out", 0)
    assert found_among(scores, circuit, circuit.n_edges) >= 0.93 * circuit.n_edges
    assert 0.7 < edges_of(circuit, circuit.pair(), LEVEL[kind]) < 1.15


def test_worse_dictionaries_take_more_edges_or_never_get_there():
    circuit = circuit_of("relu", 3)
    true, D_up, D_down = circuit.pair(), circuit.D_up, circuit.D_down
    least = edges_of(circuit, true, "90")
    assert least < edges_of(circuit, circuit.pair(rotated(D_up, 0.4)), "90") < 2 * least
    assert edges_of(circuit, replace(true, up=split(true.up, 2)), "90") == pytest.approx(2 * least, rel=0.1)
    for up, down in ((merged(D_up), D_down), (D_up, dense(D_down)), (random(D_up, 1), random(D_down, 2))):
        assert edges_of(circuit, circuit.pair(up, down), "80") == math.inf


def test_under_mean_ablation_a_latent_that_is_always_active_costs_no_edges():
    """The same reconstruction with the constant in a latent, not in the decoder's bias."""
    circuit = superposed("relu", 1, with_constant=True)
    pairs = (circuit.pair(), circuit.with_constant_latent())
    bias, latent = (edges_of(circuit, pair, "80", ablation="mean") for pair in pairs)
    assert latent == pytest.approx(bias, rel=0.02)
    assert edges_of(circuit, pairs[1], "80", ablation="zero") > 1.2 * bias
