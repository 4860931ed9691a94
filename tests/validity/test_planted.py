"""Known circuits: the score finds the edges that were planted, at every density, and worse dictionaries score worse."""

import math

import pytest
import torch

from scalar_sae.records.results import Record
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.rankings.registry import rank
from scalar_sae.scoring.score import score
from tests.validity.planted import BLOCK, config, dense, merged, planted, random, rotated, texts

DENSITIES = (1, 3, 10)
EXACT = ("leave_one_out", "leave_one_out_with_prior", "shapley", "ig")


def scored(pair: Pair, ranking: str = "leave_one_out_with_prior", edges: str = "full") -> Record:
    return score(pair, texts(), config(ranking, edges), on_progress=lambda n: None)


def edges_at_80(pair: Pair) -> float:
    """Edges until 80 % of what the site does for the model is there; infinite if it never is."""
    found = scored(pair).faithful_at["80"]
    return math.inf if found is None else found


@pytest.mark.parametrize("per_latent", DENSITIES)
@pytest.mark.parametrize("name", EXACT)
def test_a_ranking_puts_the_planted_edges_first(name: str, per_latent: int):
    circuit = planted(per_latent)
    scores = rank(circuit.pair(), texts().ranking, name, 0)
    first = scores.flatten().topk(circuit.n_edges).indices
    assert bool((circuit.M.flatten()[first] > 0).all())


@pytest.mark.parametrize("per_latent", DENSITIES)
def test_the_planted_edges_are_the_whole_circuit_and_fewer_are_not(per_latent: int):
    circuit = planted(per_latent)
    n = circuit.n_edges
    record = scored(circuit.pair(), "leave_one_out", f"{n // 2},{n - 1},{n}")
    kl = dict(zip(record.edges, record.kl_model, strict=True))
    assert kl[n] == pytest.approx(0, abs=1e-6)
    assert kl[n] < kl[n - 1] < kl[n // 2] < kl[0]


@pytest.mark.parametrize("level", ["50", "80", "90"])
def test_more_planted_edges_take_more_edges(level: str):
    counts = [scored(planted(n).pair()).faithful_at[level] or math.inf for n in DENSITIES]
    assert counts[0] < counts[1] / 1.5 < counts[2] / 3 < math.inf


@pytest.mark.parametrize("per_latent", DENSITIES)
def test_worse_dictionaries_take_more_edges_or_never_get_there(per_latent: int):
    circuit = planted(per_latent)
    turned = [edges_at_80(circuit.pair(rotated(circuit.D_up, angle))) for angle in (0.0, 0.2, 0.4, 0.7)]
    assert turned[0] == pytest.approx(edges_at_80(circuit.pair()), rel=1e-4)
    assert turned[0] <= turned[1] <= turned[2] <= turned[3]
    assert turned[0] < turned[2] < math.inf
    for up, down in (
        (merged(circuit.D_up), circuit.D_down),
        (dense(circuit.D_up), circuit.D_down),
        (circuit.D_up, dense(circuit.D_down)),
        (random(len(circuit.D_up), 1), random(len(circuit.D_down), 2)),
    ):
        assert edges_at_80(circuit.pair(up, down)) == math.inf


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_edges_at_90_of_a_pairs_own_recovery_is_won_by_pairs_that_explain_little(ablation: str):
    """Why faithfulness is needed: recovery divides by what the two SAEs reach themselves."""
    circuit = planted(10)
    settings = config("leave_one_out_with_prior").model_copy(update={"ablation": ablation})
    nothing = random(len(circuit.D_up), 1), random(len(circuit.D_down), 2)
    poor = circuit.pair(merged(circuit.D_up)) if ablation == "mean" else circuit.pair(*nothing)
    true, nonsense = (score(pair, texts(), settings, on_progress=lambda n: None) for pair in (circuit.pair(), poor))
    assert (nonsense.edges_at["90"] or math.inf) < (true.edges_at["90"] or 0) * 0.85
    assert nonsense.floor.kl > 0.5 * nonsense.kl_mean
    assert nonsense.faithful_at == {"50": None, "80": None, "90": None}


@pytest.mark.parametrize("special", [(), (7,)])
def test_what_a_curve_is_compared_with_depends_on_no_sae(special: tuple[int, ...]):
    """The downstream site set to its mean by a hook of torch; special tokens keep the model's own activation."""
    circuit, text = planted(3), texts()
    settings = config("leave_one_out", "10").model_copy(update={"special": special or "skip"})
    pairs = [circuit.pair(), circuit.pair(random(len(circuit.D_up), 1), random(5, 2))]
    first, second = (score(pair, text, settings, on_progress=lambda n: None) for pair in pairs)
    assert first.kl_mean == second.kl_mean
    keep = [~torch.isin(tokens, torch.tensor(special)) for tokens in (text.ranking, text.scoring)]
    assert keep[1].all() == (not special)
    lm, mlp = circuit.lm, circuit.lm.hf.transformer.h[0].mlp
    mean = lm.activations(text.ranking, [BLOCK.down])[BLOCK.down][keep[0]].mean(0)
    clean = lm.logits(text.scoring).log_softmax(-1)
    hook = mlp.register_forward_hook(lambda module, args, out: torch.where(keep[1].unsqueeze(-1), mean, out))
    with_mean = lm.hf(text.scoring).logits.log_softmax(-1)
    hook.remove()
    kl = (clean.exp() * (clean - with_mean)).sum(-1)[keep[1]].mean().item()
    assert first.kl_mean == pytest.approx(kl, rel=1e-5)
