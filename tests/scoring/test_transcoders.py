"""Transcoders at either end of a block, skip connections, run-time norms: what passes beside latents is the model's."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.saes.normalization import InputNorm
from scalar_sae.scoring.ablation import mean_ablated
from scalar_sae.scoring.chain import chain
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.pair import Pair, read
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.rankings.registry import rank
from scalar_sae.scoring.score import score
from scalar_sae.scoring.sweep.edges import GlobalEdges
from scalar_sae.scoring.sweep.subcircuits import sweep
from scalar_sae.scoring.texts import Texts
from scalar_sae.sites import Block, Site
from tests.helpers import random_sae, tiny_lm
from tests.reference import scorer

TOKENS = torch.arange(24).view(2, 12)


def test_its_output_goes_where_it_writes():
    lm = tiny_lm()
    up, down = random_sae(16, 24, 4, 1), replace(random_sae(16, 20, 4, 2), writes=Site("mlp_out", 1))
    pair = Pair(lm, Block.parse("resid_post.0->mlp_in.1"), up, down)
    prompts = list(read(pair, TOKENS))
    acts = down.encode(lm.activations(TOKENS, [Site("mlp_in", 1)])[Site("mlp_in", 1)])
    resid_mid = lm.activations(TOKENS, [Site("resid_mid", 1)])[Site("resid_mid", 1)]
    logits = lm.logits_from(Site("resid_post", 1), resid_mid + down.decode(acts))
    for prompt, one, expected in zip(prompts, acts, logits.log_softmax(-1), strict=True):
        torch.testing.assert_close(pair.log_probs(down.decode(one).unsqueeze(0), prompt)[0], expected)


def test_reading_the_residual_stream_and_writing_the_mlps_output():
    lm = tiny_lm()
    down = replace(random_sae(16, 20, 4, 2), writes=Site("mlp_out", 0))
    pair = Pair(lm, Block.parse("resid_pre.0->resid_mid.0"), random_sae(16, 24, 4, 1), down)
    prompt = next(read(pair, TOKENS))
    true = lm.activations(TOKENS, [Site("resid_mid", 0), Site("mlp_out", 0)])
    spliced = pair.log_probs(true[Site("mlp_out", 0)][:1, :1].expand(-1, 12, -1), prompt)
    assert prompt.down_skip is not None
    torch.testing.assert_close(prompt.down_skip, true[Site("resid_mid", 0)][:1])
    torch.testing.assert_close(spliced[0, 0], lm.logits(TOKENS).log_softmax(-1)[0, 0])


def pair_of(case: str, n_up: int = 24, n_down: int = 20) -> Pair:
    """The cases that are not two plain SAEs."""
    up, down = random_sae(16, n_up, 4, 1), random_sae(16, n_down, 4, 2)
    skip = 0.3 * torch.randn(16, 16, generator=torch.Generator().manual_seed(3))
    norm = InputNorm("constant_norm" if "constant" in case else "layer_norm", 1e-5)
    block = Block.parse({"layer": "ff_layer.1", "block": "ff_block.0"}.get(case.split()[0], "mlp_out.0->mlp_in.1"))
    reads = block.up
    if "transcoders" in case:
        reads = Site("resid_mid" if "resid" in case else "mlp_in", 0)
        up, down = replace(up, writes=Site("mlp_out", 0)), replace(down, writes=Site("mlp_out", 1))
    if "skip" in case:
        up, down = replace(up, W_skip=skip), replace(down, W_skip=skip.T)
    if "norm" in case:
        up, down = replace(up, norm=norm), replace(down, norm=norm)
    return Pair.between(tiny_lm(), block, {reads: up, block.down: down})


CASES = [
    "transcoders", "transcoders from resid_mid", "transcoders with skip", "transcoders with skip and norm",
    "layer with norm", "block with norm", "block with constant norm", "block with skip",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_sub_circuit_is_the_obvious_one(case: str):
    for pair in (pair_of(case), mean_ablated(pair_of(case), TOKENS)):
        counts = np.array([0, 1, 3, 17, 60, 200, 400, 479, 480])
        keep_index = keep_indices(torch.randn(24, 20, generator=torch.Generator().manual_seed(5)), counts, 0)
        prompt = next(read(pair, TOKENS))
        for index, sub in enumerate(sweep(pair, prompt, GlobalEdges(keep_index), len(counts))):
            expected = scorer.pre_acts(pair, prompt, keep_index <= index)
            torch.testing.assert_close(sub.pre_acts, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_all_edges_are_the_spliced_run_and_no_edges_the_ablated_one(case: str):
    pair = pair_of(case)
    lm, block, down = pair.lm, pair.block, pair.down
    x_up, x_down, beside = (
        lm.states(TOKENS, [site])[site] for site in (pair.encode_site, block.down, pair.splice_site)
    )
    edges = GlobalEdges(keep_indices(torch.rand(24, 20), np.array([0, 100, 480]), 0))
    x_hat = pair.up.decode(pair.up.encode(x_up.x), x_up.x)
    beside_up = lm.states(TOKENS, [block.up])[block.up].skip
    everything = lm.run(block.up, block.down, x_hat, beside_up)
    nothing = lm.run(block.up, block.down, pair.up.decode(torch.zeros(2, 12, 24), x_up.x), beside_up)
    for y, index in ((everything, 2), (nothing, 0)):
        x = down.decode(down.encode(y), x_down.x)
        expected = lm.logits_from(pair.splice_site, x, beside.skip).log_softmax(-1)
        for number, prompt in enumerate(read(pair, TOKENS)):
            sub = [one.acts.clone() for one in sweep(pair, prompt, edges, 3)][index]
            ours = pair.log_probs(pair.decoded(sub, prompt).unsqueeze(0), prompt)[0]
            torch.testing.assert_close(ours, expected[number], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["transcoders", "transcoders with skip and norm", "block with norm"])
def test_rankings_are_the_obvious_ones(case: str):
    pair, tokens = pair_of(case, 10, 8), TOKENS[:1, :5]
    prompt = next(read(pair, tokens))
    alphas = torch.tensor([(step + 0.5) / 8 for step in range(8)])
    obvious = {
        "leave_one_out": scorer.leave_one_out(pair, prompt),
        "published": scorer.published_attribution(pair, prompt),
        "ig": scorer.path_gradient(pair, prompt, alphas),
    }
    for name, squares in obvious.items():
        ours = rank(pair, tokens, name, 0)
        torch.testing.assert_close(ours, (squares / 5).sqrt(), atol=1e-4, rtol=1e-3)


def test_a_whole_score_and_its_controls():
    pair = pair_of("transcoders with skip and norm")
    texts = Texts(TOKENS, TOKENS, {"fingerprint": "f"})
    for ranking in ("local", "fisher"):
        config = ScoreConfig(ranking=ranking, rank_prompts=2, prompts=2, context=12)
        record = score(pair, texts, config, method="m")
        assert record.kl_circuit[-1] == pytest.approx(0, abs=1e-5)
        assert record.kl_circuit[0] > 0.01
    dead = score(pair, texts, config.model_copy(update={"control": "padded"}))
    assert dead.kl_circuit[-1] == pytest.approx(0, abs=1e-5)


def test_what_cannot_be_scored():
    lm, sae = tiny_lm(), random_sae(16, 20, 4, 1)
    trans = replace(sae, writes=Site("mlp_out", 0))
    with pytest.raises(UserError, match=r"no SAE at mlp_in.0; there are SAEs at mlp_in.0 -> mlp_out.0, mlp_out.0"):
        Pair.between(lm, Block.parse("ff_layer.0"), {Site("mlp_in", 0): trans, Site("mlp_out", 0): sae})
    with pytest.raises(UserError, match=r"upstream stands a transcoder that writes mlp_out.0; its block begins there"):
        Pair(lm, Block.parse("ff_block.0"), trans, sae)
    with pytest.raises(UserError, match=r"a transcoder that reads resid_post.0, behind the block's start"):
        Pair(lm, Block.parse("mlp_out.0->mlp_in.1"), trans, sae, Site("resid_post", 0))
    with pytest.raises(UserError, match=r"mlp_out.5: tiny has 2 layers"):
        Pair(lm, Block.parse("ff_block.0"), sae, replace(sae, writes=Site("mlp_out", 5)))
    narrow = replace(sae, W_dec=torch.zeros(20, 7), b_dec=torch.zeros(7))
    with pytest.raises(UserError, match="writes 7 dimensions, tiny has 16"):
        Pair(lm, Block.parse("ff_block.0"), sae, narrow)
    sites = [Site("resid_pre", 0), Site("resid_mid", 0), Site("resid_post", 0)]
    skipping = dict.fromkeys(sites, replace(sae, W_skip=torch.eye(16)))
    with pytest.raises(UserError, match="a whole-model circuit takes SAEs that decode from their latents alone"):
        chain(lm, skipping, sites)
