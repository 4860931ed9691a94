"""SAEs: selection against the obvious one, gradients against autograd's, sharing, and files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from scalar_sae.errors import UserError
from scalar_sae.saes.components.site_groups import site_list
from scalar_sae.saes.methods.base import Progress, TrainableSAEs
from scalar_sae.saes.methods.staircase import StaircaseConfig, StaircaseTrainee
from scalar_sae.saes.methods.staircase_jumprelu import StaircaseJumpReluConfig, StaircaseJumpReluTrainee
from scalar_sae.saes.methods.topk import TopKConfig
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import SaeCard, find_sae, load_sae, load_saes, save_sae
from scalar_sae.sites import Site
from tests.golden.make import PROMPTS
from tests.helpers import GOLDEN, Shape, golden_lm, golden_sae, random_sae, seal_again

HERE, LATER = Site("resid_mid", 0), Site("resid_post", 0)
START = Progress(0, 100)


@given(st.integers(0, 10**6), st.integers(1, 8))
@settings(deadline=None)
def test_selection_keeps_the_k_largest_positive(seed: int, k: int):
    sae = random_sae(6, 8, k, seed)
    u = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    for row, acts in zip(u.numpy(), sae.activation.select(u).numpy(), strict=True):
        kth = np.sort(np.maximum(row, 0))[-k]
        np.testing.assert_array_equal(acts, np.where((row >= kth) & (row > 0), row, 0))


@given(st.integers(0, 10**6), st.integers(1, 8))
@settings(deadline=None)
def test_alone_changes_one_latent_at_a_time(seed: int, k: int):
    sae = random_sae(6, 8, k, seed)
    g = torch.Generator().manual_seed(seed)
    u, changed = torch.randn(3, 8, generator=g), torch.randn(3, 8, generator=g)
    expected = torch.zeros(3, 8)
    for j in range(8):
        alone = u.clone()
        alone[:, j] = changed[:, j]
        expected[:, j] = sae.activation.select(alone)[:, j]
    torch.testing.assert_close(
        sae.activation.activate_independently(changed, sae.activation.competing_threshold(u)), expected
    )


def test_golden_feature_magnitudes():
    ids = load_file(GOLDEN / "prompts.safetensors")["ids"].long()[:PROMPTS]
    golden = load_file(GOLDEN / "fm_topk.mlpblock.safetensors")
    sites = {"0_residmid": Site("resid_mid", 0), "0_residpost": Site("resid_post", 0)}
    acts = golden_lm().activations(ids, list(sites.values()))
    for key, site in sites.items():
        mine = golden_sae("topk.mlpblock", key).encode(acts[site])
        theirs = torch.zeros_like(mine).scatter_(-1, golden[f"{key}.idx"].long(), golden[f"{key}.val"])
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_golden_reconstruction_errors():
    errors = json.loads((GOLDEN / "index.json").read_text())["squared_error_on_20_prompts"]
    ids = load_file(GOLDEN / "prompts.safetensors")["ids"].long()
    acts = golden_lm().activations(ids, [Site("resid_mid", 0)])[Site("resid_mid", 0)].flatten(0, 1)
    golden = golden_sae("topk.mlpblock", "0_residmid")
    trainee = _one(TopKConfig(sites=["resid_mid.0"]), 64)
    weights = {"W_enc": golden.W_enc, "W_dec": golden.W_dec, "b_dec": golden.b_dec}
    raw_b_enc = golden.b_enc + golden.b_dec @ golden.W_enc
    trainee.load_state_dict({**trainee.state_dict(), **weights, "b_enc": raw_b_enc})
    loss = trainee.losses({HERE: acts}, START)[HERE].item()
    assert loss == pytest.approx(errors["topk.mlpblock.0_residmid"], rel=1e-3)


def _one(config: TopKConfig, d_model: int, seed: int = 0) -> TrainableSAEs:
    return config.trainees(Shape(d_model, 1), seed)[0]


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_the_fast_loss_and_its_gradients_are_those_of_encode_and_decode(seed: int):
    g = torch.Generator().manual_seed(seed)
    fast, plain = (_one(TopKConfig(sites=["resid_mid.0"], k=3, expansion=3), 8, seed) for _ in range(2))
    x = torch.randn(10, 8, generator=g)
    fast.losses({HERE: x}, START)[HERE].backward()
    u = (x - plain.b_dec) @ plain.W_enc + plain.b_enc
    kept = u.relu() * (u >= u.topk(3).values.amin(1, keepdim=True))
    (x - kept @ plain.W_dec - plain.b_dec).square().sum(-1).mean().backward()
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def test_a_staircase_shares_its_weights():
    stairs = StaircaseConfig(along="ff_blocks", k=3, expansion=2).trainees(Shape(8, 1), 0)[0]
    x = torch.randn(20, 8)
    later = stairs.sae(LATER)
    stairs.losses({HERE: x, LATER: x}, START)[HERE].backward()
    with torch.no_grad():
        for parameter in stairs.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    now = stairs.sae(LATER)
    moved = (now.W_dec != later.W_dec).any(1)
    assert moved[:16].any(), "a gradient at the first site moves the slice that the second one reads"
    assert not moved[16:].any(), "and leaves the second site's own chunk alone"
    assert torch.equal(now.b_dec, later.b_dec)
    assert torch.equal(now.W_enc[:, :16], stairs.sae(HERE).W_enc)
    assert (now.d_sae, now.chunks) == (32, (16, 32))


@pytest.mark.parametrize(
    ("sharing", "widths", "moved"),
    [("shared", (16, 32), 32), ("detached", (16, 32), 16), ("untied", (16, 32), 32), ("tied", (32, 32), 32)],
)
@pytest.mark.parametrize("method", ["staircase", "staircase_jumprelu"])
def test_what_the_later_site_trains(method: str, sharing: str, widths: tuple[int, int], moved: int):
    shape = {"along": "ff_blocks", "expansion": 2, "sharing": sharing}
    configs = {
        "staircase": StaircaseConfig(k=20 if sharing == "tied" else 15, **shape),
        "staircase_jumprelu": StaircaseJumpReluConfig(**shape),
    }
    stairs = configs[method].trainees(Shape(8, 1), 0)[0]
    assert isinstance(stairs, StaircaseTrainee | StaircaseJumpReluTrainee)
    assert (stairs.sae(HERE).d_sae, stairs.sae(LATER).d_sae) == widths
    x = torch.randn(400, 8)
    stairs.losses({HERE: x, LATER: x}, START)[LATER].backward()
    grad = stairs.stairs.W_dec[-1].grad
    assert int(grad.any(1).sum()) == moved
    assert grad[-16:].any(1).all()
    for threshold in stairs.stairs.log_threshold[-1:]:
        assert int(threshold.grad.count_nonzero()) == moved
    for first in (stairs.stairs.W_dec[0], *stairs.stairs.log_threshold[:1]):
        assert (first.grad is None) == (sharing == "untied"), "each site has its own"


def test_initial_weights_are_the_papers_and_depend_on_seed_and_site_alone():
    config = TopKConfig(sites=["ff_blocks"])
    first, again, other = (config.trainees(Shape(8, 2), seed) for seed in (0, 0, 1))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.W_dec, b.W_dec)
        assert not torch.equal(a.W_dec, c.W_dec)
        assert torch.equal(a.W_enc, a.W_dec.T)
        assert not a.b_enc.any()
        assert not a.b_dec.any()
    alone = TopKConfig(sites=["resid_post.1"]).trainees(Shape(8, 2), 0)[0]
    assert torch.equal(alone.W_dec, first[-1].W_dec)


def test_widths_of_the_papers_staircases():
    whole = StaircaseConfig(along="residual_stream").trainees(Shape(64, 4), 0)
    assert [whole[0].sae(site).d_sae for site in whole[0].sites] == [512, 1024, 1536, 2048, 2560]
    assert sum(p.numel() for p in whole[0].parameters()) == 335_680
    pairs = StaircaseConfig(along="ff_blocks").trainees(Shape(64, 4), 0)
    assert [[pair.sae(site).d_sae for site in pair.sites] for pair in pairs] == [[512, 1024]] * 4


def test_a_place_named_twice_is_trained_once():
    assert [str(site) for site in site_list(["ff_blocks", "residual_stream"], 2)] == [
        "resid_pre.0", "resid_mid.0", "resid_post.0", "resid_mid.1", "resid_post.1",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"resid_mid.7: the model has 2 layers \(0-1\)"):
        site_list(["resid_mid.7"], 2)


def test_k_above_the_width():
    with pytest.raises(UserError, match="k = 20 is above"):
        TopKConfig(sites=["resid_mid.0"], k=20, expansion=1).trainees(Shape(8, 1), 0)
    with pytest.raises(UserError, match="must lie between 1 and d_sae = 8"):
        random_sae(4, 8, 9, 0)


def _card(sae: SAE, site: str = "resid_mid.0", name: str = "topk") -> SaeCard:
    return SaeCard.of(sae, "topk", name, Site.parse(site), {})


def test_an_sae_survives_the_disk(tmp_path: Path):
    sae = random_sae(4, 8, 3, 0)
    for site in ("resid_mid.0", "resid_post.0"):
        save_sae(sae, _card(sae, site), tmp_path / "saes" / "topk" / site)
    back = load_saes(tmp_path)["topk"]
    x = torch.randn(5, 4)
    torch.testing.assert_close(back[Site("resid_mid", 0)].encode(x), sae.encode(x))
    assert find_sae(back, Site("resid_pre", 1)) is back[Site("resid_post", 0)]
    assert find_sae(back, Site("resid_pre", 0)) is None


def test_damaged_files_are_named(tmp_path: Path):
    sae = random_sae(4, 8, 3, 0)
    with pytest.raises(UserError, match="no SAE here"):
        load_sae(tmp_path)
    with pytest.raises(UserError, match="holds no SAEs"):
        load_saes(tmp_path)
    folder = tmp_path / "sae"
    save_sae(sae, _card(sae), folder)
    (folder / "sae.safetensors").write_bytes((folder / "sae.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match=r"sae\.safetensors: damaged \(its SHA-256 is not that of what was written\)"):
        load_sae(folder)
    seal_again(folder)
    with pytest.raises(UserError, match="cannot be read: damaged"):
        load_sae(folder)
    save_sae(sae, _card(sae).model_copy(update={"d_sae": 9}), folder)
    with pytest.raises(UserError, match="says"):
        load_sae(folder)
    tensors = load_file(folder / "sae.safetensors")
    save_file({**tensors, "b_enc": tensors["b_enc"][:7].clone()}, folder / "sae.safetensors")
    seal_again(folder)
    with pytest.raises(UserError, match=r"b_enc has shape \(7,\); W_enc \(4, 8\) needs \(8,\)"):
        load_sae(folder)
    save_file({"W_enc": tensors["W_enc"]}, folder / "sae.safetensors")
    seal_again(folder)
    with pytest.raises(UserError, match="lacks the tensor b_enc; it holds W_enc"):
        load_sae(folder)
