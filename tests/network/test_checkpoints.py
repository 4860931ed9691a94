"""Real checkpoints from the Hub, down the normal path; off unless asked for: pytest tests/network --network.

Downloads some 15 GB into Hugging Face's cache, most of it models. Gated ones (Gemma, Llama) are left out.
"""

import pytest
import torch

from scalar_sae.corpora import windows
from scalar_sae.lm.model import LanguageModel
from scalar_sae.saes.store import load_saes
from scalar_sae.sites import Site

CHECKPOINTS = (
    "openai-community/gpt2",
    "EleutherAI/pythia-70m",
    "HuggingFaceTB/SmolLM-135M",  # Llama
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen3-0.6B",
    "facebook/opt-125m",
    "microsoft/phi-1_5",
    "allenai/OLMo-2-0425-1B",
)

RECONSTRUCTED = {
    "SAELens": ("openai-community/gpt2", "jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre", "resid_pre.8"),
    "dictionary_learning": (
        "EleutherAI/pythia-160m-deduped",
        "adamkarvonen/saebench_pythia-160m-deduped_width-2pow12_date-0108/"
        "TopK_pythia-160m-deduped__0108/resid_post_layer_8/trainer_0",
        "resid_post.8",
    ),
    "sparsify": ("EleutherAI/pythia-410m", "EleutherAI/sae-pythia-410m-65k/layers.5.mlp", "mlp_out.5"),
}
"""SAEs of models that can be downloaded by everyone: model, path on the Hub, site."""

READ = {
    "Gemma Scope": (
        "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "resid_post.20", None, 2304,
    ),
    "Gemma Scope transcoder": (
        "google/gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76", "mlp_in.0", "mlp_out.0", 2304,
    ),
    "Llama Scope": (
        "fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L15R-8x", "resid_post.15", None, 4096,
    ),
}  # fmt: skip
"""SAEs of gated models: path on the Hub, sites read and written, d_model."""


def prompts(lm: LanguageModel) -> torch.Tensor:
    ids, _ = lm.tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 10)
    return windows(ids, 32, start=lm.tokenizer.start)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_real_checkpoint(name: str):
    lm = LanguageModel.load(name)
    tokens = prompts(lm)
    clean = lm.logits(tokens)
    assert torch.equal(clean, lm.hf(tokens).logits.float())
    for layer in range(lm.n_layers):
        site = Site("resid_post", layer)
        assert torch.equal(lm.logits_from(site, lm.activations(tokens, [site])[site]), clean)


@pytest.mark.parametrize("format_", RECONSTRUCTED)
def test_real_saes_reconstruct_what_they_were_trained_on(format_: str):
    """All but a prompt's first token, whose activation is an outlier in most models."""
    name, path, place = RECONSTRUCTED[format_]
    lm, site = LanguageModel.load(name), Site.parse(place)
    ((_, saes),) = load_saes(f"hf://{path}").items()
    x = lm.activations(prompts(lm), [site])[site][:, 1:].flatten(0, 1)
    sae = saes[site]
    acts = sae.encode(x)
    x_hat = sae.decode(acts, x)
    fvu = (x_hat - x).square().sum() / (x - x.mean(0)).square().sum()
    assert fvu < 0.5
    assert 1 < (acts > 0).sum(-1).float().mean() < 0.1 * sae.d_sae


@pytest.mark.parametrize("format_", READ)
def test_real_saes_are_read(format_: str):
    path, reads, writes, d_model = READ[format_]
    ((_, saes),) = load_saes(f"hf://{path}").items()
    ((site, sae),) = saes.items()
    assert (str(site), sae.d_model) == (reads, d_model)
    assert (None if sae.writes is None else str(sae.writes)) == writes
    x = torch.randn(4, d_model, generator=torch.Generator().manual_seed(0))
    assert sae.decode(sae.encode(x)).isfinite().all()
