"""Special tokens: the model's own activation stands there at both ends, and they are counted nowhere.

Everything fast against the obvious scorer, with special tokens at the start, in the middle, twice in a row, at the end.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.edges import strongest_edges
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import Rule, Special
from scalar_sae.records.results import Record
from scalar_sae.saes.activation import ReLU
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring import chain
from scalar_sae.scoring.ablation import mean_ablated
from scalar_sae.scoring.compare import ratios
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.conventions import CONVENTIONS
from scalar_sae.scoring.curve import measure
from scalar_sae.scoring.metrics import over_prompts
from scalar_sae.scoring.pair import Pair, Prompt, n_live_edges, read
from scalar_sae.scoring.rankings import effects
from scalar_sae.scoring.rankings.ig import STEPS
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.rankings.registry import rank
from scalar_sae.scoring.resume import Partial
from scalar_sae.scoring.score import score
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import GlobalEdges, LocalEdges
from scalar_sae.scoring.sweep.subcircuits import sweep
from scalar_sae.scoring.texts import Texts
from scalar_sae.sites import Block, Site
from scalar_sae.tokenizer import Ascii
from tests.helpers import random_sae, tiny_lm, tiny_pair
from tests.lm.families import family_lm
from tests.reference import scorer
from tests.scoring.test_subcircuits import BLOCKS
from tests.scoring.test_transcoders import CASES, pair_of

SPECIAL = (0, 4, 5, 9, 14, 15, 16, 30)
TOKENS = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [10, 11, 14, 15, 16, 12, 13, 17, 0, 18]])
"""Special at the start, twice in the middle and at the end; three times in the middle and once near the end."""
ORDINARY = torch.tensor([[1, 2, 3, 6, 7, 8, 10, 11, 12, 13]])
COUNTS = np.array([0, 1, 3, 17, 60, 200, 400, 479, 480])


def special_pair(block: str, **options: object) -> Pair:
    return replace(tiny_pair(block, **options), special=SPECIAL)


def prompts(pair: Pair) -> list[Prompt]:
    return list(read(pair, TOKENS))


def check_sweep(pair: Pair, prompt: Prompt, seed: int) -> None:
    keep_index = keep_indices(torch.randn(24, 20, generator=torch.Generator().manual_seed(seed)), COUNTS, seed)
    there = torch.isin(prompt.tokens[0], torch.tensor(SPECIAL))
    assert not prompt.z[there].any()
    assert not prompt.active.used[there].any()
    for index, sub in enumerate(sweep(pair, prompt, GlobalEdges(keep_index), len(COUNTS))):
        expected = scorer.pre_acts(pair, prompt, keep_index <= index)
        torch.testing.assert_close(sub.pre_acts, expected, atol=2e-5, rtol=1e-4)
        assert not sub.acts[there].any()
        assert not sub.live_edges[there].any()


@given(
    st.sampled_from(BLOCKS),
    st.sampled_from(["gpt2", "llama"]),
    st.sampled_from(["topk", "relu", "jumprelu", "groupmax"]),
    st.booleans(),
    st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=15)
def test_every_sub_circuit_is_the_obvious_one(block: str, family: str, kind: str, ablation_value: bool, seed: int):
    pair = special_pair(block, seed=seed % 1000, kind=kind, ablation_value=ablation_value)
    if family != "gpt2":
        pair = replace(pair, lm=family_lm(family))
    for prompt in prompts(pair):
        check_sweep(pair, prompt, seed)


@pytest.mark.parametrize("case", CASES)
def test_so_it_is_with_transcoders_skip_connections_and_norms(case: str):
    pair = replace(pair_of(case), special=SPECIAL)
    for either in (pair, mean_ablated(pair, TOKENS)):
        check_sweep(either, prompts(either)[0], 3)


@pytest.mark.parametrize("block", BLOCKS[:5])
def test_local_sub_circuits_are_the_obvious_ones(block: str):
    pair = special_pair(block)
    for prompt in prompts(pair):
        effect = effects.at_every_token(pair, prompt)
        assert (effect[prompt.special] <= 0).all()
        counts = torch.tensor([0, 1, 2, 5, 20, 10**6])
        for n, sub in zip(counts, sweep(pair, prompt, LocalEdges(effect, counts, prompt), len(counts)), strict=True):
            kept = torch.zeros(10, 24, 20, dtype=torch.bool)
            for t in range(10):
                used = prompt.active.used[t].nonzero()[:, 0]
                order = effect[t, used].flatten().sort(descending=True, stable=True).indices[:n]
                kept[t, prompt.active.latent[t, used[order // 20]], order % 20] = True
            torch.testing.assert_close(sub.pre_acts, scorer.pre_acts(pair, prompt, kept), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "block", ["ff_layer.1", "ff_block.0", "attn_block.1", "transformer_block.0", "attn_out.0->mlp_out.0"]
)
@pytest.mark.parametrize("special", [SPECIAL, ("first", 4, 9)])
def test_curves_are_means_over_ordinary_tokens_of_the_obvious_divergences(block: str, special: Special):
    pair = replace(special_pair(block), special=special)
    keep_index = keep_indices(torch.randn(24, 20, generator=torch.Generator().manual_seed(1)), COUNTS, 1)
    for prompt in prompts(pair):
        found = measure(
            pair, prompt, GlobalEdges(keep_index), len(COUNTS), True, CONVENTIONS["exact"], Readout.of(pair)
        )
        text = ~torch.isin(prompt.tokens[0], torch.tensor([token for token in special if token != "first"]))
        text[0] &= "first" not in special
        model = pair.lm.logits(prompt.tokens)[0].log_softmax(-1)
        acts = [pair.down.activation.select(scorer.pre_acts(pair, prompt, keep_index <= i)) for i in range(len(COUNTS))]
        outputs = [scorer.splice_site(pair, prompt, one).log_softmax(-1) for one in acts]
        for p, curve in ((model, found.kl_model), (outputs[-1], found.kl_circuit)):
            kl = torch.stack([(p.exp() * (p - q)).sum(-1)[text].mean() for q in outputs])
            np.testing.assert_allclose(curve[:, 0], kl, rtol=1e-3, atol=1e-5)
        l0 = [(one[text] > 0).sum(-1).float().mean() for one in acts]
        np.testing.assert_allclose(found.l0_down[:, 0], l0, rtol=1e-5)
        both = [((prompt.z > 0).float(), (keep_index <= i).float(), (one > 0).float()) for i, one in enumerate(acts)]
        live = [torch.einsum("ti,ij,tj->t", *parts)[text].mean() for parts in both]
        np.testing.assert_allclose(found.live_edges[:, 0], live, rtol=1e-5)
        target = prompt.tokens[0, 1:, None]
        rise = (model - outputs[-1])[:-1].gather(1, target)[:, 0][text[1:]].mean()
        assert found.floor_ce[0] == pytest.approx(rise.item(), abs=1e-5)
        assert found.floor_kl[0] == pytest.approx(found.kl_model[-1, 0], abs=1e-5)
        assert (found.n_tokens[0], found.n_targets[0]) == (text.sum(), text[1:].sum())


@pytest.mark.parametrize("block", BLOCKS)
def test_the_models_own_activation_stands_at_both_ends_to_the_bit(block: str):
    pair = special_pair(block, ablation_value=True)
    for prompt in prompts(pair):
        there = torch.isin(prompt.tokens[0], torch.tensor(SPECIAL))
        own = pair.lm.activations(prompt.tokens, [pair.block.up, pair.block.down])
        for x in (pair.reconstruct(prompt.z, prompt), pair.base(prompt)):
            assert torch.equal(x[there], own[pair.block.up][0, there])
            assert not torch.equal(x[~there], own[pair.block.up][0, ~there])
        acts = torch.rand(3, 10, 20, generator=torch.Generator().manual_seed(0))
        assert all(torch.equal(x[there], own[pair.block.down][0, there]) for x in pair.decoded(acts, prompt))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_prompt_of_special_tokens_alone_is_the_model_itself(block: str, family: str):
    pair = replace(tiny_pair(block), lm=family_lm(family), special=tuple(range(32)))
    (prompt,) = read(pair, ORDINARY)
    x = pair.decoded(torch.rand(1, 10, 20, generator=torch.Generator().manual_seed(0)), prompt)
    skip = pair.lm.states(ORDINARY, [pair.splice_site])[pair.splice_site].skip
    assert torch.equal(pair.lm.logits_from(pair.splice_site, x, skip), pair.lm.logits(ORDINARY))
    found = measure(
        pair, prompt, GlobalEdges(torch.zeros(24, 20).byte()), 1, True, CONVENTIONS["exact"], Readout.of(pair)
    )
    assert (found.n_tokens[0], found.n_targets[0], found.kl_model[0, 0], found.live_edges[0, 0]) == (0, 0, 0, 0)


@pytest.mark.parametrize("block", ["ff_layer.0", "ff_block.1", "attn_block.0", "transformer_block.1"])
@pytest.mark.parametrize("ablation_value", [False, True])
def test_rankings_are_the_obvious_ones(block: str, ablation_value: bool):
    pair = special_pair(block, n_up=10, n_down=8, k=2, ablation_value=ablation_value)
    n = int((~torch.isin(TOKENS, torch.tensor(SPECIAL))).sum())
    alphas = (torch.arange(STEPS) + 0.5) / STEPS
    obvious = {
        "leave_one_out": [scorer.leave_one_out(pair, prompt) for prompt in prompts(pair)],
        "ig": [scorer.path_gradient(pair, prompt, alphas) for prompt in prompts(pair)],
    }
    if not ablation_value:
        obvious["published"] = [scorer.published_attribution(pair, prompt) for prompt in prompts(pair)]
    for name, squares in obvious.items():
        expected = torch.stack(squares).sum(0).div(n).sqrt()
        torch.testing.assert_close(rank(pair, TOKENS, name, 0), expected, atol=1e-5, rtol=1e-3)
        assert (expected > 0).any()


@pytest.mark.parametrize("block", ["ff_block.1", "transformer_block.1"])
def test_random_orders_leave_special_tokens_out(block: str):
    pair = special_pair(block)
    prompt = prompts(pair)[1]
    _, effect = effects.of_random_orders(pair, prompt, slice(0, 20), 3, torch.Generator().manual_seed(0))
    assert not effect[:, prompt.special].any()
    assert effect[:, ~prompt.special].any()


def test_fisher_information_is_of_what_is_predicted_at_ordinary_tokens():
    """With nothing but the last token ordinary, an earlier latent is felt there and nowhere else."""
    pair = replace(tiny_pair("ff_block.0"), special=(0,))
    (prompt,) = read(pair, torch.tensor([[1, 0, 0, 2]]))
    found = effects.fisher(pair, prompt, 2_000, torch.Generator().manual_seed(0))
    full = pair.decoded(pair.full_circuit(prompt), prompt).unsqueeze(0).requires_grad_()
    log_probs = pair.log_probs(full, prompt)[0]
    expected = torch.zeros(20)
    for place in (0, 3):
        for label in range(32):
            (gradient,) = torch.autograd.grad(log_probs[place, label], full, retain_graph=True)
            expected += log_probs[place, label].exp().detach() * (pair.down.W_dec @ gradient[0, 0]).square()
    torch.testing.assert_close(found[0], expected, rtol=0.15, atol=1e-3)


def test_means_are_over_ordinary_tokens():
    pair = special_pair("ff_block.0")
    z = torch.cat([prompt.z[~prompt.special] for prompt in prompts(pair)])
    torch.testing.assert_close(mean_ablated(pair, TOKENS).ablation_value, z.mean(0))
    active = [pair.full_circuit(prompt)[~prompt.special] > 0 for prompt in prompts(pair)]
    assert n_live_edges(pair, TOKENS) == (z > 0).any(0).sum() * torch.cat(active).any(0).sum()


def test_a_chain_keeps_the_models_own_activation_at_every_site():
    sites = [Site("resid_pre", 0), Site("resid_mid", 0), Site("resid_post", 1)]
    saes = {
        site: random_sae(16, width, 4, seed) for seed, (site, width) in enumerate(zip(sites, (24, 20, 24), strict=True))
    }
    pairs = chain.chain(tiny_lm(), saes, sites, SPECIAL)
    g = torch.Generator().manual_seed(0)
    counts = np.array([0, 30, 200, 480])
    keep_index = chain.same_budget(
        [torch.rand(pair.up.d_sae, pair.down.d_sae, generator=g) for pair in pairs], counts, 0
    )
    found = chain.curves(pairs, keep_index, len(counts), TOKENS, Partial(None, {}))
    for number, tokens in enumerate(TOKENS.split(1)):
        text = ~torch.isin(tokens[0], torch.tensor(SPECIAL))
        model = pairs[0].lm.logits(tokens)[0].log_softmax(-1)
        for index in range(len(counts)):
            z = next(read(pairs[0], tokens)).z
            for pair, one in zip(pairs, keep_index, strict=True):
                (seen,) = read(pair, tokens)
                z = pair.down.activation.select(scorer.pre_acts(pair, replace(seen, z=z), one <= index))
            log_probs = scorer.splice_site(pairs[-1], seen, z).log_softmax(-1)
            kl = (model.exp() * (model - log_probs)).sum(-1)[text].mean()
            assert found.kl_model[index, number] == pytest.approx(kl.item(), rel=1e-3, abs=1e-5)
            l0 = (z[text] > 0).sum(-1).float().mean()
            assert found.l0_down[index, number] == pytest.approx(l0.item())
    assert found.n_tokens.tolist() == [6, 6]


def scored(pair: Pair, texts: Texts, ranking: str = "leave_one_out_with_prior", **options: object) -> Record:
    config = ScoreConfig(ranking=ranking, rank_prompts=2, prompts=2, context=10, **options)
    return score(pair, texts, config, method="m")


@pytest.mark.parametrize("ranking", ["leave_one_out_with_prior", "fisher", "local", "published"])
@pytest.mark.parametrize("block", ["ff_block.0", "transformer_block.0"])
def test_without_special_tokens_in_the_text_nothing_changes_to_the_bit(block: str, ranking: str):
    texts = Texts(ORDINARY + 1, ORDINARY.expand(3, -1) + torch.arange(3)[:, None], {})
    both = [scored(tiny_pair(block), texts, ranking, special=rule) for rule in ((0, 30), "count")]
    assert both[0].special == [0, 30]
    assert both[0].n_special == both[1].n_special == 0
    unlike = {"special", "config", "seconds"}
    assert both[0].model_dump(exclude=unlike) == both[1].model_dump(exclude=unlike)


@pytest.mark.parametrize("ranking", ["leave_one_out_with_prior", "local"])
def test_the_first_token_is_treated_as_a_special_token_is(ranking: str):
    """Every prompt begins with a token that occurs nowhere else: `first` is the rule that names this token."""
    texts = Texts(ORDINARY + 1, ORDINARY.expand(3, -1) + torch.arange(3)[:, None] + 1, {})
    for tokens in (texts.ranking, texts.scoring):
        tokens[:, 0] = 31
    rules: list[Rule] = [("first",), (31,), "count"]
    by_place, by_id, every = (
        scored(tiny_pair("transformer_block.0"), texts, ranking, special=rule, edges="1,20,480") for rule in rules
    )
    assert (by_place.special, by_place.n_special, by_place.n_tokens) == (["first"], 3, 27)
    unlike = {"special", "config", "seconds"}
    assert by_place.model_dump(exclude=unlike) == by_id.model_dump(exclude=unlike)
    assert by_place.kl_model != every.kl_model


def test_the_record_says_what_was_left_out_and_weighs_prompts_by_what_was_not():
    few = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 1, 2, 3]])
    texts = Texts(TOKENS, torch.cat([TOKENS, few]), {})
    record = scored(tiny_pair("ff_block.0"), texts, special=SPECIAL)
    assert (record.n_tokens, record.n_special, record.special) == (15, 15, list(SPECIAL))
    assert record.prompts.n_tokens == [6, 6, 3]
    assert record.prompts.n_targets == [6, 5, 3]
    assert record.floor.kl == pytest.approx(np.dot(record.prompts.floor_kl, [6, 6, 3]) / 15, rel=1e-6)
    assert record.floor.ce_increase == pytest.approx(np.dot(record.prompts.floor_ce, [6, 5, 3]) / 14, rel=1e-6)
    assert record.kl_model[2] == pytest.approx(np.dot(record.prompts.kl_model[2], [6, 6, 3]) / 15, rel=1e-6)


def test_a_mean_over_equal_prompts_is_the_plain_mean_to_the_bit():
    curve = np.random.default_rng(0).random((7, 11))
    draws = np.random.default_rng(1).integers(11, size=(50, 11))
    assert np.array_equal(over_prompts(curve, np.full(11, 127.0), draws), [row[draws].mean(-1) for row in curve])


def test_prompts_of_special_tokens_alone_are_no_prompts():
    texts = Texts(TOKENS, TOKENS, {})
    more = Texts(TOKENS, torch.cat([TOKENS[:1], torch.full((1, 10), 30), TOKENS[1:]]), {})
    found, with_more = (scored(tiny_pair("ff_block.0"), text, special=SPECIAL) for text in (texts, more))
    assert with_more.n_special == found.n_special + 10
    unlike = {"seconds", "n_special", "config"}  # the config holds the number of prompts
    assert with_more.model_dump(exclude=unlike) == found.model_dump(exclude=unlike)


@pytest.mark.parametrize("what", ["rank", "score"])
def test_text_of_special_tokens_alone_is_refused(what: str):
    nothing = torch.full((2, 10), 30)
    texts = Texts(nothing, TOKENS, {}) if what == "rank" else Texts(TOKENS, nothing, {})
    with pytest.raises(UserError, match=f"text to {what} on: nothing but special tokens"):
        scored(tiny_pair("ff_block.0"), texts, special=SPECIAL)


def test_the_authors_conventions_count_every_token():
    assert ScoreConfig(conventions="published").special == "count"
    with pytest.raises(ValueError, match="the published conventions count every token"):
        ScoreConfig(conventions="published", special="skip")


def test_records_under_different_rules_do_not_compare():
    texts = Texts(TOKENS, TOKENS, {"fingerprint": "f", "scored_on": "s"})
    skipped, counted = (scored(tiny_pair("ff_block.0"), texts, special=rule) for rule in (SPECIAL, "count"))
    with pytest.raises(UserError, match="with none left out do not compare"):
        ratios([skipped, counted.model_copy(update={"method": "n"})], "m")
    assert ratios([skipped, skipped.model_copy(update={"method": "n"})], "m", "log_area").rows[0].value == 1


def test_special_tokens_hold_no_strongest_edges():
    """All tokens but the last two of each prompt special: the edges are those of a ranking on what is left."""
    lm, saes = (
        tiny_lm(),
        {Site("resid_mid", 0): random_sae(16, 24, 4, 0), Site("resid_post", 0): random_sae(16, 20, 4, 1)},
    )
    tables = strongest_edges(lm, saes, TOKENS, special=SPECIAL)
    up, down = saes.values()
    pair = Pair(lm, Block.parse("ff_block.0"), up, down, special=SPECIAL)
    expected = rank(pair, TOKENS, "leave_one_out", 0)
    for row in tables[Site("resid_mid", 0)].to_pylist():
        assert row["score"] == pytest.approx(expected[row["latent"], row["other"]].item())
    assert not torch.equal(expected, rank(replace(pair, special=()), TOKENS, "leave_one_out", 0))


def sink_lm(by_place: bool) -> LanguageModel:
    """A GPT-2 whose heads attend to one token alone, as long as its activation is what it should be: to token 0, or to
    the first one of a prompt, whatever it is.
    """
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=3, n_head=1, n_positions=32, tie_word_embeddings=False,
        initializer_range=0.15, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config)
    with torch.no_grad():
        hf.transformer.wte.weight[:, 0] = hf.transformer.wpe.weight[:, 0] = 0
        (hf.transformer.wpe if by_place else hf.transformer.wte).weight[0] = 0
        (hf.transformer.wpe if by_place else hf.transformer.wte).weight[0, 0] = 60.0  # one massive dimension
        for block in hf.transformer.h:
            block.attn.c_attn.bias[0] = 8.0  # every query asks for it,
            block.attn.c_attn.weight[:, 32] = 0
            block.attn.c_attn.weight[0, 32] = 8.0  # and only the massive dimension makes that key
            block.attn.c_proj.weight[:, 0] = block.mlp.c_proj.weight[:, 0] = 0
        hf.lm_head.weight.mul_(3)
    return LanguageModel(hf, "sink", Ascii())


@pytest.mark.parametrize("rule", [(0,), "first"])
def test_a_broken_attention_sink_is_no_fault_of_the_saes_elsewhere(rule: Rule):
    """SAEs that reconstruct every token but the first exactly: they cost nothing, unless the sink is replaced too."""
    lm = sink_lm(rule == "first")
    both = torch.cat([torch.eye(32)[1:], -torch.eye(32)[1:]])  # all but the massive dimension
    sae = SAE(both.T.contiguous(), torch.zeros(62), both, torch.zeros(32), ReLU())
    pair = Pair(lm, Block.parse("ff_block.0"), sae, sae)
    g = torch.Generator().manual_seed(1)
    first = torch.zeros(4, 1, dtype=torch.long) if rule != "first" else torch.tensor([[3], [9], [3], [20]])
    texts = Texts(*(torch.cat([first, torch.randint(1, 64, (4, 15), generator=g)], 1) for _ in range(2)), {})
    skipped, counted = (scored(pair, texts, special=rule, edges="coarse") for rule in (rule, "count"))
    assert skipped.floor.kl < 1e-5
    assert counted.floor.kl > 0.5
