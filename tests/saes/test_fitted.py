"""SAEs that read before a norm's gain, or a stream without its mean, on models that have both."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from scalar_sae import fitted
from scalar_sae.corpora import Corpus
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.saes.activation import ReLU
from scalar_sae.saes.export import export
from scalar_sae.saes.normalization import InputNorm
from scalar_sae.saes.reparam import with_input_centred
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import SaeCard, find_saes, load_saes, save_sae
from scalar_sae.scoring.config import ScoreConfig, held_out
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.score import score
from scalar_sae.sites import Block, Site
from scalar_sae.tokenizer import Ascii
from tests.helpers import random_sae

TOKENS = torch.randint(0, 128, (4, 12), generator=torch.Generator().manual_seed(0))
HOOK = Site.parse("blocks.1.ln2.hook_normalized")


def llama(gain: torch.Tensor) -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    hf = LlamaForCausalLM(config)
    hf.model.layers[1].post_attention_layernorm.weight.data = gain
    return LanguageModel(hf, "tiny llama", Ascii())


def gpt2(centred: bool) -> LanguageModel:
    """A GPT-2 whose stream has a mean, or the same one with its writing weights centred: the same logits."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=128, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3, bos_token_id=None,
        eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config)
    with torch.no_grad():
        body = hf.transformer
        body.wte.weight.add_(0.4)
        for block in body.h:
            block.mlp.c_proj.bias.add_(torch.rand(16))
        writing = [body.wte.weight, body.wpe.weight]
        for block in body.h:
            writing += [
                block.attn.c_proj.weight,
                block.attn.c_proj.bias,
                block.mlp.c_proj.weight,
                block.mlp.c_proj.bias,
            ]
        for weight in writing if centred else ():
            weight.sub_(weight.mean(-1, keepdim=True))
    return LanguageModel(hf, "centred" if centred else "plain", Ascii())


def test_a_gain_that_lies_behind_the_hook_is_folded():
    gain = 0.5 + torch.rand(16)
    lm, sae, site = llama(gain), random_sae(16, 24, 4, 1), Site("mlp_in", 1)
    x = lm.activations(TOKENS, [site])[site]
    before = x / gain
    (there, found), *_ = fitted(lm, {HOOK: sae}).items()
    assert (str(there), there.normalized) == ("mlp_in.1", False)
    torch.testing.assert_close(found.encode(x), sae.encode(before), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.decode(sae.encode(before)), sae.decode(sae.encode(before)) * gain)
    skip = replace(sae, writes=Site("mlp_out", 1), W_skip=torch.randn(16, 16))
    (transcoder,) = fitted(lm, {HOOK: skip}).values()
    acts = skip.encode(before)
    torch.testing.assert_close(transcoder.decode(acts, x), skip.decode(acts, before), atol=1e-5, rtol=1e-5)
    assert next(iter(fitted(lm, {there: found}).values())) is found, "nothing is folded twice"


def test_our_own_files_and_exports_keep_where_an_sae_reads(tmp_path: Path):
    lm, sae, site = llama(0.5 + torch.rand(16)), random_sae(16, 24, 4, 1), Site("mlp_in", 1)
    x = lm.activations(TOKENS, [site])[site]
    (expected,) = fitted(lm, {HOOK: sae}).values()
    save_sae(sae, SaeCard.of(sae, "topk", "topk", HOOK, {}), tmp_path / "own")
    export(list(find_saes(tmp_path / "own")), "saelens", tmp_path / "lens", model="tiny")
    export(list(find_saes(tmp_path / "lens")), "scalar", tmp_path / "back")
    for folder in ("own", "lens", "back"):
        (found,) = fitted(lm, load_saes(tmp_path / folder)["topk"]).values()
        torch.testing.assert_close(found.encode(x), expected.encode(x))
    with pytest.raises(UserError, match="reads before a norm's gain"):
        export(list(find_saes(tmp_path / "own")), "sparsify", tmp_path / "sparsify", layers="layers")


def test_what_is_not_fitted_is_not_used():
    lm, sae = llama(0.5 + torch.rand(16)), random_sae(16, 24, 4, 1)
    with pytest.raises(UserError, match=r"hook_normalized, which in tiny llama lies before the norm's gain; .*fitted"):
        Pair.between(lm, Block.parse("mlp_in.1->resid_post.1"), {HOOK: sae, Site("resid_post", 1): sae})
    with pytest.raises(UserError, match="gain in tiny llama is zero in places"):
        fitted(llama(torch.arange(16.0)), {HOOK: sae})
    with pytest.raises(UserError, match="cannot be folded"):
        fitted(lm, {HOOK: replace(sae, norm=InputNorm("constant_norm"))})
    plain = llama(torch.ones(16))
    assert Pair.between(plain, Block.parse("mlp_in.1->resid_post.1"), {HOOK: sae, Site("resid_post", 1): sae})


def test_a_layer_norm_s_hook_is_taken_to_lie_behind_its_gain_and_that_is_said(capsys: pytest.CaptureFixture[str]):
    lm, sae = gpt2(centred=False), random_sae(16, 24, 4, 1)
    lm.hf.transformer.h[1].ln_2.weight.data.mul_(2)
    (found,) = fitted(lm, {HOOK: sae}).values()
    assert found is sae
    assert "before version 3" in capsys.readouterr().err


@given(seed=st.integers(0, 9), size=st.floats(0.1, 10))
def test_an_sae_of_the_centred_stream_reads_the_uncentred_one(seed: int, size: float):
    sae = random_sae(16, 24, 4, seed)
    x = size * torch.randn(5, 16, generator=torch.Generator().manual_seed(seed)) + size
    mean = x.mean(-1, keepdim=True)
    found = with_input_centred(sae)
    u = found.pre_acts(x)
    torch.testing.assert_close(u, sae.pre_acts(x - mean), atol=1e-4 * size, rtol=1e-4)
    acts = sae.encode(x - mean)
    torch.testing.assert_close(found.decode(acts, x), sae.decode(acts) + mean, atol=1e-4 * size, rtol=1e-4)


def test_centring_that_cannot_be_folded_is_refused_and_one_that_need_not_be_is_left():
    sae = random_sae(16, 24, 4, 0)
    own = replace(sae, norm=InputNorm("layer_norm", 1e-5))
    x = torch.randn(6, 16) + 3
    centred = x - x.mean(-1, keepdim=True)
    acts = own.encode(centred)
    torch.testing.assert_close(with_input_centred(own).encode(x), acts, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(own.decode(acts, x), own.decode(acts, centred) + x.mean(-1, keepdim=True))
    for wrong in (replace(sae, norm=InputNorm("constant_norm")), replace(sae, W_skip=torch.eye(16))):
        with pytest.raises(UserError, match="cannot be folded"):
            with_input_centred(wrong)


def without_mean(sae: SAE) -> SAE:
    """An SAE whose reconstructions have no mean, as those of a stream without one."""
    W_dec = sae.W_dec - sae.W_dec.mean(1, keepdim=True)
    return replace(sae, W_dec=W_dec, b_dec=sae.b_dec - sae.b_dec.mean())


def scored(lm: LanguageModel, saes: dict[Site, SAE]) -> list[float]:
    """Divergences along the curve of a block between two sites on the stream."""
    text = Corpus("text", TOKENS.flatten().int(), torch.cat([TOKENS.flatten()] * 8).int(), lm.tokenizer.fingerprint)
    config = ScoreConfig(ranking="leave_one_out_with_prior", rank_prompts=2, prompts=2, context=12, edges="0,20,60,480")
    pair = Pair.between(lm, Block.parse("ff_block.0"), saes)
    return score(pair, held_out(text, config), config).kl_model


def test_a_score_on_the_model_is_the_score_on_its_centred_twin():
    """An SAE of the centred stream, folded: the plain model with it is the centred model with the SAE as it was."""
    plain, centred = gpt2(centred=False), gpt2(centred=True)
    torch.testing.assert_close(plain.logits(TOKENS), centred.logits(TOKENS), atol=1e-4, rtol=1e-4)
    up, down = (without_mean(random_sae(16, width, 4, width)) for width in (24, 20))
    saes = {Site("resid_mid", 0): up, Site("resid_post", 0): replace(down, activation=ReLU())}
    folded = {site: with_input_centred(sae) for site, sae in saes.items()}
    for site, sae in saes.items():
        x, c = (lm.activations(TOKENS, [site])[site] for lm in (plain, centred))
        torch.testing.assert_close(x - x.mean(-1, keepdim=True), c, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(folded[site].encode(x), sae.encode(c), atol=1e-3, rtol=1e-3)
    assert scored(plain, folded) == pytest.approx(scored(centred, saes), rel=1e-3)
    assert scored(plain, saes) != pytest.approx(scored(centred, saes), rel=1e-2), "the fold makes the difference"
