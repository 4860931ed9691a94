"""The loop."""

import json
from pathlib import Path

import pytest
import torch

from scalar_sae.corpora import load_corpus, windows
from scalar_sae.errors import UserError
from scalar_sae.io import Events
from scalar_sae.saes.store import load_sae
from scalar_sae.sites import Site
from scalar_sae.training.config import TrainConfig, validated
from scalar_sae.training.loop import train
from tests.helpers import tiny_lm
from tests.training.runs import SMALL, STAIRS, TOPK, random_prompts, trained


def test_transcoders_are_stored_with_their_target(tmp_path: Path, text: Path):
    coder = {**TOPK, "name": "coder", "sites": ["mlp_in.0"], "targets": ["mlp_out.0"]}
    saes = trained(tmp_path, text, "run", [TOPK, coder])
    assert saes["coder"][Site("mlp_in", 0)].writes == Site("mlp_out", 0)
    _, card = load_sae(tmp_path / "run" / "saes" / "coder" / "mlp_in.0")
    assert (card.site, card.writes) == ("mlp_in.0", "mlp_out.0")


def test_what_one_trainee_does_never_changes_another(tmp_path: Path, text: Path):
    alone = trained(tmp_path, text, "alone", [TOPK])["topk"]
    wild = {**TOPK, "name": "wild", "k": 8, "expansion": 4}
    together = trained(tmp_path, text, "together", [TOPK, STAIRS, wild])["topk"]
    for site, sae in alone.items():
        assert torch.equal(sae.W_enc, together[site].W_enc)
        assert torch.equal(sae.b_dec, together[site].b_dec)


def test_seeds_of_a_method_train_side_by_side(tmp_path: Path, text: Path):
    seeds = [{**TOPK, "name": f"topk-{seed}", "seed": seed} for seed in (0, 7)]
    together = trained(tmp_path, text, "together", seeds)
    alone = trained(tmp_path, text, "alone", [TOPK])["topk"]
    for site, sae in alone.items():
        assert torch.equal(sae.W_enc, together["topk-0"][site].W_enc), "without a seed of its own, the run's"
        assert not torch.equal(sae.W_enc, together["topk-7"][site].W_enc)


def test_pairs_at_some_layers_are_those_of_a_run_at_all_layers(tmp_path: Path, text: Path):
    pairs = {"along": "ff_blocks", "k": 2, "expansion": 2}
    methods = [{"method": name, **pairs} for name in ("staircase", "jacobian", "staircase_jacobian")]
    all_layers = trained(tmp_path, text, "all", methods)
    some = [{**method, "layers": [1]} for method in methods]
    for name, one in trained(tmp_path, text, "some", some).items():
        assert [str(site) for site in one] == ["resid_mid.1", "resid_post.1"]
        assert all(torch.equal(sae.W_enc, all_layers[name][site].W_enc) for site, sae in one.items())
    for method in validated(TrainConfig, {**SMALL, "saes": some}, "train").saes:
        assert [str(block) for block in method.blocks(2)] == ["ff_block.1"]


def test_a_layer_that_the_model_lacks_is_named(tmp_path: Path, text: Path):
    with pytest.raises(UserError, match=r"layers: 2: the model has 2 layers \(0-1\)"):
        trained(tmp_path, text, "run", [{**STAIRS, "layers": [0, 2]}])
    with pytest.raises(UserError, match=r"layers = \(0,\): a staircase along the residual stream has all layers"):
        trained(tmp_path, text, "run", [{**STAIRS, "along": "residual_stream", "layers": [0]}])


def test_a_methods_own_optimiser_is_that_of_a_run_with_these_settings(tmp_path: Path, text: Path):
    """And the method beside it keeps the run's."""
    settings = {"clip": 0.05, "beta2": 0.9999, "schedule": "cooldown", "warmup_steps": 7}
    runs_own = trained(tmp_path, text, "runs_own", [TOPK], **settings)["topk"]
    plain = trained(tmp_path, text, "plain", [TOPK])["topk"]
    together = trained(tmp_path, text, "together", [TOPK, {**TOPK, "name": "own", **settings}])
    for site in plain:
        assert torch.equal(together["own"][site].W_enc, runs_own[site].W_enc)
        assert torch.equal(together["topk"][site].W_enc, plain[site].W_enc)
    for name, value in settings.items():
        one = trained(tmp_path, text, name, [{**TOPK, name: value}])["topk"]
        assert all(not torch.equal(one[site].W_enc, plain[site].W_enc) for site in plain), f"{name} does something"


def test_what_is_too_small_is_named(tmp_path: Path, text: Path):
    for sizes, message in (
        ({"buffer_tokens": 100, "context": 12}, "a buffer holds 96 tokens, fewer than one batch of 100; raise buffer_"),
        ({"batch_tokens": 4000, "buffer_tokens": 9000, "tokens": 9000}, "the text holds 2560 tokens, .* lower batch_t"),
    ):
        with pytest.raises(UserError, match=message):
            trained(tmp_path, text, "run", [TOPK], **sizes)


def test_a_site_that_two_transcoders_read_is_named(tmp_path: Path, text: Path):
    coder = {**TOPK, "sites": ["mlp_in.0", "mlp_in.0"], "targets": ["mlp_out.0", "resid_post.0"]}
    with pytest.raises(UserError, match=r"topk: mlp_in.0 is read twice"):
        trained(tmp_path, text, "run", [coder])


def test_a_transcoder_that_writes_before_it_reads_is_refused(tmp_path: Path, text: Path):
    coder = {**TOPK, "sites": ["mlp_in.0", "resid_post.1"], "targets": ["mlp_out.0", "resid_mid.0"]}
    with pytest.raises(UserError, match=r"topk: the target resid_mid.0 comes before resid_post.1, which is read"):
        trained(tmp_path, text, "run", [coder])


def test_training_lowers_the_error(tmp_path: Path, text: Path):
    lm = tiny_lm()
    short = trained(tmp_path, text, "short", [TOPK, STAIRS], tokens=100, lr=1e-2)
    long = trained(tmp_path, text, "long", [TOPK, STAIRS], tokens=40_000, lr=1e-2)
    for name, group in long.items():
        for site, sae in group.items():
            acts = lm.activations(random_prompts(), [site])[site]
            before, after = ((acts - s.decode(s.encode(acts))).square().mean() for s in (short[name][site], sae))
            assert after < 0.8 * before, (name, site)


def test_bad_activations_stop_the_run(tmp_path: Path, text: Path):
    config = TrainConfig(corpus=str(text), saes=[TOPK], **SMALL)
    lm = tiny_lm()
    lm.hf.transformer.h[1].mlp.c_proj.bias.fill_(float("nan"))
    with pytest.raises(UserError, match=r"resid_post.1: activations are not finite at step 0"):
        train(config, lm, load_corpus(str(text), tiny_lm()), tmp_path / "run", Events(None))
    assert not list(tmp_path.rglob("sae.json"))


def test_what_is_left_out_is_in_the_log_and_on_the_card(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]):
    events = Events(tmp_path / "events.jsonl")
    trained(tmp_path, text, "run", [TOPK], events, special=[3, 11])
    prompts = windows(load_corpus(str(text), tiny_lm()).train, 16)
    n = int(((prompts == 3) | (prompts == 11)).sum())
    start = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[0])
    recipe = json.loads((tmp_path / "run" / "saes" / "topk" / "resid_mid.0" / "sae.json").read_text())["recipe"]
    assert start["special"] == recipe["special"] == {"ids": [3, 11], "left_out": n, "of": prompts.numel()}
    assert recipe["bos"] is False
    assert recipe["seen"] == {"steps": 20, "tokens": 2000}
    said = capsys.readouterr().err.replace("\n", " ")
    assert (
        said.count(f"{n:,} of {prompts.numel():,} positions of the training text hold special tokens (ids 3, 11)") == 1
    )


@pytest.mark.parametrize("target", [4, 30])
def test_an_l0_that_was_asked_for_and_missed_is_said_and_written_down(
    tmp_path: Path, text: Path, target: int, capsys: pytest.CaptureFixture[str]
):
    """Twenty steps bring a ReLU SAE nowhere near 4 latents a token; about half of its 32 latents are active."""
    relu = {
        "method": "relu",
        "sites": ["resid_mid.0"],
        "expansion": 2,
        "sparsity": {"weight": 0.1, "target_l0": target},
    }
    (sae,) = trained(tmp_path, text, "run", [relu], buffer_tokens=2000)["relu"].values()
    lm, corpus = tiny_lm(), load_corpus(str(text), tiny_lm())
    x = lm.activations(windows(corpus.train, 16), [Site("resid_mid", 0)])[Site("resid_mid", 0)]
    l0 = (sae.encode(x.flatten(0, 1)) > 0).sum(-1).float().mean().item()
    assert sae.trained is not None
    assert sae.trained.wanted_l0 == target
    assert sae.trained.l0 == pytest.approx(l0, rel=0.05)  # of the windows that the last buffer holds
    assert sae.trained.missed == (abs(l0 - target) > 0.1 * target)
    assert (f"where the config asks for {target}" in capsys.readouterr().err) == sae.trained.missed
