"""Real checkpoints from the Hub; off unless asked for: pytest tests/network --network."""

import pytest
import torch

from scalar_sae.corpora import windows
from scalar_sae.lm.model import LanguageModel
from scalar_sae.sites import Site

CHECKPOINTS = ("openai-community/gpt2", "EleutherAI/pythia-70m", "Qwen/Qwen2.5-0.5B", "facebook/opt-125m")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_real_checkpoint(name: str):
    lm = LanguageModel.load(name)
    ids, _ = lm.tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 10)
    tokens = windows(ids, 32, bos=lm.tokenizer.bos)
    clean = lm.logits(tokens)
    assert torch.equal(clean, lm.hf(tokens).logits.float())
    for layer in range(lm.n_layers):
        site = Site("resid_post", layer)
        assert torch.equal(lm.logits_from(site, lm.activations(tokens, [site])[site]), clean)
