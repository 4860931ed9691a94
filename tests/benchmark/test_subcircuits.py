"""The sweep against the obvious scorer, and the identities of benchmark/README.md."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalar_sae.benchmark.pair import Pair, read
from scalar_sae.benchmark.ranking import levels
from scalar_sae.benchmark.subcircuits import sweep
from scalar_sae.errors import UserError
from scalar_sae.sites import Block
from tests.helpers import random_sae, tiny_lm, tiny_pair
from tests.reference import scorer

BLOCKS = ["ff_layer.1", "ff_block.0", "attn_block.1", "transformer_block.0", "resid_pre.0->resid_post.1"]
TOKENS = torch.arange(30).view(3, 10)


@given(st.sampled_from(BLOCKS), st.integers(0, 10**6), st.integers(1, 8))
@settings(deadline=None, max_examples=25)
def test_every_sub_circuit_is_the_obvious_one(block: str, seed: int, k: int):
    pair = tiny_pair(block, k=k, seed=seed % 1000)
    z = read(pair, TOKENS[:1]).z[0]
    scores = torch.randn(24, 20, generator=torch.Generator().manual_seed(seed))
    counts = np.array([0, 1, 3, 17, 60, 200, 400, 479, 480])
    level = levels(scores, counts, seed)
    live_before = torch.zeros(10)
    for index, sub in enumerate(sweep(pair, z, level, len(counts))):
        kept = level <= index
        assert kept.sum() == counts[index]
        expected = scorer.pre_acts(pair, z, kept)
        torch.testing.assert_close(sub.pre_acts, expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(sub.acts, pair.down.activation.select(sub.pre_acts))
        live = torch.einsum("ti,ij,tj->t", (z > 0).float(), kept.float(), (sub.acts > 0).float())
        assert torch.equal(sub.live_edges.float(), live)
        live_before = live
    assert live_before.max() > 0


@pytest.mark.parametrize("block", BLOCKS)
def test_all_edges_are_the_full_circuit_and_no_edges_the_decoder_bias(block: str):
    pair = tiny_pair(block)
    text = read(pair, TOKENS)
    counts = np.array([0, 100, pair.n_edges])
    level = levels(torch.rand(24, 20), counts, 0)
    for number, z in enumerate(text.z):
        none, _, everything = (sub.acts.clone() for sub in sweep(pair, z, level, 3))
        assert torch.equal(pair.down.decode(none), pair.down.b_dec.expand(10, -1))
        full = pair.down.encode(pair.compute(pair.up.decode(z).unsqueeze(0)))[0]
        torch.testing.assert_close(everything, full, atol=1e-5, rtol=1e-5)
        one = text.prompt(number)
        torch.testing.assert_close(
            pair.log_probs(everything.unsqueeze(0), one), pair.log_probs(full.unsqueeze(0), one), atol=1e-4, rtol=1e-4
        )


def test_an_ff_layer_keeps_the_models_own_residual_stream():
    pair = tiny_pair("ff_layer.1")
    text = read(pair, TOKENS)
    states = pair.lm.states(TOKENS, [pair.block.down])[pair.block.down]
    x_hat = pair.down.decode(pair.down.encode(states.x))
    spliced = pair.lm.logits_from(pair.block.down, x_hat, states.skip).log_softmax(-1)
    torch.testing.assert_close(pair.log_probs(pair.down.encode(states.x), text), spliced)


def test_tokens_with_nothing_live_upstream():
    pair = tiny_pair("ff_block.0")
    z = torch.zeros(4, 24)
    z[0, 3] = 1.5
    counts = np.array([0, 40, 480])
    level = levels(torch.rand(24, 20, generator=torch.Generator().manual_seed(1)), counts, 0)
    for index, sub in enumerate(sweep(pair, z, level, 3)):
        torch.testing.assert_close(sub.pre_acts, scorer.pre_acts(pair, z, level <= index), atol=2e-5, rtol=1e-4)


def test_mismatches_are_named():
    lm = tiny_lm()
    good, wide = random_sae(16, 8, 2, 0), random_sae(12, 8, 2, 0)
    with pytest.raises(UserError, match=r"resid_post.0: the SAE reads 12 dimensions, tiny has 16"):
        Pair(lm, Block.parse("ff_block.0"), good, wide)
    with pytest.raises(UserError, match=r"resid_mid.5: tiny has 2 layers \(0-1\)"):
        Pair(lm, Block.parse("ff_block.5"), good, good)
    with pytest.raises(UserError, match="must end on the same branch"):
        Pair(lm, Block.parse("mlp_in.0->resid_post.0"), good, good)
    block = Block.parse("ff_block.1")
    with pytest.raises(UserError, match=r"no SAE at resid_post.1; there are SAEs at resid_mid.1"):
        Pair.between(lm, block, {block.up: good})


def test_activations_that_are_not_finite_are_named():
    pair = tiny_pair("ff_block.1")
    pair.lm.hf.transformer.wte.weight[25] = float("nan")
    with pytest.raises(UserError, match=r"resid_mid.1: activations of prompt 2 are not finite"):
        read(pair, TOKENS)
