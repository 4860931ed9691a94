"""The sweep against the obvious scorer, and the identities of scoring/README.md."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scalar_sae.errors import UserError
from scalar_sae.scoring import chain
from scalar_sae.scoring.ablation import mean_ablated
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.conventions import CONVENTIONS
from scalar_sae.scoring.pair import Pair, Prompt, read
from scalar_sae.scoring.rankings import effects
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.resume import Partial
from scalar_sae.scoring.score import score
from scalar_sae.scoring.sweep.edges import ORDER_BYTES, GlobalEdges, LocalEdges
from scalar_sae.scoring.sweep.subcircuits import sweep
from scalar_sae.scoring.texts import Texts
from scalar_sae.sites import Block
from tests.helpers import random_sae, tiny_lm, tiny_pair
from tests.lm.families import family_lm
from tests.reference import scorer

BLOCKS = [
    "ff_layer.1",
    "ff_block.0",
    "attn_block.1",
    "transformer_block.0",
    "resid_pre.0->resid_post.1",
    "mlp_in.0->resid_post.0",
    "attn_out.0->mlp_out.0",
    "attn_out.1->resid_post.1",
    "mlp_in.0->resid_mid.1",
    "resid_mid.0->mlp_out.0",
    "resid_mid.0->attn_out.1",
]
TOKENS = torch.arange(30).view(3, 10)


def one_prompt(pair: Pair) -> Prompt:
    return next(read(pair, TOKENS[:1]))


@given(
    st.sampled_from(BLOCKS),
    st.sampled_from(["gpt2", "llama"]),
    st.sampled_from(["topk", "relu", "jumprelu", "groupmax"]),
    st.booleans(),
    st.integers(0, 10**6),
    st.integers(1, 8),
)
@settings(deadline=None, max_examples=20)
def test_every_sub_circuit_is_the_obvious_one(
    block: str, family: str, kind: str, ablation_value: bool, seed: int, k: int
):
    assume(kind != "groupmax" or 24 % k == 20 % k == 0)
    pair = tiny_pair(block, k=k, seed=seed % 1000, kind=kind, ablation_value=ablation_value)
    if family != "gpt2":  # RMSNorm, a gated MLP, rotary positions
        pair = replace(pair, lm=family_lm(family))
    prompt = one_prompt(pair)
    scores = torch.randn(24, 20, generator=torch.Generator().manual_seed(seed))
    counts = np.array([0, 1, 3, 17, 60, 200, 400, 479, 480])
    keep_index = keep_indices(scores, counts, seed)
    live_before = torch.zeros(10)
    for index, sub in enumerate(sweep(pair, prompt, GlobalEdges(keep_index), len(counts))):
        kept = keep_index <= index
        assert kept.sum() == counts[index]
        expected = scorer.pre_acts(pair, prompt, kept)
        torch.testing.assert_close(sub.pre_acts, expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(sub.acts, pair.down.activation.select(sub.pre_acts))
        live = torch.einsum("ti,ij,tj->t", (prompt.z > 0).float(), kept.float(), (sub.acts > 0).float())
        assert torch.equal(sub.live_edges.float(), live)
        live_before = live
    assert live_before.max() > 0


@pytest.mark.parametrize(("kind", "ablation_value"), [("topk", False), ("jumprelu", True)])
@pytest.mark.parametrize("block", BLOCKS[:5])
def test_local_sub_circuits_are_the_obvious_ones(block: str, kind: str, ablation_value: bool):
    pair = tiny_pair(block, kind=kind, ablation_value=ablation_value)
    prompt = one_prompt(pair)
    off = scorer.mean_where_active(pair, prompt)
    effect = effects.at_every_token(pair, prompt)
    assert (effect > 0).any()
    counts = torch.tensor([0, 1, 2, 5, 20, 10**6])
    keep_index = LocalEdges(effect, counts, prompt)._keep_index
    for room in (0, 3 * ORDER_BYTES * effect[0].numel()):  # a token at a time, three at a time
        assert torch.equal(LocalEdges(effect, counts, prompt, room)._keep_index, keep_index)
    for n, sub in zip(counts, sweep(pair, prompt, LocalEdges(effect, counts, prompt), len(counts)), strict=True):
        kept = torch.zeros(10, 24, 20, dtype=torch.bool)
        for t in range(10):
            used = prompt.active.used[t].nonzero()[:, 0]
            order = effect[t, used].flatten().sort(descending=True, stable=True).indices[:n]
            kept[t, prompt.active.latent[t, used[order // 20]], order % 20] = True
        torch.testing.assert_close(sub.pre_acts, scorer.pre_acts(pair, prompt, kept, off), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["relu", "jumprelu"])
@pytest.mark.parametrize("block", ["ff_layer.1", "ff_block.0", "transformer_block.0"])
def test_live_edges_only_grow_where_no_latent_falls_silent(block: str, kind: str):
    """An inhibitor that is joined to a live latent may silence it, and all its edges with it: here none is strong
    enough."""
    pair = tiny_pair(block, kind=kind)
    pair = replace(pair, down=replace(pair.down, b_enc=pair.down.b_enc + 100))
    prompt = one_prompt(pair)
    counts = np.array([0, 5, 60, 200, 479, 480])
    edges = GlobalEdges(keep_indices(torch.rand(24, 20, generator=torch.Generator().manual_seed(0)), counts, 0))
    live = torch.stack([sub.live_edges for sub in sweep(pair, prompt, edges, len(counts))])
    assert (live.diff(dim=0) >= 0).all()
    assert not live[0].any()
    assert torch.equal(live[-1], 20 * (prompt.z > 0).sum(1))


@pytest.mark.parametrize(
    ("kind", "ablation_value"),
    [("topk", False), ("topk", True), ("relu", False), ("jumprelu", True), ("groupmax", False), ("groupmax", True)],
)
@pytest.mark.parametrize("block", BLOCKS)
def test_all_edges_are_the_full_circuit_and_no_edges_the_ablated_one(block: str, ablation_value: bool, kind: str):
    pair = tiny_pair(block, ablation_value=ablation_value, kind=kind)
    counts = np.array([0, 100, pair.n_edges])
    edges = GlobalEdges(keep_indices(torch.rand(24, 20), counts, 0))
    for prompt in read(pair, TOKENS):
        none, _, everything = (sub.acts.clone() for sub in sweep(pair, prompt, edges, 3))
        off = torch.zeros(24) if pair.ablation_value is None else pair.ablation_value
        x = pair.up.decode(off.expand(10, -1)).unsqueeze(0)
        ablated = pair.down.encode(pair.lm.run(pair.block.up, pair.block.down, x, prompt.up_skip))[0]
        torch.testing.assert_close(none, ablated, atol=1e-5, rtol=1e-5)
        authors = next(sweep(pair, prompt, edges, 1, conventions=CONVENTIONS["published"]))
        assert torch.equal(pair.down.decode(authors.acts), pair.down.b_dec.expand(10, -1))
        y = pair.lm.run(pair.block.up, pair.block.down, pair.up.decode(prompt.z).unsqueeze(0), prompt.up_skip)
        full = pair.down.encode(y)[0]
        torch.testing.assert_close(everything, full, atol=1e-5, rtol=1e-5)
        ours, theirs = (pair.log_probs(pair.down.decode(acts).unsqueeze(0), prompt) for acts in (everything, full))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("block", ["ff_block.0", "ff_layer.1"])
def test_the_closed_form_is_the_block_whatever_the_chunk(block: str, monkeypatch: pytest.MonkeyPatch):
    from scalar_sae.scoring.sweep import closed_form, per_token

    pair = tiny_pair(block)
    prompt = one_prompt(pair)
    counts = np.array([0, 30, 200, 400, 480])
    edges = GlobalEdges(keep_indices(torch.rand(24, 20, generator=torch.Generator().manual_seed(0)), counts, 0))
    closed = [sub.pre_acts.clone() for sub in sweep(pair, prompt, edges, 5)]
    monkeypatch.setattr(per_token, "CACHE_BYTES", 600)
    chunked = [sub.pre_acts.clone() for sub in sweep(pair, prompt, edges, 5)]
    monkeypatch.setattr(closed_form, "_last_feed_forward", lambda pair: (None, pair.block.up))
    plain = [sub.pre_acts.clone() for sub in sweep(pair, prompt, edges, 5)]
    torch.testing.assert_close(closed, chunked, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(closed, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", ["ff_layer.1", "attn_in.1->attn_out.1"])
def test_what_passes_beside_a_side_branch_is_the_models_own(block: str):
    pair = tiny_pair(block)
    prompt = one_prompt(pair)
    state = pair.lm.states(TOKENS[:1], [pair.block.down])[pair.block.down]
    x_hat = pair.down.decode(pair.down.encode(state.x))
    spliced = pair.lm.logits_from(pair.block.down, x_hat, state.skip).log_softmax(-1)
    torch.testing.assert_close(pair.log_probs(x_hat, prompt), spliced)


@pytest.mark.parametrize("block", ["ff_block.0", "transformer_block.0"])
def test_a_prompt_with_nothing_live_upstream(block: str):
    pair = tiny_pair(block, kind="jumprelu")
    pair.up.activation.threshold.fill_(100)
    prompt = one_prompt(pair)
    assert not prompt.z.any()
    counts = np.array([0, 40, 480])
    keep_index = keep_indices(torch.rand(24, 20, generator=torch.Generator().manual_seed(1)), counts, 0)
    for index, sub in enumerate(sweep(pair, prompt, GlobalEdges(keep_index), 3)):
        torch.testing.assert_close(
            sub.pre_acts, scorer.pre_acts(pair, prompt, keep_index <= index), atol=2e-5, rtol=1e-4
        )


def test_mean_ablation_sets_latents_to_their_mean():
    pair = tiny_pair("ff_block.0")
    z = torch.cat([prompt.z for prompt in read(pair, TOKENS)])
    torch.testing.assert_close(mean_ablated(pair, TOKENS).ablation_value, z.mean(0))


def test_mismatches_are_named():
    lm = tiny_lm()
    good, wide = random_sae(16, 8, 2, 0), random_sae(12, 8, 2, 0)
    with pytest.raises(UserError, match=r"resid_post.0: the SAE reads 12 dimensions, tiny has 16"):
        Pair(lm, Block.parse("ff_block.0"), good, wide)
    with pytest.raises(UserError, match=r"resid_mid.5: tiny has 2 layers \(0-1\)"):
        Pair(lm, Block.parse("ff_block.5"), good, good)
    block = Block.parse("ff_block.1")
    with pytest.raises(UserError, match=r"no SAE at resid_post.1; there are SAEs at resid_mid.1"):
        Pair.between(lm, block, {block.up: good})


@pytest.mark.parametrize(("end", "site"), [("up", "resid_mid.0"), ("down", "resid_post.0")])
@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_an_sae_that_is_not_finite_is_named(end: str, site: str, name: str):
    pair = tiny_pair("ff_block.0")
    weights = getattr(getattr(pair, end), name).clone()
    weights[0] = torch.nan
    with pytest.raises(UserError, match=f"{site}: {name} of the SAE is not finite"):
        replace(pair, **{end: replace(getattr(pair, end), **{name: weights})})


def test_an_output_that_is_not_finite_is_named():
    pair = tiny_pair("ff_block.0")
    with torch.no_grad():
        pair.lm.hf.transformer.h[1].mlp.c_proj.weight[0] = torch.nan
    config = ScoreConfig(ranking="random", rank_prompts=1, prompts=2, context=10)
    texts = Texts(TOKENS[:1], TOKENS[1:], {})
    with pytest.raises(UserError, match=r"prompt 0: the model's output is not finite"):
        score(pair, texts, config, method="m")
    keep_index = torch.zeros(pair.up.d_sae, pair.down.d_sae, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"prompt 0: the model's output is not finite"):
        chain.curves([pair], [keep_index], 1, texts.scoring, Partial(None, {}))


def test_activations_that_are_not_finite_are_named():
    pair = tiny_pair("ff_block.1")
    pair.lm.hf.transformer.wte.weight[25] = float("nan")
    with pytest.raises(UserError, match=r"resid_mid.1: activations of prompt 2 are not finite"):
        list(read(pair, TOKENS))
