"""The stream of activations, and its cache."""

import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from scalar_sae.activations.cache import CachedStream, fingerprint
from scalar_sae.activations.reading import Gradient
from scalar_sae.activations.stream import ActivationStream, read_all
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.sites import Site
from tests.helpers import tiny_lm
from tests.training.runs import SITES, TOPK, random_prompts, trained


def test_an_epoch_of_buffers_holds_every_token_once_and_shuffled():
    lm = tiny_lm()
    stream = ActivationStream(lm, random_prompts(), SITES, buffer_tokens=64, seed=0)
    clean = lm.activations(random_prompts(), SITES)
    buffers = list(islice(stream.buffers(), 3))
    for site in SITES:
        ours = torch.cat([buffer[site] for buffer in buffers])
        assert ours.shape == (192, 16)
        assert not torch.equal(ours, clean[site].flatten(0, 1))
        key = torch.linspace(1, 2, 16)
        torch.testing.assert_close((ours @ key).sort().values, (clean[site].flatten(0, 1) @ key).sort().values)


def test_sites_stay_aligned_through_the_shuffle():
    lm = tiny_lm()
    buffer = next(ActivationStream(lm, random_prompts(), SITES, buffer_tokens=192, seed=0).buffers())
    clean = lm.activations(random_prompts(), SITES)
    weights = torch.randn(32, generator=torch.Generator().manual_seed(0))
    both = [torch.cat([acts[site].flatten(0, -2) for site in SITES], -1) @ weights for acts in (buffer, clean)]
    torch.testing.assert_close(both[0].sort().values, both[1].sort().values)


def test_a_buffer_depends_on_its_number_alone():
    stream = ActivationStream(tiny_lm(), random_prompts(), SITES, buffer_tokens=64, seed=5)
    fourth = next(islice(stream.buffers(), 4, None))
    again = next(stream.buffers(start=4))
    assert all(torch.equal(fourth[site], again[site]) for site in SITES)


def test_gradients_are_read_where_the_loss_is_taken():
    lm, prompts = tiny_lm(), random_prompts(4)
    for site in (Site("resid_mid", 0), Site("mlp_out", 1)):
        buffer = next(ActivationStream(lm, prompts, [site, Gradient(site)], 64, seed=0).buffers())
        state = lm.states(prompts, [site])[site]
        nudge = 1e-2 * torch.randn(state.x.shape, generator=torch.Generator().manual_seed(1))

        def loss(x: torch.Tensor, site: Site = site, skip: torch.Tensor | None = state.skip) -> torch.Tensor:
            log_p = lm.logits_from(site, x, skip)[:, :-1].log_softmax(-1)
            return -log_p.gather(2, prompts[:, 1:, None]).sum()

        change = loss(state.x + nudge) - loss(state.x - nudge)
        flat = state.x.flatten(0, 1)
        order = [int((flat - row).abs().sum(1).argmin()) for row in buffer[site]]
        predicted = 2 * (buffer[Gradient(site)] * nudge.flatten(0, 1)[order]).sum()
        torch.testing.assert_close(change, predicted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("first", [False, True])
def test_special_tokens_are_left_out(first: bool):
    lm, prompts = tiny_lm(), random_prompts(4)
    stream = ActivationStream(lm, prompts, SITES, 64, seed=0, special=("first", 3, 5) if first else (3, 5))
    buffer = next(stream.buffers())
    kept = ~((prompts == 3) | (prompts == 5))
    kept[:, 0] &= not first
    assert 0 < int(kept.sum()) < 64
    for site in SITES:
        expected = lm.activations(prompts, [site])[site][kept]
        key = torch.linspace(1, 2, 16)
        torch.testing.assert_close((buffer[site] @ key).sort().values, (expected @ key).sort().values)


def test_a_gradient_is_of_the_loss_at_ordinary_targets():
    """A model asked to predict special tokens too would train an SAE to serve them."""
    lm, prompts, site = tiny_lm(), random_prompts(4), SITES[0]
    reads = [site, Gradient(site)]
    x = lm.activations(prompts, [site])[site].requires_grad_()
    log_p = lm.logits_from(site, x)[:, :-1].log_softmax(-1)
    targets = prompts[:, 1:]
    (-log_p.gather(2, targets[..., None])[..., 0][(targets != 3) & (targets != 5)]).sum().backward()
    found = read_all(lm, prompts, reads, (3, 5))
    torch.testing.assert_close(found[Gradient(site)], x.grad)
    assert torch.equal(read_all(lm, prompts, reads, ("first", 3, 5))[Gradient(site)], found[Gradient(site)])
    assert not torch.allclose(found[Gradient(site)], read_all(lm, prompts, reads)[Gradient(site)])


def test_a_cache_of_another_rule_for_special_tokens_is_refused(tmp_path: Path, text: Path):
    trained(tmp_path, text, "one", [TOPK], cache=tmp_path / "cache", special=[3])
    trained(tmp_path, text, "two", [TOPK], cache=tmp_path / "cache", special=[3])
    with pytest.raises(UserError, match=r"activations of another recipe \(special differs\)"):
        trained(tmp_path, text, "three", [TOPK], cache=tmp_path / "cache", special="count")


def test_a_cache_yields_the_same_buffers_without_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lm = tiny_lm()
    stream = ActivationStream(lm, random_prompts(), SITES, buffer_tokens=64, seed=0)
    plain = list(islice(stream.buffers(), 4))
    first = list(islice(CachedStream(stream, tmp_path / "cache", 4).buffers(), 4))
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4
    fewer = ActivationStream(lm, random_prompts(), SITES[:1], buffer_tokens=64, seed=0)
    second = CachedStream(fewer, tmp_path / "cache", 4)
    monkeypatch.setattr(lm, "states", None)  # the model must not be asked again
    for a, b, c in zip(plain, first, islice(second.buffers(), 4), strict=True):
        assert all(torch.equal(a[site], b[site]) for site in SITES)
        assert torch.equal(a[SITES[0]], c[SITES[0]])


def test_a_cache_of_another_recipe_is_refused(tmp_path: Path):
    lm = tiny_lm()
    CachedStream(ActivationStream(lm, random_prompts(), SITES[:1], 64, seed=0), tmp_path, 1)
    with pytest.raises(UserError, match=r"seed differs; lacks resid_post.1.*another --cache"):
        CachedStream(ActivationStream(lm, random_prompts(), SITES, 64, seed=1), tmp_path, 1)
    other_config = tiny_lm()
    other_config.hf.config.layer_norm_epsilon = 1e-3
    for other in (tiny_lm(1), other_config):
        with pytest.raises(UserError, match=r"\(lm differs\); choose another --cache"):
            CachedStream(ActivationStream(other, random_prompts(), SITES[:1], 64, seed=0), tmp_path, 1)


def test_a_saved_model_has_the_fingerprint_of_the_one_in_memory(tmp_path: Path):
    lm = tiny_lm()
    lm.hf.save_pretrained(tmp_path)
    saved = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert fingerprint(LanguageModel(saved, "another name")) == fingerprint(lm)


def test_a_folder_that_is_no_cache_is_named(tmp_path: Path):
    stream = ActivationStream(tiny_lm(), random_prompts(), SITES, 64, seed=0)
    file, manifest = tmp_path / "file", tmp_path / "manifest.json"
    file.write_text("a file")
    with pytest.raises(UserError, match=r"^[^\n]*file: is no folder; choose another --cache$"):
        CachedStream(stream, file, 1)
    for content in ('{"name": "a web page"}', "[]", '{"recipe": "flour"}', '{"recipe": {"lm": ', "\udcff"):
        manifest.write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(
            UserError, match=r"^[^\n]*manifest\.json: [^\n]+; restore it from a copy, or move it away[^\n]*$"
        ):
            CachedStream(stream, tmp_path, 1)


def test_a_cache_says_what_it_will_take_and_needs_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    stream = ActivationStream(tiny_lm(), random_prompts(), SITES, buffer_tokens=64, seed=0)
    written = CachedStream(stream, tmp_path, 4)
    assert "4 buffers of 0 MiB, 0 of them there already" in said(capsys)
    next(written.buffers())
    size = (tmp_path / "buffer-000000.safetensors").stat().st_size
    free = shutil.disk_usage(tmp_path)._replace(free=int(3.5 * size))

    def usage(_: Path) -> object:
        return free

    monkeypatch.setattr("scalar_sae.activations.cache.shutil.disk_usage", usage)
    CachedStream(stream, tmp_path, 4)
    assert "1 of them there already" in said(capsys)
    with pytest.raises(UserError, match=r"5 buffers of .*GB are needed and 0.0 GB free; choose a --cache on another"):
        CachedStream(stream, tmp_path, 5)
    fewer = ActivationStream(stream.lm, random_prompts(), SITES[:1], buffer_tokens=64, seed=0)
    CachedStream(fewer, tmp_path, 200)
    assert "are not kept" in said(capsys)


def test_the_buffers_that_are_foreseen_are_those_that_a_run_leaves(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
):
    """Buffers of 240 tokens give two batches of 100 each: ten for twenty steps, and not 2000 / 240."""
    trained(tmp_path, text, "run", [TOPK], cache=tmp_path / "cache", buffer_tokens=250)
    assert "10 buffers of" in said(capsys)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 10


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_cached_run_is_the_same_run(tmp_path: Path, text: Path):
    plain = trained(tmp_path, text, "plain", [TOPK])["topk"]
    for name in ("writes", "reads"):
        cached = trained(tmp_path, text, name, [TOPK], cache=tmp_path / "cache")["topk"]
        assert all(torch.equal(plain[site].W_enc, cached[site].W_enc) for site in plain)
