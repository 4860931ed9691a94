"""Known circuits without overlap: the score finds the planted edges, at every density, and worse dictionaries score
worse."""

import math

import pytest
import torch
from torch import Tensor

from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.rankings.registry import rank
from tests.validity.circuits import DENSITIES, orthonormal
from tests.validity.readings import LEVELS, found_among, headline, scored
from tests.validity.worse import dense, merged, random, rotated

EXACT = ("leave_one_out", "leave_one_out_with_prior", "shapley", "ig")


@pytest.mark.parametrize("per_latent", DENSITIES)
@pytest.mark.parametrize("name", EXACT)
def test_a_ranking_puts_the_planted_edges_first(name: str, per_latent: int):
    circuit = orthonormal(per_latent)
    scores = rank(circuit.pair(), circuit.texts.ranking, name, 0)
    assert found_among(scores, circuit, circuit.n_edges) == circuit.n_edges


@pytest.mark.parametrize("per_latent", DENSITIES)
def test_the_planted_edges_are_the_whole_circuit_and_fewer_are_not(per_latent: int):
    circuit = orthonormal(per_latent)
    n = circuit.n_edges
    record = scored(circuit.pair(), circuit.texts, ranking="leave_one_out", edges=f"{n // 2},{n - 1},{n}")
    kl = dict(zip(record.edges, record.kl_model, strict=True))
    assert kl[n] == pytest.approx(0, abs=1e-6)
    assert kl[n] < kl[n - 1] < kl[n // 2] < kl[0]


def test_more_planted_edges_take_more_edges():
    circuits = [orthonormal(n) for n in DENSITIES]
    records = [scored(circuit.pair(), circuit.texts, edges="coarse") for circuit in circuits]
    for level in LEVELS:
        counts = [headline(record, level) for record in records]
        assert counts[0] < counts[1] / 1.5 < counts[2] / 3 < math.inf


@pytest.mark.parametrize("per_latent", DENSITIES)
def test_worse_dictionaries_take_more_edges_or_never_get_there(per_latent: int):
    circuit = orthonormal(per_latent)

    def edges_at_80(pair: Pair) -> float:
        return headline(scored(pair, circuit.texts, edges="coarse"), "80")

    turned = [edges_at_80(circuit.pair(rotated(circuit.D_up, angle))) for angle in (0.0, 0.4, 0.7)]
    assert turned[0] == pytest.approx(edges_at_80(circuit.pair()), rel=0.05)  # up to rounding among equal edges
    assert turned[0] <= turned[1] <= turned[2]
    assert turned[0] < turned[2]
    for up, down in (
        (merged(circuit.D_up), circuit.D_down),
        (dense(circuit.D_up), circuit.D_down),
        (circuit.D_up, dense(circuit.D_down)),
        (random(circuit.D_up, 1), random(circuit.D_down, 2)),
    ):
        assert edges_at_80(circuit.pair(up, down)) == math.inf


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_edges_at_90_of_a_pairs_own_recovery_is_won_by_pairs_that_explain_little(ablation: str):
    """Why faithfulness is needed: recovery divides by what the two SAEs reach themselves."""
    circuit = orthonormal(10)
    nothing = random(circuit.D_up, 1), random(circuit.D_down, 2)
    poor = circuit.pair(merged(circuit.D_up)) if ablation == "mean" else circuit.pair(*nothing)
    true, nonsense = (scored(pair, circuit.texts, ablation=ablation) for pair in (circuit.pair(), poor))
    assert (nonsense.edges_at["90"] or math.inf) < (true.edges_at["90"] or 0) * 0.85
    assert nonsense.floor.kl > 0.5 * nonsense.kl_mean
    assert nonsense.faithful_at == {"50": None, "80": None, "90": None}


@pytest.mark.parametrize("special", [(), (7,)])
def test_what_a_curve_is_compared_with_depends_on_no_sae(special: tuple[int, ...]):
    """The downstream site set to its mean by a hook of torch; special tokens keep the model's own activation."""
    circuit = orthonormal(3)
    text, site = circuit.texts, circuit.block.down
    pairs = [circuit.pair(), circuit.pair(random(circuit.D_up, 1), random(circuit.D_down[:5], 2))]
    first, second = (scored(pair, text, edges="10", special=special or "skip") for pair in pairs)
    assert first.kl_mean == second.kl_mean
    keep = [~torch.isin(tokens, torch.tensor(special)) for tokens in (text.ranking, text.scoring)]
    assert keep[1].all() == (not special)
    lm, mlp = circuit.lm, circuit.lm.hf.transformer.h[0].mlp
    mean = lm.activations(text.ranking, [site])[site][keep[0]].mean(0)
    clean = lm.logits(text.scoring).log_softmax(-1)

    def with_mean_at_counted_tokens(module: object, inputs: object, output: Tensor) -> Tensor:
        return torch.where(keep[1].unsqueeze(-1), mean, output)

    hook = mlp.register_forward_hook(with_mean_at_counted_tokens)
    with_mean = lm.hf(text.scoring).logits.log_softmax(-1)
    hook.remove()
    kl = (clean.exp() * (clean - with_mean)).sum(-1)[keep[1]].mean().item()
    assert first.kl_mean == pytest.approx(kl, rel=1e-5)
