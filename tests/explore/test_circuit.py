"""Circuits by hand against the model's own forward through hooks, the obvious scorer, and the curve of a record."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

import scalar_sae as ss
from scalar_sae.errors import UserError
from scalar_sae.scoring.pair import Pair, read
from tests.helpers import moved, random_sae, tiny_lm, tiny_pair
from tests.lm.families import PARALLEL, family_lm
from tests.reference import hooked, scorer
from tests.reference.scalar import run

BLOCKS = ["ff_block.0", "ff_layer.1", "attn_block.1", "transformer_block.0", "resid_mid.0->resid_post.1"]
TOKENS = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(0))
CLOSE = {"atol": 2e-4, "rtol": 2e-4}


def some_edges(pair: Pair, share: float = 0.3, seed: int = 0) -> torch.Tensor:
    return torch.rand(pair.up.d_sae, pair.down.d_sae, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("special", [(), (int(TOKENS[0, 0]), int(TOKENS[0, 4]))], ids=["text", "special"])
@pytest.mark.parametrize("mean", [False, True], ids=["zero", "mean"])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_spliced_circuit_gives_the_logits_of_the_hooked_model(block: str, mean: bool, special: tuple[int, ...]):
    pair = replace(tiny_pair(block, ablation_value=mean), special=special)
    kept = some_edges(pair)
    kept[:, 3] = False  # a latent without edges
    with ss.Circuit(pair, kept).spliced() as lm:
        found = lm.logits(TOKENS)
    for row, prompt in zip(found, read(pair, TOKENS), strict=True):
        torch.testing.assert_close(row, hooked.circuit_logits(pair, prompt, kept), **CLOSE)


@pytest.mark.parametrize("name", ["llama", "gemma2", *PARALLEL[:1]])
@pytest.mark.parametrize("block", ["ff_layer.1", "transformer_block.0"])
def test_a_spliced_circuit_gives_the_logits_of_the_obvious_scorer_in_other_families(name: str, block: str):
    ends = random_sae(16, 24, 4, 1), random_sae(16, 20, 4, 2)
    pair = Pair(family_lm(name), ss.Block.parse(block), *ends)
    kept, tokens = some_edges(pair), torch.arange(2, 11).view(1, 9)
    (prompt,) = read(pair, tokens)
    acts = pair.down.activation.select(scorer.pre_acts(pair, prompt, kept))
    found = ss.Circuit(pair, kept).logits(tokens)
    torch.testing.assert_close(found[0], scorer.splice_site(pair, prompt, acts), **CLOSE)


@pytest.mark.parametrize("block", BLOCKS)
def test_removing_an_edge_or_a_latent_changes_the_logits_as_in_the_hooked_model(block: str):
    pair = tiny_pair(block)
    (prompt,) = read(pair, TOKENS[:1])
    full = ss.Circuit.full(pair)
    live_up, live_down = (int(acts.sum(0).argmax()) for acts in (prompt.z, pair.full_circuit(prompt)))
    for removed in ({"edges": [(live_up, live_down)]}, {"up": [live_up]}, {"down": [live_down]}):
        kept = torch.ones(pair.up.d_sae, pair.down.d_sae, dtype=torch.bool)
        for i, j in removed.get("edges", []):
            kept[i, j] = False
        kept[removed.get("up", [])] = False
        kept[:, removed.get("down", [])] = False
        before = hooked.circuit_logits(pair, prompt, torch.ones_like(kept))
        after = hooked.circuit_logits(pair, prompt, kept)
        assert (after - before).abs().max() > 1e-3  # the removal is felt
        for position in (-1, 4):
            rows = full.logit_changes(full.without(**removed), TOKENS[:1], position, n=32)
            assert sorted(row["token"] for row in rows) == list(range(32))
            felt = [abs(row["p_other"] - row["p"]) for row in rows]
            assert felt == sorted(felt, reverse=True)
            for row in rows:
                ends = [logits[position] - logits[position].mean() for logits in (before, after)]
                expected = [float(end[row["token"]]) for end in ends]
                assert [row["logit"], row["logit_other"]] == pytest.approx(expected, abs=5e-4)
                assert row["change"] == pytest.approx(expected[1] - expected[0], abs=5e-4)
                assert row["p_other"] == pytest.approx(float(after[position].softmax(-1)[row["token"]]), abs=1e-4)


@pytest.mark.parametrize("block", ["ff_block.0", "transformer_block.0"])
def test_what_a_circuit_carries_is_measured_as_by_hand(block: str):
    pair = replace(tiny_pair(block), special=(int(TOKENS[1, 0]),))
    kept, sums = some_edges(pair), np.zeros(4)
    for prompt in read(pair, TOKENS):
        text = ~scorer.special(pair, prompt)
        own = pair.lm.hf(prompt.tokens, use_cache=False).logits[0].log_softmax(-1)
        full, some, none = (
            hooked.circuit_logits(pair, prompt, edges).log_softmax(-1)
            for edges in (torch.ones_like(kept), kept, torch.zeros_like(kept))
        )
        pairs = ((own, some), (full, some), (full, none), (own, full))
        sums += [float((p.exp() * (p - q)).sum(-1)[text].sum()) for p, q in pairs]
    kl_model, kl_circuit, kl_nothing, floor = sums / int((~torch.isin(TOKENS, torch.tensor(pair.special))).sum())
    found = ss.Circuit(pair, kept).measure(TOKENS)
    assert found.edges == int(kept.sum())
    assert found.kl_model == pytest.approx(kl_model, rel=1e-3)
    assert found.kl_circuit == pytest.approx(kl_circuit, rel=1e-3)
    assert found.recovery == pytest.approx(1 - kl_circuit / kl_nothing, rel=1e-3)
    assert found.floor_kl == pytest.approx(floor, rel=1e-3)


def test_outside_the_block_the_model_is_its_own_again_also_after_an_error():
    pair = tiny_pair("ff_block.0")
    own, circuit = pair.lm.logits(TOKENS), ss.Circuit.full(pair).without(up=[0])
    with circuit.spliced() as lm:
        assert lm is pair.lm
        assert not torch.allclose(lm.logits(TOKENS), own, atol=1e-2)
    with pytest.raises(UserError, match="token 32"), circuit.spliced() as lm:
        lm.logits(TOKENS.clamp(min=32))
    assert torch.equal(pair.lm.logits(TOKENS), own)


def test_a_spliced_model_shows_the_activations_behind_the_splice():
    pair = tiny_pair("ff_block.0")
    with ss.Circuit.full(pair).without(up=range(12)).spliced() as lm:
        sites = ["resid_pre.0", "resid_mid.0", "resid_post.0", "resid_pre.1", "mlp_out.1"]
        found, logits = lm.activations(TOKENS, sites), lm.logits(TOKENS)
    own = pair.lm.activations(TOKENS, sites)
    assert list(found) == sites
    for site in ("resid_pre.0", "resid_mid.0"):
        assert torch.equal(found[site], own[site])
    assert torch.equal(found["resid_post.0"], found["resid_pre.1"])
    assert not torch.allclose(found["resid_post.0"], own["resid_post.0"], atol=1e-2)
    with torch.no_grad():
        expected, seen = run(pair.lm.hf, TOKENS, {("resid_post", 0): found["resid_post.0"]}, len(TOKENS))
    torch.testing.assert_close(seen["mlp_out", 1], found["mlp_out.1"], **CLOSE)
    torch.testing.assert_close(expected, logits, **CLOSE)


@pytest.mark.parametrize("name", PARALLEL[:2])
def test_a_branch_beside_the_splice_stays_the_models_own(name: str):
    lm, tokens = family_lm(name), torch.arange(2, 11).view(1, 9)
    sites = ["mlp_out.0", "resid_post.0", "mlp_out.1"]
    own = lm.activations(tokens, ["attn_out.0", *sites])
    shift = torch.randn(16, generator=torch.Generator().manual_seed(0))
    x = own["attn_out.0"] + shift
    with lm.spliced_by("attn_out.0", lambda tokens: x):
        found = lm.activations(tokens, sites)
    assert torch.equal(found["mlp_out.0"], own["mlp_out.0"])
    torch.testing.assert_close(found["resid_post.0"], own["resid_post.0"] + shift, **CLOSE)
    assert not torch.allclose(found["mlp_out.1"], own["mlp_out.1"], atol=1e-2)


def test_a_circuit_of_a_model_in_half_precision_is_that_of_its_float32_block():
    pair = tiny_pair("ff_block.0")
    half = replace(pair, lm=ss.LanguageModel(deepcopy(pair.lm.hf).bfloat16(), "half", pair.lm.tokenizer))
    (prompt,) = read(half, TOKENS[:1])
    kept = some_edges(pair)
    acts = half.down.activation.select(scorer.pre_acts(half, prompt, kept))
    found = ss.Circuit(half, kept).logits(TOKENS[:1])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0], scorer.splice_site(half, prompt, acts), atol=0.05, rtol=0.05)


def test_a_circuit_on_a_device_gives_the_logits_of_the_cpu(device: torch.device):
    pair = tiny_pair("transformer_block.0")
    kept = some_edges(pair)
    there = ss.Circuit(moved(pair, device), kept.to(device))
    for tokens in (TOKENS, TOKENS.to(device)):
        torch.testing.assert_close(there.logits(tokens).cpu(), ss.Circuit(pair, kept).logits(TOKENS), **CLOSE)
    expected = ss.Circuit(pair, kept).measure(TOKENS).model_dump(exclude_none=True)
    assert there.measure(TOKENS).model_dump(exclude_none=True) == pytest.approx(expected, rel=1e-3)


def test_a_second_splice_and_a_call_past_the_first_are_refused():
    pair = tiny_pair("ff_block.0")
    with ss.Circuit.full(pair).spliced() as lm:
        with pytest.raises(UserError, match=r"spliced into tiny already, at resid_post\.0"):
            ss.Circuit.full(pair).logits(TOKENS)
        with pytest.raises(UserError, match="computes without what is spliced in"):
            lm.hf(TOKENS)
    pair.lm.hf(TOKENS)


def test_edges_and_latents_that_a_pair_does_not_have_are_refused():
    pair = tiny_pair("ff_block.0")  # 24 x 20
    full = ss.Circuit.full(pair)
    for wrong in ({"edges": [(24, 0)]}, {"edges": [(0, 20)]}, {"up": [-1]}, {"down": [20]}):
        with pytest.raises(UserError, match="latents"):
            full.without(**wrong)
    with pytest.raises(UserError, match="upstream latent 24"):
        ss.Circuit.of(pair, [(24, 0)])
    with pytest.raises(UserError, match="the pair needs"):
        ss.Circuit(pair, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(UserError, match="position 9"):
        full.logit_changes(full, TOKENS[:1], position=9)
    with pytest.raises(UserError, match="2 prompts"):
        full.logit_changes(full, TOKENS)
    with pytest.raises(UserError, match="one pair"):
        full.logit_changes(ss.Circuit.full(tiny_pair("ff_block.0")), TOKENS[:1])


def test_edges_are_counted_and_named():
    pair = tiny_pair("ff_block.0")
    circuit = ss.Circuit.of(pair, [(0, 1), (2, 3), (2, 3)])
    assert circuit.n_edges == 2
    assert circuit.without(edges=[(2, 3), (5, 5)]).kept.nonzero().tolist() == [[0, 1]]
    assert repr(circuit) == "Circuit(ff_block.0: 2 of 480 edges)"


def test_a_text_is_as_good_as_its_tokens():
    lm = tiny_lm(d_vocab=128)
    pair = Pair(lm, ss.Block.parse("ff_block.0"), random_sae(16, 24, 4, 1), random_sae(16, 20, 4, 2))
    circuit = ss.Circuit.full(pair)
    assert torch.equal(circuit.logits("def f("), circuit.logits(torch.tensor([list(b"def f(")], dtype=torch.uint8)))
