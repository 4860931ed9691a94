"""What a score's settings are, from Python and from the command line."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from scalar_sae.cli.subjects import score_config
from scalar_sae.corpora import Corpus
from scalar_sae.errors import UserError
from scalar_sae.scoring.circuit import score_circuit
from scalar_sae.scoring.config import ScoreConfig, StudyScores, held_out, spread
from scalar_sae.scoring.score import score
from scalar_sae.scoring.texts import Texts
from scalar_sae.sites import Site
from tests.helpers import random_sae, tiny_lm, tiny_pair

TEXTS = Texts(torch.arange(30).view(3, 10) % 32, torch.arange(5, 25).view(2, 10), {"fingerprint": "f"})


def test_published_means_the_same_in_python_and_on_the_command_line():
    options = {"ranking": None, "rank_prompts": None, "edges": None, "special": None, "prompts": 7, "control": None}
    assert score_config(options, published=True) == ScoreConfig.published(prompts=7)
    config = ScoreConfig.published()
    assert (config.ranking, config.n_rank_prompts, config.edges) == ("published", 576, "published")
    assert (config.conventions, config.overlap, config.special) == ("published", True, "count")


def test_published_fields_can_be_changed():
    config = ScoreConfig.published(rank_prompts=3, edges="coarse")
    assert (config.ranking, config.n_rank_prompts, config.edges) == ("published", 3, "coarse")
    assert ScoreConfig.published(ranking="local").n_rank_prompts == 64


@pytest.mark.parametrize("change", [{"special": "skip"}, {"special": (0,)}, {"ablation": "mean"}])
def test_what_contradicts_the_published_conventions_is_refused(change: dict[str, object]):
    name = next(iter(change))
    with pytest.raises(ValidationError, match=f"{name} = .*: the published conventions"):
        ScoreConfig.published(**change)
    with pytest.raises(ValidationError, match="the published conventions"):
        StudyScores.model_validate({"conventions": "published", **change})
    with pytest.raises(UserError, match=f"^score: {name} = .*the published conventions [^\n]*$"):
        score_config(change, published=True)


def test_a_score_ranks_on_as_many_prompts_as_is_usual_for_its_ranking():
    assert ScoreConfig().n_rank_prompts == 64
    assert ScoreConfig(ranking="local").n_rank_prompts == 64
    assert ScoreConfig(ranking="local", rank_prompts=5).n_rank_prompts == 5


def test_a_study_is_a_list_of_scores():
    study = StudyScores(rankings={"ig": 3, "local": 2}, controls=("padded", "shuffled"), prompts=4, context=9, seed=5)
    same = {"prompts": 4, "context": 9, "seed": 5}
    assert study.n_rank_prompts == 3
    assert study.scores() == [
        ScoreConfig(ranking="ig", rank_prompts=3, **same),
        ScoreConfig(ranking="local", rank_prompts=2, **same),
    ]
    assert study.control_scores() == [
        ScoreConfig(ranking="ig", rank_prompts=3, control="padded", **same),
        ScoreConfig(ranking="ig", rank_prompts=3, control="shuffled", **same),
    ]


def test_a_score_by_name_has_the_default_settings_and_says_what_it_read():
    pair = tiny_pair("ff_block.0")
    by_name, by_config = score(pair, TEXTS, "ig"), score(pair, TEXTS, ScoreConfig(ranking="ig"))
    assert by_name.model_dump(exclude={"seconds"}) == by_config.model_dump(exclude={"seconds"})
    assert [by_name.config[name] for name in ("rank_prompts", "prompts", "context")] == [3, 2, 10]
    json.dumps(by_name.config)


def test_a_circuit_has_no_control():
    sites = [Site("resid_pre", 0), Site("resid_mid", 0), Site("resid_post", 0)]
    saes = {site: random_sae(16, 20, 4, n) for n, site in enumerate(sites)}
    with pytest.raises(UserError, match="control padded: a circuit of several pairs has no controls"):
        score_circuit(tiny_lm(), saes, sites, TEXTS, ScoreConfig(control="padded"))


def test_edge_counts_are_a_text_or_a_list_of_numbers():
    assert ScoreConfig(edges=[1, 10, 100]) == ScoreConfig(edges="1,10,100")  # pyright: ignore[reportArgumentType]
    for wrong in ([1, "10"], [1.5], [True], 10):
        with pytest.raises(ValidationError, match="edges"):
            ScoreConfig(edges=wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("n", [1, 2, 3, 64, 100, 1000, 4097])
def test_prompts_are_spread_evenly_however_few_are_chosen(n: int):
    """Between neighbours of the first 2^k choices, around the end, lie as many numbers everywhere, to one."""
    for seed in (0, 1, 7):
        order = spread(n, seed).numpy()
        assert sorted(order) == list(range(n))
        for k in range((n - 1).bit_length()):
            gaps = np.diff(np.sort(order[: 2**k]), append=order[: 2**k].min() + n)
            assert gaps.min() >= n // 2**k - (k > 0)
            assert gaps.max() <= -(-n // 2**k) + 1
        assert spread(n, seed).tolist() == order.tolist()
    assert n < 64 or spread(n, 0).tolist() != spread(n, 1).tolist()


def test_a_half_of_the_text_is_represented_by_few_prompts_and_by_the_first_of_many():
    """Tokens that count up: the mean of a few prompts is near that of the text, and every quarter has its share."""
    corpus = Corpus("c", torch.arange(8), torch.arange(32_000), "t")
    few, many = (held_out(corpus, ScoreConfig(prompts=n, rank_prompts=8, context=16, seed=3)) for n in (8, 50))
    assert torch.equal(few.scoring, many.scoring[:8])
    for texts in (few, many):
        quarters = (texts.scoring[:, 0] - 16_000) // 4_000
        counts = torch.bincount(quarters, minlength=4)
        assert counts.max() - counts.min() <= 1
        assert (texts.ranking < 16_000).all()
    assert torch.bincount(few.ranking[:, 0] // 2_000, minlength=8).tolist() == [1] * 8
