"""The block of a pair at some of the tokens."""

import pytest
import torch

from scalar_sae.scoring.pair import Pair, read
from scalar_sae.sites import Block
from tests.helpers import random_sae
from tests.lm.families import FAMILIES, PARALLEL, family_lm

BLOCKS = ("ff_layer.1", "ff_block.1", "attn_block.1", "transformer_block.1", "resid_mid.0->resid_post.1")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("block", [*BLOCKS, "attn_out.1->resid_post.1"])
def test_a_block_at_some_tokens_is_the_whole_block_there(name: str, block: str):
    between = Block.parse(block)
    if name in PARALLEL and "resid_mid" in (between.up.kind, between.down.kind):
        pytest.skip("a model whose attention runs beside its MLP has no resid_mid")
    pair = Pair(family_lm(name), between, random_sae(16, 24, 4, 0), random_sae(16, 20, 4, 1))
    (prompt,) = read(pair, torch.arange(2, 14).view(1, 12))
    x = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0))
    whole = pair.compute(x, prompt.up_skip)
    for where in (torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < 0.3, torch.zeros(3, 12).bool()):
        found = pair.compute_at(where, x, prompt.up_skip)
        torch.testing.assert_close(found, whole[where], atol=1e-4, rtol=1e-4)
