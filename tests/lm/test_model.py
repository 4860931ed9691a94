"""The named sites are the model's own computation, cut where the names say."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalar_sae.corpora import load_corpus
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.toy import WEIGHTS, shipped, toy_gpt
from scalar_sae.lm.train import validation_loss
from scalar_sae.sites import Site
from tests.golden.make import POSITIONS, PROMPTS
from tests.helpers import GOLDEN, PLAIN_KINDS, golden_lm, shared, tiny_lm

TOKENS = torch.arange(24).view(2, 12)
sites = st.builds(Site, st.sampled_from(PLAIN_KINDS), st.integers(0, 1))


def test_the_toy_model_has_the_papers_size():
    assert sum(p.numel() for p in toy_gpt().parameters()) == 216_448


def test_hidden_states_and_logits_are_the_models_own_to_the_bit():
    lm = tiny_lm()
    theirs = lm.hf(TOKENS, output_hidden_states=True)
    assert torch.equal(lm.logits(TOKENS), theirs.logits)
    ours = lm.activations(TOKENS, [Site("resid_pre", 0), Site("resid_post", 0)])
    for mine, hidden in zip(ours.values(), theirs.hidden_states, strict=False):
        assert torch.equal(mine, hidden)


@given(sites)
@settings(deadline=None, max_examples=14)
def test_splicing_the_activation_back_changes_nothing(site: Site):
    lm = tiny_lm()
    state = lm.states(TOKENS, [site])[site]
    assert torch.equal(lm.logits_from(site, state.x, state.skip), lm.hf(TOKENS).logits)


@given(sites, sites)
@settings(deadline=None, max_examples=30)
def test_a_block_recomputed_from_its_input_gives_its_output(a: Site, b: Site):
    start, end = sorted((a, b))
    lm = tiny_lm()
    states = lm.states(TOKENS, [start, end])
    assert torch.equal(lm.run(start, end, states[start].x, states[start].skip), states[end].x)


def test_side_branches_hold_what_their_names_say():
    lm = tiny_lm()
    layer = lm.hf.transformer.h[1]
    at = lm.activations(TOKENS, [Site(kind, 1) for kind in PLAIN_KINDS])
    value = {site.kind: x for site, x in at.items()}
    torch.testing.assert_close(value["mlp_in"], layer.ln_2(value["resid_mid"]))
    torch.testing.assert_close(value["resid_mid"] + value["mlp_out"], value["resid_post"])
    torch.testing.assert_close(value["resid_pre"] + value["attn_out"], value["resid_mid"])


def test_the_forward_stops_at_the_last_site_needed():
    lm = tiny_lm()
    lm.activations(TOKENS, [Site("resid_mid", 1)])  # the first of a length records what attention is handed
    calls: list[int] = []
    lm.hf.transformer.h[1].mlp.register_forward_hook(lambda *_: calls.append(1))
    lm.activations(TOKENS, [Site("resid_mid", 1)])
    assert not calls


def test_golden_activations():
    from safetensors.torch import load_file

    lm = golden_lm()
    ids = load_file(GOLDEN / "prompts.safetensors")["ids"].long()[:PROMPTS]
    golden = load_file(GOLDEN / "acts.safetensors")
    for layer in range(4):
        for kind in ("resid_pre", "resid_mid", "mlp_in", "mlp_out"):
            mine = lm.activations(ids, [Site(kind, layer)])[Site(kind, layer)][:, POSITIONS]
            torch.testing.assert_close(mine, golden[f"{layer}.{kind}"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(lm.logits(ids)[:, POSITIONS], golden["logits"], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", shipped())
def test_shipped_weights_have_the_loss_their_record_claims(name: str):
    import json

    record = json.loads((WEIGHTS / name / "training.json").read_text())
    lm = LanguageModel.load(name)
    assert sum(p.numel() for p in lm.parameters()) == record["parameters"] == 216_448
    data = [shared("data", "tiny_shakespeare.txt")] if name == "tiny-shakespeare" else []
    corpus = load_corpus(name, lm, data=data)
    if corpus.fingerprint == record["data"]["fingerprint"]:
        assert validation_loss(lm.hf, corpus.val, 128) == pytest.approx(record["val_loss_nats"], abs=2e-5)
    else:  # another Python's standard library: near, not equal
        assert validation_loss(lm.hf, corpus.val, 128, most=1000) == pytest.approx(record["val_loss_nats"], abs=0.15)
    assert record["val_loss_bits"] == pytest.approx(record["val_loss_nats"] / math.log(2), abs=1e-4)


def test_bad_input(tmp_path: Path):
    lm = tiny_lm()
    with pytest.raises(UserError, match=r"resid_mid.2: tiny has 2 layers \(0-1\)"):
        lm.activations(TOKENS, [Site("resid_mid", 2)])
    with pytest.raises(UserError, match=r"token 32: the vocabulary of tiny ends at 31"):
        lm.logits(torch.full((1, 4), 32))
    with pytest.raises(UserError, match="token -1: token ids begin at 0"):
        lm.logits(torch.full((1, 4), -1))
    with pytest.raises(UserError, match="reads at most 16"):
        lm.logits(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(UserError, match="needs the residual stream"):
        lm.run(Site("mlp_in", 0), Site("resid_post", 0), torch.zeros(1, 4, 16))
    with pytest.raises(UserError, match="did you mean 'python-stdlib'"):
        LanguageModel.load("python_stdlib")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        LanguageModel.load(tmp_path)


def test_the_feed_forward_half_as_plain_tensors_is_the_models_own():
    lm = tiny_lm()
    x = torch.randn(2, 5, 16)
    ff = lm.feed_forward(1)
    torch.testing.assert_close(ff.norm(x), lm.run(Site("resid_mid", 1), Site("mlp_in", 1), x))
    torch.testing.assert_close(ff.mlp(x), lm.run(Site("mlp_in", 1), Site("mlp_out", 1), x))
