"""Rankings against brute force."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scalar_sae import distributed
from scalar_sae.errors import UserError
from scalar_sae.scoring import score
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.pair import Pair, read
from scalar_sae.scoring.rankings import effects
from scalar_sae.scoring.rankings.registry import RANKINGS, find_ranking, rank, table
from scalar_sae.scoring.texts import Texts
from scalar_sae.sites import Block
from tests.helpers import random_sae, tiny_lm, tiny_pair
from tests.reference import scorer
from tests.test_study import scalar

TOKENS = torch.arange(24).view(2, 12)
BLOCKS = ["ff_layer.0", "ff_block.1", "attn_block.0", "transformer_block.1"]
COLUMNS = slice(0, 20)


def root_mean(pair: Pair, squares: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(squares).sum(0).div(TOKENS.numel()).sqrt()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("kind", "k"), [("topk", 1), ("topk", 4), ("topk", 20), ("relu", 0), ("jumprelu", 0)])
def test_ablation_is_leave_one_out_by_brute_force(block: str, kind: str, k: int):
    pair = tiny_pair(block, k=max(k, 1), kind=kind)
    expected = root_mean(pair, [scorer.leave_one_out(pair, prompt) for prompt in read(pair, TOKENS)])
    torch.testing.assert_close(rank(pair, TOKENS, "leave_one_out", 0), expected, atol=1e-5, rtol=1e-3)
    assert (expected > 0).float().mean() > 0.01


@pytest.mark.parametrize("ablation_value", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_attributions_of_ig_add_up(block: str, ablation_value: bool):
    pair = tiny_pair(block, ablation_value=ablation_value)
    prompt = next(read(pair, TOKENS))
    alphas = [(step + 0.5) / 400 for step in range(400)]
    total = sum(effect.sum(0) for _, effect in effects.of_a_gradient(pair, prompt, COLUMNS, alphas))
    ends = pair.up.decode(torch.stack([scorer.mean_where_active(pair, prompt), prompt.z]))
    before, after = pair.pre_acts(ends, prompt).relu()
    torch.testing.assert_close(total, after - before, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("ablation_value", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_values_of_shapley_add_up(block: str, ablation_value: bool):
    pair = tiny_pair(block, ablation_value=ablation_value)
    prompt = next(read(pair, TOKENS))
    _, effect = effects.of_random_orders(pair, prompt, COLUMNS, 3, torch.Generator().manual_seed(0))
    ends = pair.up.decode(torch.stack([scorer.mean_where_active(pair, prompt), prompt.z]))
    before, after = pair.down.activation.select(pair.pre_acts(ends, prompt))
    torch.testing.assert_close(effect.sum(0), after - before, atol=1e-5, rtol=1e-4)


def test_shapley_is_the_mean_over_all_orders():
    """Two units: half the time each enters first."""
    pair = tiny_pair("ff_block.1", k=2)
    prompt = next(read(pair, TOKENS[:1, :1]))
    assert prompt.active.used.all()
    _, effect = effects.of_random_orders(pair, prompt, COLUMNS, 1000, torch.Generator().manual_seed(0))
    adds = effects.AblationUnits.of(pair, prompt).adds(pair)
    base = pair.base(prompt)
    x = torch.stack([base, base + adds[0], base + adds[1], base + adds.sum(0)])
    none, first, second, both = pair.down.activation.select(pair.pre_acts(x, prompt))
    expected = torch.stack([first - none + both - second, second - none + both - first]) / 2
    torch.testing.assert_close(effect, expected, atol=0.1, rtol=0.0)
    assert expected.abs().max() > 0.5
    assert (torch.stack([first - none, both - first]) - expected).abs().max() > 0.2, "one order alone is far from it"


@pytest.mark.parametrize("at_once", [20_000, 6_000])
def test_fisher_information_by_enumerating_the_labels(at_once: int, monkeypatch: pytest.MonkeyPatch):
    """One token: the expectation over labels is a sum."""
    monkeypatch.setattr(effects, "LABEL_BYTES", 4 * 32 * at_once)
    pair = tiny_pair("ff_block.1")
    prompt = next(read(pair, TOKENS[:1, :1]))
    sampled = effects.fisher(pair, prompt, 20_000, torch.Generator().manual_seed(0))
    acts = pair.down.activation.select(pair.pre_acts(pair.up.decode(prompt.z).unsqueeze(0), prompt))
    x = pair.down.decode(acts).requires_grad_()
    log_probs = pair.log_probs(x, prompt)[0, 0]
    expected = torch.zeros(20)
    for label in range(32):
        (gradient,) = torch.autograd.grad(log_probs[label], x, retain_graph=True)
        expected += log_probs[label].exp().detach() * (pair.down.W_dec @ gradient[0, 0]).square()
    torch.testing.assert_close(sampled[0], expected, rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("block", ["ff_block.0", "transformer_block.0"])
def test_rounding_is_no_effect(block: str):
    """In wide models one product of matrices differs in its last bits from the same within a batch."""
    ends = (random_sae(768, 128, 4, seed, "jumprelu") for seed in (0, 1))
    pair = Pair(tiny_lm(d_model=768), Block.parse(block), *ends)
    (prompt,) = read(pair, torch.arange(16).unsqueeze(0))
    n_unused = 0
    for units, effect, drive in effects.of_removal(pair, prompt, slice(0, 128)):
        for unit, change in enumerate(units.change):
            for token in range(16):
                unused = (change[: token + 1] == 0).all() if pair.block.mixes_tokens else change[token] == 0
                if unused:
                    n_unused += 1
                    assert not effect[unit, token].any()
                    assert not drive[unit, token].any()
    assert n_unused > 100


def test_local_effects_by_removing_one_latent_at_one_token():
    for block in ("ff_block.1", "transformer_block.0"):
        pair = tiny_pair(block, k=2)
        prompt = next(read(pair, TOKENS))
        size = effects.at_every_token(pair, prompt)
        p = pair.pre_acts(pair.up.decode(prompt.z).unsqueeze(0), prompt)[0]
        before = pair.down.activation.select(p)
        for token, entry in ((0, 0), (5, 1), (11, 0)):
            z = prompt.z.clone()
            z[token, prompt.active.latent[token, entry]] = 0
            changed = pair.pre_acts(pair.up.decode(z).unsqueeze(0), prompt)[0]
            for j in range(20):
                alone = p.clone()
                alone[:, j] = changed[:, j]
                norm, drive = pair.down.W_dec[j].norm(), (alone - p)[:, j].norm()
                effect = (pair.down.activation.select(alone) - before)[:, j].norm()
                expected = effect * norm if effect > 0 else -1 / (1 + drive * norm)
                torch.testing.assert_close(size[token, entry, j], expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name, ranking in RANKINGS.items() if ranking.scope == "global"])
def test_rankings_report_their_progress_and_do_not_depend_on_the_chunk(name: str, monkeypatch: pytest.MonkeyPatch):
    pair = tiny_pair("transformer_block.0")
    shares: list[float] = []
    scores = rank(pair, TOKENS, name, 0, shares.append)
    assert sum(shares) == pytest.approx(len(TOKENS))
    assert scores.shape == (24, 20)
    monkeypatch.setattr(effects, "BATCH_BYTES", 5000)
    chunked = rank(pair, TOKENS, name, 0, room=8 * 24 * 7)
    torch.testing.assert_close(scores, chunked, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["leave_one_out_with_prior", "fisher"])
def test_a_worker_reports_its_own_share_of_the_work(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    reported: list[float] = []
    rank(tiny_pair("ff_block.0"), TOKENS, name, 0, reported.append)
    assert sum(reported) == pytest.approx(len(TOKENS) / 2)


def test_the_documentation_and_the_help_name_every_ranking():
    readme = Path(score.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert table() in readme, "scoring/README.md is old: it holds the table of rankings/registry.py"
    said = scalar("score", "--help").stdout
    assert all(name in said for name in RANKINGS)
    with pytest.raises(UserError, match="did you mean 'shapley'"):
        find_ranking("shaply")


@pytest.mark.parametrize("ranking", sorted(RANKINGS))
@pytest.mark.parametrize("block", ["ff_block.0", "attn_block.1"])
def test_a_text_on_which_no_latent_is_active_has_a_score(block: str, ranking: str):
    pair = tiny_pair(block, kind="relu")
    pair = replace(pair, up=replace(pair.up, b_enc=pair.up.b_enc - 1000))
    texts = Texts(TOKENS[:2, :6], TOKENS[1:, :6], {})
    config = ScoreConfig(ranking=ranking, rank_prompts=2, edges="8")
    record = score.score(pair, texts, config, on_progress=lambda n: None)
    assert record.kl_circuit == pytest.approx([0.0] * len(record.edges), abs=1e-6)  # nothing can be removed
