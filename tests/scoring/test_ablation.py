"""What ablated latents are set to: zero, means, activations at other tokens, and the worst of those."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.records.results import Curves, Record
from scalar_sae.scoring.ablation import DRAWS, ablated, mean_ablated
from scalar_sae.scoring.circuit import score_circuit
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.pair import Pair, read
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.rankings.registry import rank
from scalar_sae.scoring.score import score
from scalar_sae.scoring.texts import Texts
from tests.helpers import tiny_pair
from tests.reference import scorer

SPECIAL = (3, 17)
TEXTS = Texts(torch.arange(40).remainder(31).view(4, 10), torch.arange(29, -1, -1).view(3, 10), {})
EDGES = "1,8,64,200"


def config(ablation: str, **changes: object) -> ScoreConfig:
    return ScoreConfig.model_validate(
        {"ablation": ablation, "edges": EDGES, "rank_prompts": 4, "ranking": "leave_one_out", "special": SPECIAL}
        | changes
    )


def scored(pair: Pair, ablation: str, **changes: object) -> Record:
    return score(pair, TEXTS, config(ablation, **changes), on_progress=lambda n: None)


def activations(pair: Pair) -> torch.Tensor:
    """Of the upstream latents at the ordinary tokens of the ranking text."""
    return torch.cat([prompt.z[prompt.text] for prompt in read(pair, TEXTS.ranking)])


@pytest.mark.parametrize("ablation", sorted(DRAWS))
def test_drawn_values_are_activations_at_ordinary_tokens_of_the_ranking_text(ablation: str):
    pair = replace(tiny_pair("ff_block.0"), special=SPECIAL)
    rows, settings = activations(pair), config(ablation)
    seen: set[int] = set()
    for number in range(8 if ablation == "adversarial" else 30):
        drawn = list(ablated(pair, TEXTS.ranking, settings, number))
        again = list(ablated(pair, TEXTS.ranking, settings, number))
        assert len(drawn) == DRAWS[ablation]
        for one, same in zip(drawn, again, strict=True):
            assert one.ablation_value is not None
            assert same.ablation_value is not None
            assert torch.equal(one.ablation_value, same.ablation_value)
            at = torch.isclose(rows, one.ablation_value, atol=1e-5).all(1).nonzero()[:, 0]
            assert len(at) > 0
            seen.add(int(at[0]))
    assert len(seen) > 12


@pytest.mark.parametrize("block", ["ff_block.0", "transformer_block.0"])
def test_a_resampled_circuit_is_the_obvious_one(block: str):
    """KL of every prompt by the obvious scorer, with the activations at a token in place of latents without an edge."""
    pair = replace(tiny_pair(block), special=SPECIAL)
    record = scored(pair, "resample")
    scores = rank(mean_ablated(pair, TEXTS.ranking), TEXTS.ranking, "leave_one_out", 0)
    keep_index = keep_indices(scores, np.array(record.edges), 0)
    for number in range(3):
        (one,) = ablated(pair, TEXTS.ranking, config("resample"), number)
        (prompt,) = read(one, TEXTS.scoring[number : number + 1], number)
        own = pair.lm.logits(prompt.tokens)[0].log_softmax(-1)
        for index in range(len(record.edges)):
            pre_acts = scorer.pre_acts(one, prompt, keep_index <= index)
            acts = pair.down.activation.select(pre_acts)
            found = scorer.splice_site(one, prompt, acts).log_softmax(-1)
            expected = prompt.mean((own.exp() * (own - found)).sum(-1))
            assert record.prompts.kl_model[index][number] == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


def test_adversarial_ablation_takes_the_worst_draw_at_every_count():
    pair = tiny_pair("ff_block.0")
    worst, drawn = scored(pair, "adversarial"), scored(pair, "resample")
    high, low = (np.array(record.prompts.kl_model) for record in (worst, drawn))
    assert (high[:-1] >= low[:-1] - 1e-6).all()
    assert (high > low + 1e-3).any()
    np.testing.assert_allclose(high[-1], low[-1], rtol=1e-5)  # with all edges nothing is ablated
    assert worst.kl_mean == drawn.kl_mean


def test_drawn_values_are_those_of_the_whole_ranking_text_where_its_halves_are_ranked_on_too():
    """Both halves are the same text, so that their order of edges is that of the whole."""
    pair = tiny_pair("ff_block.0")
    texts = replace(TEXTS, ranking=torch.cat([TEXTS.ranking, TEXTS.ranking]))
    settings = config("resample", rank_prompts=8, rank_halves=True)
    record = score(pair, texts, settings, on_progress=lambda n: None)
    value = record.unfaithful_area
    assert record.rank_halves["unfaithful_area"] == pytest.approx((value, value), rel=1e-6)


def test_the_worst_of_some_curves_is_chosen_by_the_kl_to_the_model_at_each_count_and_prompt():
    one = np.array([1.0])
    first, second = (
        Curves(np.array([[a], [b]]), np.array([[c], [d]]), np.array([[c], [d]]), np.array([[a], [b]]), *[one] * 5)
        for a, b, c, d in ((1.0, 4.0, 10.0, 20.0), (2.0, 3.0, 30.0, 40.0))
    )
    worst = Curves.worst([first, second])
    assert worst.kl_model.tolist() == [[2.0], [4.0]]
    assert worst.kl_circuit.tolist() == worst.live_edges.tolist() == [[30.0], [20.0]]


def test_a_circuit_of_several_pairs_refuses_draws():
    pair = tiny_pair("ff_block.0")
    with pytest.raises(UserError, match="ablation resample: a circuit of several pairs takes mean or zero"):
        score_circuit(pair.lm, {pair.block.up: pair.up}, [pair.block.up], TEXTS, config("resample"))


def test_the_published_conventions_refuse_draws():
    with pytest.raises(ValueError, match="ablation = resample: the published conventions set removed latents to zero"):
        ScoreConfig.published(ablation="resample")
