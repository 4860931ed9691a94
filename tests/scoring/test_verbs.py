"""The verbs `score` and `circuit` on a tiny model and SAEs on disk; circuits against a plain loop over the pairs."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from scalar_sae.corpora import load_held_out
from scalar_sae.digests import digest_of_sae
from scalar_sae.lm.model import LanguageModel
from scalar_sae.records.results import Record, Results
from scalar_sae.saes.store import SaeCard, load_sae, save_sae
from scalar_sae.scoring.ablation import mean_ablated
from scalar_sae.scoring.config import ScoreConfig, held_out
from scalar_sae.scoring.pair import Pair, read
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.rankings.registry import rank
from scalar_sae.sites import Block, Site
from tests.forks import Forks
from tests.helpers import random_sae, tiny_lm
from tests.reference import scorer
from tests.test_study import scalar

SITES = [Site("resid_pre", 0), Site("resid_mid", 0), Site("resid_post", 1)]
WIDTHS = (24, 20, 16)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, one group of SAEs at all three sites and one that lacks the last."""
    folder = tmp_path_factory.mktemp("circuit")
    tiny_lm(d_vocab=128).save(folder / "lm")
    (folder / "text.txt").write_text("".join(chr(32 + (7 * i * i + i // 9) % 90) for i in range(600)))
    for name, sites in (("whole", SITES), ("part", SITES[:2])):
        for seed, (site, width) in enumerate(zip(sites, WIDTHS, strict=False)):
            sae = random_sae(16, width, 4, seed)
            save_sae(sae, SaeCard.of(sae, "topk", name, site, {}), folder / "saes" / name / str(site))
    return folder


def arguments(run: Path, *more: str) -> list[str]:
    sites = ",".join(map(str, SITES))
    shared = ["--saes", str(run), "--sites", sites, "--tokens", str(run / "text.txt"), "--context", "12"]
    return ["circuit", *shared, "--prompts", "3", "--rank-prompts", "2", "--edges", "0,30,200,480", *more]


def by_hand(run: Path, count: int) -> tuple[float, float]:
    """KL from the model and from the whole chain with the top edges of both pairs, mean over prompts and tokens."""
    lm = LanguageModel.load(run / "lm")
    saes = [load_sae(run / "saes" / "whole" / str(site))[0] for site in SITES]
    pairs = [Pair(lm, Block(SITES[i], SITES[i + 1]), saes[i], saes[i + 1]) for i in range(2)]
    config = ScoreConfig(ranking="leave_one_out_with_prior", rank_prompts=2, prompts=3, context=12)
    texts = held_out(load_held_out(str(run / "text.txt"), lm.tokenizer), config)
    pairs = [mean_ablated(pair, texts.ranking) for pair in pairs]
    rankings = [rank(pair, texts.ranking, "leave_one_out_with_prior", 0) for pair in pairs]
    kept = [keep_indices(scores, np.array([min(count, scores.numel())]), 0) == 0 for scores in rankings]
    divergences: list[list[float]] = []
    for prompt in read(pairs[0], texts.scoring):
        whole = some = prompt.z
        for pair, edges in zip(pairs, kept, strict=True):
            some = pair.down.activation.select(scorer.pre_acts(pair, replace(prompt, z=some), edges))
            whole = pair.down.encode(pair.compute(pair.up.decode(whole).unsqueeze(0), None))[0]
        ends = [lm.logits_from(SITES[-1], saes[-1].decode(acts).unsqueeze(0)).log_softmax(-1) for acts in (whole, some)]
        model = lm.logits(prompt.tokens).log_softmax(-1)
        divergences.append([(p.exp() * (p - ends[1])).sum(-1).mean().item() for p in (model, ends[0])])
    from_model, from_chain = np.mean(divergences, 0)
    return from_model, from_chain


def circuit_record(out: Path) -> Record:
    (record,) = Results.read(out).records
    return record


def test_the_group_with_saes_at_every_site_is_scored(run: Path, tmp_path: Path):
    scalar(*arguments(run), "--out", tmp_path / "found.json")
    record = circuit_record(tmp_path / "found.json")
    assert (record.method, record.ranking, record.config["budget"]) == ("whole", "leave_one_out_with_prior", "per pair")
    for count, *found in zip(record.edges, record.kl_model, record.kl_circuit, strict=True):
        assert found == pytest.approx(by_hand(run, count), rel=1e-3, abs=1e-5)
    assert record.kl_circuit[-1] == pytest.approx(0, abs=1e-6)
    assert record.kl_circuit[0] > 0.01
    assert set(record.hashes) == {"lm", *map(str, SITES)}
    for site in SITES:
        assert record.hashes[str(site)] == digest_of_sae(load_sae(run / "saes" / "whole" / str(site))[0])


def test_one_order_ranks_by_the_output_and_counts_all_edges(run: Path, tmp_path: Path):
    scalar(*arguments(run), "--one-order", "--out", tmp_path / "found.json")
    record = circuit_record(tmp_path / "found.json")
    assert (record.ranking, record.config["budget"], record.n_edges) == ("fisher", "one order", 24 * 20 + 20 * 16)
    assert record.kl_circuit[-1] == pytest.approx(0, abs=1e-6)


def test_what_no_circuit_can_be_made_of_is_named(run: Path):
    done = scalar(*arguments(run, "--method", "part"), check=False)
    assert "no SAE at resid_post.1" in done.stderr
    done = scalar(*arguments(run, "--memory", "0.1"), check=False)
    assert "memory 0.1 GB: 24 x 20 latents need" in done.stderr


def score_arguments(run: Path, *more: str) -> list[str]:
    shared = ["--saes", str(run), "--block", "attn_block.0", "--tokens", str(run / "text.txt"), "--context", "12"]
    return ["score", *shared, "--prompts", "2", *more]


def test_the_published_scores_are_printed_and_their_text_is_the_authors(run: Path):
    done = scalar(*score_arguments(run, "--published"), check=False)
    assert "576 prompts of 12 tokens to rank on, only 50 there; lower --rank-prompts" in done.stderr
    done = scalar(*score_arguments(run, "--published", "--rank-prompts", "2"))
    for column in ("absolute", "pure", "relative", "do nothing"):
        assert column in done.stdout


def test_a_short_text_is_enough_where_few_prompts_are_asked_for(run: Path, tmp_path: Path):
    short = tmp_path / "short.txt"
    short.write_text((run / "text.txt").read_text()[:60])
    arguments = score_arguments(run, "--tokens", str(short), "--ranking")
    assert "attn_block.0" in scalar(*arguments, "local", "--rank-prompts", 2).stdout
    done = scalar(*arguments, "local", check=False)  # faithfulness compares with a mean over the ranking text
    assert "64 prompts of 12 tokens to rank on, only 2 there; lower --rank-prompts" in done.stderr


def test_a_place_that_cannot_be_written_is_found_before_anything_is_ranked(run: Path):
    out = str(run / "text.txt" / "found.json")
    for verb in (arguments(run), score_arguments(run)):
        with mock.patch.object(LanguageModel, "load") as load:
            done = scalar(*verb, "--out", out, check=False)
        assert "found.json: cannot be written" in done.stderr
        assert not load.called


def test_two_workers_score_the_circuit_that_one_scores(run: Path, tmp_path: Path, forks: Forks):
    two = arguments(run, "--out", str(tmp_path / "two.json"))
    forks.run("from scalar_sae.cli import main; main()", *two, n_workers=2)
    scalar(*arguments(run), "--out", tmp_path / "one.json")
    one, two = (circuit_record(tmp_path / f"{name}.json") for name in ("one", "two"))
    assert two.kl_circuit == pytest.approx(one.kl_circuit, rel=1e-4, abs=1e-6)
    assert two.n_live_edges == one.n_live_edges
