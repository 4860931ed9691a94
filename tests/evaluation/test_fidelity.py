"""Fidelity against direct computation with the `transformers` model, at every kind of site; its definitions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.evaluation.fidelity import fidelity as fidelity_module
from scalar_sae.evaluation.fidelity.fidelity import fidelity
from scalar_sae.evaluation.fidelity.sums import DENSITY_EDGES
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import Rule
from scalar_sae.records.sae_results import SaeFidelity
from scalar_sae.saes.activation import ReLU, TopK
from scalar_sae.saes.normalization import InputNorm
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site
from tests.helpers import PLAIN_KINDS, random_sae, tiny_lm

TOKENS = torch.randint(0, 32, (5, 12), generator=torch.Generator().manual_seed(0))


MANY = torch.randint(0, 32, (24, 12), generator=torch.Generator().manual_seed(1))
"""Enough prompts for intervals."""


def one(sae: SAE, site: Site, tokens: Tensor = TOKENS, lm: LanguageModel | None = None, **options) -> SaeFidelity:
    return fidelity(lm or tiny_lm(), {"mine": {site: sae}}, tokens, **options).saes[0]


def ce(logits: Tensor, tokens: Tensor = TOKENS) -> float:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()


def identity_sae(d_model: int = 16) -> SAE:
    """Reconstructs exactly: one latent for each direction and sign."""
    both = torch.cat([torch.eye(d_model), -torch.eye(d_model)])
    return SAE(both.T, torch.zeros(2 * d_model), both, torch.zeros(d_model), ReLU())


@pytest.mark.parametrize("kind", PLAIN_KINDS)
def test_one_sae_at_any_site(kind: str):
    lm, sae, site = tiny_lm(), random_sae(16, 24, 4, 0), Site(kind, 1)
    found = one(sae, site, lm=lm)
    state = lm.states(TOKENS, [site])[site]
    acts = sae.encode(state.x)
    x_hat = sae.decode(acts)
    rows, hat = state.x.flatten(0, 1), x_hat.flatten(0, 1)
    error, spread = (rows - hat).square().sum(1), (rows - rows.mean(0)).square().sum(1)
    assert found.loss == pytest.approx(error.mean().item(), rel=1e-5)
    assert found.l0 == pytest.approx((acts > 0).sum(-1).float().mean().item())
    assert found.fvu == pytest.approx((error.sum() / spread.sum()).item(), rel=1e-5)
    assert found.fvu_token_mean == pytest.approx((error / spread).mean().item(), rel=1e-4)
    variance = (rows - hat).var(0, correction=0).sum() / rows.var(0, correction=0).sum()
    assert found.fvu_residual_variance == pytest.approx(variance.item(), rel=1e-5)
    assert found.cosine == pytest.approx(
        ((rows * hat).sum(1) / rows.norm(dim=1) / hat.norm(dim=1)).mean().item(), rel=1e-5
    )
    assert found.shrinkage == pytest.approx((hat.square().sum() / (rows * hat).sum()).item(), rel=1e-5)
    model = lm.hf(TOKENS).logits
    logits = {
        name: lm.logits_from(site, x.expand_as(state.x), state.skip)
        for name, x in (("sae", x_hat), ("zero", torch.zeros(())), ("mean", rows.mean(0)))
    }
    p = model.softmax(-1)
    kl = {name: (p * (model.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean().item() for name, q in logits.items()}
    rise = {name: ce(q) - ce(model) for name, q in logits.items()}
    assert found.ce_increase == pytest.approx(rise["sae"], abs=1e-5)
    assert found.kl == pytest.approx(kl["sae"], abs=1e-5)
    for ablation in ("zero", "mean"):
        assert found.kl_recovered[ablation] == pytest.approx(1 - kl["sae"] / kl[ablation], abs=1e-3)
        if rise[ablation] > 0:
            assert found.ce_recovered[ablation] == pytest.approx(1 - rise["sae"] / rise[ablation], abs=1e-2)
        else:
            assert found.ce_recovered[ablation] is None
    rate = (acts > 0).flatten(0, 1).double().mean(0)
    assert found.dead == pytest.approx((rate == 0).double().mean().item())
    assert sum(found.density) == (rate > 0).sum()
    for i, count in enumerate(found.density):
        top = DENSITY_EDGES[i + 1] if i + 2 < len(DENSITY_EDGES) else 1.1
        assert count == ((rate >= DENSITY_EDGES[i]) & (rate < top)).sum()
    assert found.dense["0.1"] == pytest.approx((rate > 0.1).double().mean().item())
    assert (found.n_tokens, found.n_prompts) == (60, 5)


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm"])
def test_an_sae_that_normalises_its_input_is_that_sae_between_two_lines_of_its_own(kind: str):
    """By hand: normalise, encode and decode with the plain weights, undo; alone and spliced in."""
    lm, plain, site = tiny_lm(), random_sae(16, 24, 4, 0), Site("resid_mid", 1)
    sae = replace(plain, norm=InputNorm(kind, 1e-5), W_skip=0.1 * torch.eye(16))
    x = lm.activations(TOKENS, [site])[site]
    shift = x.mean(-1, keepdim=True) if kind == "layer_norm" else 0
    scale = x.std(-1, keepdim=True) if kind == "layer_norm" else x.norm(dim=-1, keepdim=True) / 4
    x_hat = plain.decode(plain.encode((x - shift) / (scale + 1e-5))) * scale + shift + 0.1 * x
    found = fidelity(lm, {"mine": {site: sae}}, TOKENS)
    assert found.saes[0].loss == pytest.approx((x - x_hat).square().sum(-1).mean().item(), rel=1e-5)
    rise = ce(lm.logits_from(site, x_hat)) - ce(lm.logits(TOKENS))
    assert (found.saes[0].ce_increase, found.spliced[0].ce_increase) == pytest.approx((rise, rise), abs=1e-5)


def hooked(
    lm: LanguageModel,
    saes: dict[Site, SAE],
    tokens: Tensor = TOKENS,
    own: dict[Site, Tensor] | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """All SAEs spliced in by hooks on the `transformers` modules, but for places that are not `kept`: an independent
    route.
    """
    handles = []
    for site, sae in saes.items():
        block = lm.hf.transformer.h[site.layer]

        def put(_, __, out, sae=sae, site=site):
            x = out[0] if isinstance(out, tuple) else out
            x_hat = sae.decode(sae.encode(x))
            if own is not None and kept is not None:
                x_hat = torch.where(kept.unsqueeze(-1), x_hat, own[site])
            return (x_hat, *out[1:]) if isinstance(out, tuple) else x_hat

        module = {"resid_post": block, "mlp_out": block.mlp, "attn_out": block.attn, "mlp_in": block.ln_2}[site.kind]
        handles.append(module.register_forward_hook(put))
    logits = lm.hf(tokens).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize(
    "names",
    [
        ("resid_post.0", "resid_post.1"),
        ("attn_out.0", "mlp_in.0", "mlp_out.0", "resid_post.0", "mlp_out.1"),
        ("mlp_out.1",),
    ],
)
def test_all_saes_of_a_method_spliced_in(names: tuple[str, ...]):
    lm = tiny_lm()
    saes = {Site.parse(name): random_sae(16, 24, 4, i) for i, name in enumerate(names)}
    (found,) = fidelity(lm, {"mine": saes}, TOKENS).spliced
    assert found.ce_increase == pytest.approx(ce(hooked(lm, saes)) - ce(lm.hf(TOKENS).logits), abs=1e-5)
    assert found.sites == [str(site) for site in sorted(saes)]


def test_one_sae_spliced_in_is_the_same_alone_and_together():
    found = fidelity(tiny_lm(), {"mine": {Site("mlp_out", 0): random_sae(16, 24, 4, 0)}}, TOKENS)
    assert found.spliced[0].kl == pytest.approx(found.saes[0].kl, rel=1e-6)
    assert found.spliced[0].kl_recovered == pytest.approx(found.saes[0].kl_recovered, rel=1e-6)


def passes(monkeypatch: pytest.MonkeyPatch, saes: dict[str, dict[Site, SAE]], **options) -> int:
    """Prompts that are run from a site to the end of the model while SAEs are measured."""
    lm, run, prompts = tiny_lm(), LanguageModel.run, []

    def counted(self, start, end, x, skip=None):
        prompts.append(len(x))
        return run(self, start, end, x, skip)

    monkeypatch.setattr(LanguageModel, "run", counted)
    fidelity(lm, saes, TOKENS, batch=2, **options)
    return sum(prompts)


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch):
    """Of five prompts: the model itself, every SAE, every method's SAEs together; zeros and means once for all."""
    mid, pre, post = Site("resid_mid", 0), Site("resid_pre", 1), Site("resid_post", 0)
    one_method = {mid: random_sae(16, 24, 4, 0), post: random_sae(16, 24, 4, 1)}
    other = {mid: random_sae(16, 20, 3, 2), pre: random_sae(16, 20, 3, 3)}  # pre is post by another name
    assert passes(monkeypatch, {"a": one_method, "b": other}) == 5 * (1 + 4 + 2) + 2 * 2
    assert passes(monkeypatch, {"a": {mid: one_method[mid]}}) == 5 * (1 + 1) + 2


def test_ablation_that_leaves_prompts_different_is_computed_for_each(monkeypatch: pytest.MonkeyPatch):
    branch = {"a": {Site("mlp_out", 0): random_sae(16, 24, 4, 0)}}  # the residual stream passes beside it
    assert passes(monkeypatch, branch) == 5 * (1 + 1 + 2)
    stream = {"a": {Site("resid_mid", 0): random_sae(16, 24, 4, 0)}}
    assert passes(monkeypatch, stream, special=(int(TOKENS[0, 3]),)) > 5 * (1 + 1) + 2


def test_fidelity_does_not_depend_on_a_device(device: torch.device):
    """As in tests/scoring/test_devices.py."""
    sites = Site("resid_mid", 0), Site("mlp_out", 1)
    saes = {"a": {site: random_sae(16, 24, 4, number) for number, site in enumerate(sites)}}
    here, lm = fidelity(tiny_lm(), saes, TOKENS, (7,)), tiny_lm().to(device)
    with torch.device("meta"):
        there = fidelity(lm, saes, TOKENS, (7,))
    for ours, theirs in zip(here.saes + here.spliced, there.saes + there.spliced, strict=True):
        assert theirs.kl == pytest.approx(ours.kl, rel=1e-4)
        assert theirs.kl_recovered == pytest.approx(ours.kl_recovered, rel=1e-3)
    assert [sae.fvu for sae in there.saes] == pytest.approx([sae.fvu for sae in here.saes], rel=1e-4)


def test_a_perfect_sae_loses_nothing():
    found = one(identity_sae(), Site("resid_mid", 0))
    assert found.fvu == pytest.approx(0, abs=1e-9)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.cosine == pytest.approx(1)
    assert found.shrinkage == pytest.approx(1)
    assert found.kl_recovered == pytest.approx({"zero": 1, "mean": 1})


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.25])
def test_shrinkage_is_the_factor_by_which_reconstructions_are_short(scale: float):
    sae = identity_sae()
    assert one(replace(sae, W_dec=scale * sae.W_dec), Site("resid_mid", 0)).shrinkage == pytest.approx(scale, rel=1e-5)


def test_a_constant_bias_shows_in_fvu_and_not_in_the_variance_of_the_error():
    sae = replace(identity_sae(), b_dec=torch.full((16,), 2.0))
    found = one(sae, Site("resid_mid", 0))
    assert found.fvu > 0.1
    assert found.fvu_residual_variance == pytest.approx(0, abs=1e-6)


def test_the_explained_variance_of_saebench_in_2025_is_another_number():
    """It accumulated mean squares where means were meant: the "variance" is E|x|^2 - |E x^2|^2, not E|x - E x|^2."""
    g = torch.Generator().manual_seed(0)
    x = 0.5 + 0.4 * torch.randn(20_000, 4, generator=g, dtype=torch.double)
    x_hat = x + 0.2 * torch.randn(20_000, 4, generator=g, dtype=torch.double)
    error = (x - x_hat).square().sum(1).mean()
    true = 1 - error / (x - x.mean(0)).square().sum(1).mean()
    theirs = 1 - error / (x.square().sum(1).mean() - x.square().mean(0).square().sum())
    assert true == pytest.approx(1 - 0.04 / 0.16, abs=0.01)
    assert theirs > true + 0.05


def test_l0_per_chunk_adds_up():
    found = one(replace(random_sae(16, 24, 4, 0), chunks=(8, 16, 24)), Site("resid_mid", 0))
    assert len(found.l0_per_chunk) == 3
    assert sum(found.l0_per_chunk) == pytest.approx(found.l0, rel=1e-6)


def test_the_batch_size_does_not_matter():
    saes = {"a": {Site("resid_mid", 0): random_sae(16, 24, 4, 0)}, "b": {Site("mlp_out", 1): random_sae(16, 20, 3, 1)}}
    small, large = (fidelity(tiny_lm(), saes, TOKENS, batch=n) for n in (2, 5))
    for a, b in zip(small.saes + small.spliced, large.saes + large.spliced, strict=True):
        first, second = a.model_dump(), b.model_dump()
        for name in ("fvu", "l0", "kl", "ce_increase"):
            if name in first:
                assert first[name] == pytest.approx(second[name], abs=1e-5)


def test_special_tokens_are_neither_replaced_nor_counted():
    tokens = TOKENS.clone()
    tokens[tokens == 7] = 8
    tokens[:, 0] = 7
    sae, site = random_sae(16, 24, 4, 0), Site("resid_mid", 1)
    lm = tiny_lm()
    found = one(sae, site, tokens, lm, special=(7,))
    x = lm.activations(tokens, [site])[site]
    assert (found.n_tokens, found.n_special) == (5 * 11, 5)
    assert found.loss == pytest.approx((x - sae.decode(sae.encode(x)))[:, 1:].square().sum(-1).mean().item(), rel=1e-5)
    x_hat = sae.decode(sae.encode(x))
    x_hat[:, 0] = x[:, 0]
    assert found.ce_increase == pytest.approx(
        ce(lm.logits_from(site, x_hat), tokens) - ce(lm.logits(tokens), tokens), abs=1e-5
    )
    with pytest.raises(UserError, match=r"every token is special \(ids 7\)"):
        one(sae, site, torch.full((2, 3), 7), lm, special=(7,))


@pytest.mark.parametrize(
    "names", [("attn_out.0", "mlp_out.0", "resid_post.1"), ("mlp_in.0", "attn_out.1"), ("resid_post.0", "mlp_out.1")]
)
@pytest.mark.parametrize("first", [False, True])
def test_special_tokens_anywhere_keep_the_clean_models_activation_at_every_site(names: tuple[str, ...], first: bool):
    """At the start, in the middle and twice in a row, by hooks on the `transformers` modules."""
    tokens = TOKENS.clone()
    tokens[tokens == 7] = 8
    tokens[:, 5] = tokens[1:, 6] = tokens[2, 11] = 7
    if not first:
        tokens[:, 0] = 7
    kept = tokens != 7
    kept[:, 0] = False
    rule: Rule = ("first", 7) if first else (7,)
    lm = tiny_lm()
    saes = {Site.parse(name): random_sae(16, 24, 4, i) for i, name in enumerate(names)}
    own = lm.activations(tokens, sorted(saes))
    (found,) = fidelity(lm, {"mine": saes}, tokens, special=rule).spliced
    clean, spliced = (logits.log_softmax(-1) for logits in (lm.hf(tokens).logits, hooked(lm, saes, tokens, own, kept)))
    kl = (clean.exp() * (clean - spliced)).sum(-1)[kept].mean()
    rise = (clean - spliced)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0][kept[:, 1:]].mean()
    assert found.kl == pytest.approx(kl.item(), abs=1e-5)
    assert found.ce_increase == pytest.approx(rise.item(), abs=1e-5)
    assert (found.n_tokens, found.n_special) == (int(kept.sum()), int((~kept).sum()))
    assert kl > 0.01


def test_intervals_are_those_of_a_bootstrap_over_prompts():
    sae, site, lm = random_sae(16, 24, 4, 0), Site("resid_mid", 1), tiny_lm()
    found = one(sae, site, MANY, lm, seed=3)
    x = lm.activations(MANY, [site])[site]
    loss = (x - sae.decode(sae.encode(x))).square().sum(-1).mean(1).double().numpy()
    draws = np.random.default_rng(3).integers(24, size=(1000, 24))
    beyond = stats.norm.cdf(stats.t.ppf(0.025, 23) * np.sqrt(24 / 23))
    quantiles = [beyond, 1 - beyond]
    expected = np.quantile(loss[draws].mean(1), quantiles, method="nearest")
    assert found.ci["loss"] == pytest.approx(tuple(expected), rel=1e-5)
    assert found.ci["fvu"][0] < found.fvu < found.ci["fvu"][1]
    acts = sae.encode(x)
    error, again = x - sae.decode(acts), [draw for draw in draws]
    variance = [error[d].flatten(0, 1).var(0, correction=0).sum() for d in again]
    spread = (x - x.flatten(0, 1).mean(0)).square().sum((1, 2))
    ratio = np.array([MANY.numel() * v.item() / spread[d].sum().item() for v, d in zip(variance, again, strict=True)])
    dense = np.array([((acts[d] > 0).flatten(0, 1).double().mean(0) > 0.1).double().mean().item() for d in again])
    for name, values in (("fvu_residual_variance", ratio), ("dense.0.1", dense)):
        assert found.ci[name] == pytest.approx(tuple(np.quantile(values, quantiles, method="nearest")), rel=1e-5)
    assert found.ci["l0_per_chunk.0"] == found.ci["l0"]
    assert set(one(sae, site, MANY[:19], lm).ci.values()) == {None}


def test_more_prompts_than_groups_are_drawn_in_groups(monkeypatch: pytest.MonkeyPatch):
    """Groups of identical prompts: those are one draw, so the interval is that of the text without the copies."""
    sae, site = replace(random_sae(16, 24, 4, 0), chunks=(10, 24)), Site("resid_mid", 1)
    monkeypatch.setattr("scalar_sae.evaluation.fidelity.sums.GROUPS", 24)
    once, thrice = one(sae, site, MANY), one(sae, site, MANY.repeat(3, 1), batch=4)
    for name in ("fvu_residual_variance", "dense.0.01", "dense.0.1"):
        assert thrice.ci[name] == pytest.approx(once.ci[name], rel=1e-5)
    assert thrice.fvu_residual_variance == pytest.approx(once.fvu_residual_variance)
    assert thrice.l0_per_chunk == pytest.approx(once.l0_per_chunk)
    width, narrow = (found.ci["l0_per_chunk.1"] for found in (once, thrice))
    assert narrow[1] - narrow[0] < width[1] - width[0]


def test_an_sae_that_never_fires_is_dead_and_its_shrinkage_unknown():
    sae = SAE(torch.zeros(16, 8), torch.full((8,), -1.0), torch.ones(8, 16), torch.zeros(16), TopK(2))
    found = one(sae, Site("resid_mid", 0))
    assert (found.dead, found.l0, found.shrinkage) == (1, 0, None)
    assert found.rarest == pytest.approx(3 / 60)


def test_bad_input():
    with pytest.raises(UserError, match="reads 8 dimensions"):
        one(random_sae(8, 24, 4, 0), Site("resid_mid", 0))
    with pytest.raises(UserError, match="nothing to predict"):
        one(random_sae(16, 24, 4, 0), Site("resid_mid", 0), TOKENS[:, :1])
    with pytest.raises(UserError, match="has 2 layers"):
        one(random_sae(16, 24, 4, 0), Site("resid_mid", 5))
    with pytest.raises(UserError, match="transcoders alone"):
        one(replace(random_sae(16, 24, 4, 0), writes=Site("mlp_out", 0)), Site("mlp_in", 0))
    lm = tiny_lm()
    lm.hf.transformer.wte.weight[3] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        one(random_sae(16, 24, 4, 0), Site("resid_mid", 0), lm=lm)


def test_what_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setattr("scalar_sae.evaluation.fidelity.unfinished.SELDOM", 0.0)
    lm, sites = tiny_lm(), [Site("resid_mid", 0), Site("mlp_out", 1)]
    saes = {"mine/a": {site: random_sae(16, 24, 4, i) for i, site in enumerate(sites)}}
    whole = fidelity(lm, saes, TOKENS, (7,), batch=2)
    read, prompts = fidelity_module._read_sae, list[int]()

    def counting(part: Any, *rest: Any) -> None:
        prompts.append(part.first)
        if len(prompts) == 6:  # the last site of the last of three batches
            raise KeyboardInterrupt
        read(part, *rest)

    monkeypatch.setattr(fidelity_module, "_read_sae", counting)
    with pytest.raises(KeyboardInterrupt):
        fidelity(lm, saes, TOKENS, (7,), batch=2, partial=tmp_path)
    [file] = tmp_path.iterdir()
    before = file.read_bytes()
    assert fidelity(lm, saes, TOKENS, (7,), batch=2, partial=tmp_path) == whole
    assert prompts == [0, 0, 2, 2, 4, 4, 4, 4], "of three batches only the one that was begun is read again"
    other = {"mine/a": {site: random_sae(16, 24, 4, i + 5) for i, site in enumerate(sites)}}
    assert fidelity(lm, other, TOKENS, (7,), batch=2, partial=tmp_path) == fidelity(lm, other, TOKENS, (7,), batch=2)
    file.write_bytes(before[:-1] + b"x")
    monkeypatch.setattr(fidelity_module, "_read_sae", read)
    assert fidelity(lm, saes, TOKENS, (7,), batch=2, partial=tmp_path) == whole
    assert "damaged" in capsys.readouterr().err
