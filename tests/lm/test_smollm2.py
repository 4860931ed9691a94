"""A real language model in bfloat16: the feed-forward half as plain tensors is what its modules compute on real text.

Reads `runs/models/smollm2-bfloat16` (`make smollm2 DTYPE=bfloat16`), or the folder of it that SMOLLM2 names.
"""

import os
from pathlib import Path

import pytest

from scalar_sae.corpora import load_corpus
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.norms import Norm
from scalar_sae.sites import Site

MODEL = Path(os.environ.get("SMOLLM2", "runs/models")) / "smollm2-bfloat16"
pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason=f"needs {MODEL}: make smollm2 DTYPE=bfloat16")


@pytest.mark.parametrize("layer", [0, 8, 20, 29])
def test_the_feed_forward_half_is_that_of_the_modules(layer: int):
    """To float32's rounding what a float32 copy computes, and to bfloat16's what the module does, at every token."""
    lm = LanguageModel.load(MODEL, dtype="bfloat16")
    tokens = load_corpus("python-docs", lm, n_train=1024).train[:1024].long().view(4, 256)
    start, end = Site("resid_mid", layer), Site("mlp_out", layer)
    at = lm.activations(tokens, [start, end])
    half = lm.feed_forward(layer)
    assert isinstance(half.norm, Norm)
    assert (half.norm.centred, half.norm.eps) == (False, 1e-5)
    ours = half.mlp(half.norm(at[start]))
    exact = lm.in_float32(start, end).run(start, end, at[start])
    for theirs, most in ((exact, 1e-5), (at[end], 0.03)):
        assert ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max() < most
