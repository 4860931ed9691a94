"""The questions about one prompt against the obvious scorer, one masked pass after the other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import scalar_sae as ss
from scalar_sae.errors import UserError
from scalar_sae.scoring import chain
from scalar_sae.scoring.pair import Pair, Prompt, read, with_site_mean
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.resume import Partial
from tests.helpers import random_sae, tiny_lm, tiny_pair
from tests.reference import scorer

TOKENS = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(0))
BLOCKS = ["ff_block.0", "attn_block.1", "transformer_block.0", "resid_mid.0->resid_post.1"]
POSITION = 5
TEXT = TOKENS[:1, :5]


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) from logits."""
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def effects(pair: Pair, prompt: Prompt, position: int) -> dict[tuple[int, int, int], float]:
    """Activation at a token with each edge from each source, less activation without it."""
    rule, off = pair.down.activation, pair.ablation_value
    p = scorer.downstream(pair, prompt, scorer.upstream(pair, prompt, prompt.z.unsqueeze(0)))[0, position]
    found: dict[tuple[int, int, int], float] = {}
    for s, i in prompt.z.nonzero().tolist():
        z = prompt.z.clone()
        z[s, i] = 0 if off is None else off[i]
        changed = scorer.downstream(pair, prompt, scorer.upstream(pair, prompt, z.unsqueeze(0)))[0, position]
        alone = p.repeat(pair.down.d_sae, 1)  # row j: latent j alone is changed
        alone.fill_diagonal_(0).diagonal().add_(changed)
        change = rule.select(p) - rule.select(alone).diagonal()
        found |= {(s, i, j): effect for j, effect in enumerate(change.tolist())}
    return found


@pytest.mark.parametrize("special", [(), (int(TOKENS[0, 0]), int(TOKENS[0, 4]))], ids=["zero", "mean-special"])
@pytest.mark.parametrize("block", ["ff_block.0", "transformer_block.0"])
def test_local_edges_are_those_of_one_masked_pass_an_edge(block: str, special: tuple[int, ...]):
    pair = replace(tiny_pair(block, ablation_value=bool(special)), special=special)
    prompt = next(read(pair, TOKENS))
    expected = effects(pair, prompt, POSITION)
    found = ss.Journey(pair, TOKENS[:1]).edges(POSITION, n=5000)
    assert found.n_edges == len(found.edges) > 10
    assert any(edge.source < POSITION for edge in found.edges) == pair.block.mixes_tokens
    norms, full = pair.down.W_dec.norm(dim=1), scorer_full(pair, prompt)
    listed = {(edge.source, edge.up, edge.down): edge for edge in found.edges}
    assert len(listed) == found.n_edges
    for edge, effect in expected.items():
        if edge in listed:
            assert listed[edge].effect == pytest.approx(effect, abs=1e-4)
        else:
            assert effect == pytest.approx(0, abs=1e-5)
    for (s, i, j), edge in listed.items():
        assert edge.size == pytest.approx(abs(expected[s, i, j]) * float(norms[j]), abs=2e-4)
        assert edge.up_activation == pytest.approx(float(prompt.z[s, i]))
        assert edge.down_activation == pytest.approx(float(full[POSITION, j]), abs=1e-4)
    sizes = [edge.size for edge in found.edges]
    assert sizes == sorted(sizes, reverse=True)
    assert found.total_size == pytest.approx(sum(sizes))
    few = ss.Journey(pair, TOKENS[:1]).edges(POSITION, n=3)
    assert few.edges == found.edges[:3]
    assert few.n_edges == found.n_edges


def scorer_full(pair: Pair, prompt: Prompt) -> Tensor:
    kept = torch.ones(pair.up.d_sae, pair.down.d_sae, dtype=torch.bool)
    return pair.down.activation.select(scorer.pre_acts(pair, prompt, kept))


@pytest.mark.parametrize(("block", "mean"), [(BLOCKS[0], True), *((block, False) for block in BLOCKS[1:])])
def test_a_local_curve_keeps_the_strongest_edges_of_a_token(block: str, mean: bool):
    pair = tiny_pair(block, ablation_value=mean)
    prompt = next(read(pair, TOKENS))
    journey = ss.Journey(pair, TOKENS[:1])
    order = journey.edges(POSITION, n=5000).edges
    curve = journey.curve(POSITION, counts=[3, 12, len(order)])
    sources = range(POSITION + 1) if pair.block.mixes_tokens else [POSITION]
    n_all = pair.down.d_sae * int((prompt.z[sources] > 0).sum())
    assert curve.edges == (0, 3, 12, len(order), n_all)
    own, full = pair.lm.logits(TOKENS[:1])[0], scorer_full(pair, prompt)
    of_full = scorer.splice_site(pair, prompt, full)
    off = torch.where(prompt.z > 0, torch.zeros(24) if pair.ablation_value is None else pair.ablation_value, 0.0)
    for n, kl_model, kl_circuit in zip(curve.edges, curve.kl_model, curve.kl_circuit, strict=True):
        acts = full.clone()
        if n < n_all:
            z = off.repeat(pair.down.d_sae, 1, 1)  # latent, token, n_up
            for edge in order[:n]:
                z[edge.down, edge.source, edge.up] = prompt.z[edge.source, edge.up]
            p = scorer.downstream(pair, prompt, scorer.upstream(pair, prompt, z))[:, POSITION].diagonal()
            acts[POSITION] = pair.down.activation.select(p)
        spliced = scorer.splice_site(pair, prompt, acts)
        assert kl_model == pytest.approx(float(kl(own, spliced)[POSITION]), rel=2e-3, abs=1e-5)
        assert kl_circuit == pytest.approx(float(kl(of_full, spliced)[POSITION]), rel=2e-3, abs=1e-5)
    assert curve.recovery[0] == 0
    assert curve.recovery[-1] == pytest.approx(1)
    assert journey.curve(POSITION).edges[:4] == (0, 1, 2, 5)


@pytest.mark.parametrize("special", [(), (int(TOKENS[0, 0]),)], ids=["text", "special"])
@pytest.mark.parametrize("block", ["ff_layer.1", "transformer_block.0"])
def test_what_a_latent_adds_to_the_prediction_is_the_difference_without_it(block: str, special: tuple[int, ...]):
    pair = replace(tiny_pair(block), special=special)
    prompt = next(read(pair, TOKENS))
    full = scorer_full(pair, prompt)
    found = ss.Journey(pair, TOKENS[:1]).outputs(POSITION, n=4)
    before = scorer.splice_site(pair, prompt, full)[POSITION]
    assert [row.token for row in found.predicted] == before.argsort(descending=True)[:4].tolist()
    assert {row.latent for row in found.latents} == set(full[POSITION].nonzero()[:, 0].tolist())
    for row in found.latents:
        acts = full.clone()
        acts[POSITION, row.latent] = 0
        after = scorer.splice_site(pair, prompt, acts)[POSITION]
        assert row.activation == pytest.approx(float(full[POSITION, row.latent]), abs=1e-4)
        assert row.kl == pytest.approx(float(kl(before, after)), rel=2e-3, abs=1e-5)
        for token, change in zip(found.predicted, row.logits, strict=True):
            expected = (before - before.mean() - after + after.mean())[token.token]
            assert change == pytest.approx(float(expected), abs=5e-4)
    assert [row.kl for row in found.latents] == sorted((row.kl for row in found.latents), reverse=True)
    assert len(found.table()) == len(found.latents)


@pytest.mark.parametrize("block", ["ff_block.0", "transformer_block.0"])
def test_a_prompt_is_measured_as_a_text_of_one_prompt_and_as_its_tokens(block: str):
    pair = with_site_mean(replace(tiny_pair(block), special=(int(TEXT[0, 3]),)), TOKENS)
    kept = torch.rand(pair.up.d_sae, pair.down.d_sae, generator=torch.Generator().manual_seed(0)) < 0.4
    circuit, journey = ss.Circuit(pair, kept), ss.Journey(pair, TEXT)
    found = journey.measure(circuit)
    assert found == circuit.measure(TEXT)
    text = [n for n in range(5) if int(TEXT[0, n]) not in pair.special]
    at = [journey.measure(circuit, position) for position in text]
    for name in ("kl_model", "kl_circuit", "live_edges", "l0_down", "floor_kl"):
        assert getattr(found, name) == pytest.approx(np.mean([getattr(one, name) for one in at]), rel=1e-5)
    prompt, mean = next(read(pair, TEXT)), pair.site_mean
    own = pair.lm.logits(TEXT)[0]
    x = torch.where(scorer.special(pair, prompt).unsqueeze(-1), prompt.x_spliced[0], mean)
    of_mean = kl(own, pair.lm.logits_from(pair.splice_site, x.unsqueeze(0), prompt.down_skip)[0])[text].mean()
    assert found.faithfulness == pytest.approx(1 - found.kl_model / float(of_mean), rel=1e-4)
    assert ss.Journey(tiny_pair(block), TEXT).measure().faithfulness is None
    whole = journey.measure()
    assert whole.edges == pair.n_edges
    assert whole.recovery == pytest.approx(1)
    assert whole.kl_model == pytest.approx(whole.floor_kl)
    assert journey.measure(ss.Circuit.of(pair, [])).recovery == pytest.approx(0)


def test_a_chain_is_measured_as_on_the_curve_of_its_record():
    sites = [ss.Site("resid_pre", 0), ss.Site("resid_mid", 0), ss.Site("resid_post", 1)]
    saes = {s: random_sae(16, width, 4, seed) for seed, (s, width) in enumerate(zip(sites, (24, 20, 24), strict=True))}
    pairs = chain.chain(tiny_lm(), saes, sites)
    g, counts = torch.Generator().manual_seed(0), np.array([0, 150])
    levels = [keep_indices(torch.rand(p.up.d_sae, p.down.d_sae, generator=g), counts, 0) for p in pairs]
    expected = chain.curves(pairs, levels, 2, TOKENS, Partial(None, {}))
    journey = ss.Journey(pairs, TOKENS[:1])
    found = journey.measure([ss.Circuit(pair, level <= 1) for pair, level in zip(pairs, levels, strict=True)])
    assert found.edges == 300
    for name in ("kl_model", "kl_circuit", "live_edges", "l0_down"):
        assert getattr(found, name) == pytest.approx(float(getattr(expected, name)[1, 0]), rel=1e-4)
    nothing = journey.measure([ss.Circuit.of(pair, []) for pair in pairs])
    assert nothing.kl_circuit == pytest.approx(float(expected.kl_circuit[0, 0]), rel=1e-4)
    assert found.recovery == pytest.approx(1 - found.kl_circuit / nothing.kl_circuit)
    text = ss.measure_chain([ss.Circuit(pair, level <= 1) for pair, level in zip(pairs, levels, strict=True)], TOKENS)
    assert text.kl_model == pytest.approx(float(expected.kl_model[1].mean()), rel=1e-4)
    assert text.recovery == pytest.approx(float(1 - expected.kl_circuit[1].mean() / expected.kl_circuit[0].mean()))


def test_local_questions_about_a_chain_start_from_what_the_pair_before_leaves():
    sites = [ss.Site("resid_pre", 0), ss.Site("resid_mid", 0), ss.Site("resid_post", 1)]
    saes = {s: random_sae(16, width, 4, seed) for seed, (s, width) in enumerate(zip(sites, (24, 20, 24), strict=True))}
    pairs = chain.chain(tiny_lm(), saes, sites)
    journey = ss.Journey(pairs, TOKENS[:1])
    first = next(read(pairs[0], TOKENS))
    z = scorer_full(pairs[0], first)
    second = replace(next(read(pairs[1], TOKENS)), z=z)
    expected = effects(pairs[1], second, POSITION)
    found = journey.edges(POSITION, n=5000, block=str(pairs[1].block))
    assert found.n_edges > 10
    for edge in found.edges:
        assert edge.effect == pytest.approx(expected[edge.source, edge.up, edge.down], abs=1e-4)
    curve = journey.curve(POSITION, block=str(pairs[0].block))
    assert curve.recovery[-1] == pytest.approx(1)
    full = scorer_full(pairs[1], second)
    acts, removed = z.clone(), torch.zeros_like(first.z)  # no local edges at the first pair
    empty = scorer.downstream(pairs[0], first, scorer.upstream(pairs[0], first, removed.unsqueeze(0)))[0]
    acts[POSITION] = pairs[0].down.activation.select(empty)[POSITION]
    behind = scorer_full(pairs[1], replace(second, z=acts))
    ends = [
        pairs[1].lm.logits_from(sites[2], pairs[1].down.decode(a).unsqueeze(0))[0, POSITION] for a in (full, behind)
    ]
    assert curve.kl_circuit[0] == pytest.approx(float(kl(*ends)), rel=1e-3, abs=1e-5)
    with pytest.raises(UserError, match="several pairs: name the block"):
        journey.edges(POSITION)
    with pytest.raises(UserError, match="does not begin where the first ends"):
        ss.Journey(pairs[::-1], TOKENS[:1])


def test_progress_runs_from_nothing_to_all_and_an_exception_in_it_stops_the_work():
    journey = ss.Journey(tiny_pair("transformer_block.0"), TOKENS[:1])
    for ask in (journey.edges, journey.outputs, journey.curve):
        shares: list[float] = []
        ask(POSITION, on_progress=shares.append)
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1)

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        journey.edges(POSITION - 1, on_progress=stop)


def test_what_a_prompt_does_not_have_is_refused():
    journey = ss.Journey(tiny_pair("ff_block.0"), TOKENS[:1])
    for ask in (journey.edges, journey.outputs, journey.curve):
        with pytest.raises(UserError, match="position 9: the prompt has 9 tokens"):
            ask(9)
    with pytest.raises(UserError, match="2 prompts"):
        ss.Journey(tiny_pair("ff_block.0"), TOKENS)
    with pytest.raises(UserError, match="edges have an effect"):
        journey.curve(POSITION, counts=[479])
    with pytest.raises(UserError, match="at most 5,000"):
        journey.edges(POSITION, n=5001)
    assert journey.index(-1) == 8
    assert len(journey.tokens) == len(journey.texts) == 9
