"""A transcoder downstream of a block: read at one site, spliced in at another."""

from dataclasses import replace

import pytest
import torch

from scalar_sae.benchmark.pair import Pair, read
from scalar_sae.errors import UserError
from scalar_sae.saes.norm import InputNorm
from scalar_sae.sites import Block, Site
from tests.helpers import random_sae, tiny_lm

TOKENS = torch.arange(24).view(2, 12)


def test_its_output_goes_where_it_writes():
    lm = tiny_lm()
    up, down = random_sae(16, 24, 4, 1), replace(random_sae(16, 20, 4, 2), writes=Site("mlp_out", 1))
    pair = Pair(lm, Block.parse("resid_post.0->mlp_in.1"), up, down)
    prompts = list(read(pair, TOKENS))
    acts = down.encode(lm.activations(TOKENS, [Site("mlp_in", 1)])[Site("mlp_in", 1)])
    resid_mid = lm.activations(TOKENS, [Site("resid_mid", 1)])[Site("resid_mid", 1)]
    logits = lm.logits_from(Site("resid_post", 1), resid_mid + down.decode(acts))
    for prompt, one, expected in zip(prompts, acts, logits.log_softmax(-1), strict=True):
        torch.testing.assert_close(pair.log_probs(down.decode(one).unsqueeze(0), prompt)[0], expected)


def test_reading_the_residual_stream_and_writing_the_mlps_output():
    lm = tiny_lm()
    down = replace(random_sae(16, 20, 4, 2), writes=Site("mlp_out", 0))
    pair = Pair(lm, Block.parse("resid_pre.0->resid_mid.0"), random_sae(16, 24, 4, 1), down)
    prompt = next(read(pair, TOKENS))
    true = lm.activations(TOKENS, [Site("resid_mid", 0), Site("mlp_out", 0)])
    spliced = pair.log_probs(true[Site("mlp_out", 0)][:1, :1].expand(-1, 12, -1), prompt)
    assert prompt.down_skip is not None
    torch.testing.assert_close(prompt.down_skip, true[Site("resid_mid", 0)][:1])
    torch.testing.assert_close(spliced[0, 0], lm.logits(TOKENS).log_softmax(-1)[0, 0])


@pytest.mark.parametrize(
    ("end", "change", "message"),
    [
        ("up", {"writes": Site("resid_post", 0)}, "a transcoder can stand downstream of a block, not upstream"),
        ("down", {"norm": InputNorm("layer_norm", 1e-5)}, "only what decodes from its latents alone"),
        ("up", {"W_skip": torch.eye(16)}, "only what decodes from its latents alone"),
        ("down", {"writes": Site("mlp_out", 5)}, "mlp_out.5: tiny has 2 layers"),
        ("down", {"W_dec": torch.zeros(20, 7), "b_dec": torch.zeros(7)}, "writes 7 dimensions, tiny has 16"),
    ],
)
def test_what_cannot_be_scored_yet(end: str, change: dict[str, object], message: str):
    ends = {"up": random_sae(16, 20, 4, 1), "down": random_sae(16, 20, 4, 2)}
    ends[end] = replace(ends[end], **change)
    with pytest.raises(UserError, match=message):
        Pair(tiny_lm(), Block.parse("ff_block.0"), **ends)
