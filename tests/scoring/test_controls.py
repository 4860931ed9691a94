"""Controls: dead latents change nothing that is computed, shuffled weights keep only their values."""

from dataclasses import replace

import pytest
import torch

from scalar_sae.saes.activation import Activation, GroupMax, JumpReLU, ReLU, TopK
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.controls import padded, shuffled
from scalar_sae.scoring.score import score
from scalar_sae.scoring.texts import Texts
from tests.helpers import tiny_pair

TEXTS = Texts(torch.arange(30).view(3, 10) % 32, torch.arange(5, 25).view(2, 10), {"fingerprint": "f"})
CONFIG = ScoreConfig(ranking="leave_one_out", rank_prompts=3, prompts=2, context=10, edges="0,1,3,10,30,60,100,200")


@pytest.mark.parametrize("rule", [ReLU(), TopK(3), JumpReLU(torch.rand(12)), GroupMax(4)], ids=str)
def test_dead_latents_change_neither_code_nor_reconstruction(rule: Activation):
    pair = tiny_pair("ff_block.0")
    narrow = _sae(pair.up.d_model, rule)
    wide = padded(replace(pair, up=narrow), 0).up
    assert wide.d_sae == 24
    x = torch.randn(50, pair.up.d_model, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(wide.decode(wide.encode(x)), narrow.decode(narrow.encode(x)))
    assert (wide.encode(x) > 0).sum() == (narrow.encode(x) > 0).sum() > 0


def _sae(d_model: int, rule: Activation) -> SAE:
    g = torch.Generator().manual_seed(1)
    return SAE(
        *(torch.randn(*shape, generator=g) for shape in ((d_model, 12), (12,), (12, d_model), (d_model,))),
        activation=rule,
    )


@pytest.mark.parametrize("block", ["ff_block.0", "transformer_block.0"])
def test_padding_moves_no_recovery_score(block: str):
    pair, config = tiny_pair(block), CONFIG.model_copy(update={"ranking": "leave_one_out_with_prior"})
    plain, wide = (score(pair, TEXTS, config.model_copy(update={"control": control})) for control in (None, "padded"))
    assert wide.control == "padded"
    assert wide.n_edges == 4 * plain.n_edges
    assert wide.n_live_edges == plain.n_live_edges
    for q in ("50", "90"):  # ties at zero effect come in another order among more of their kind
        assert wide.edges_at[q] == pytest.approx(plain.edges_at[q], rel=0.02)
        assert wide.live_edges_at[q] == pytest.approx(plain.live_edges_at[q], rel=0.02)


def test_shuffled_weights_are_the_same_numbers_in_another_order():
    pair = tiny_pair("ff_block.0")
    other = shuffled(pair, 0)
    for mine, theirs in zip(pair.lm.parameters(), other.lm.parameters(), strict=True):
        assert torch.equal(mine.flatten().sort().values, theirs.flatten().sort().values)
    tokens = TEXTS.scoring
    assert (other.lm.logits(tokens) - pair.lm.logits(tokens)).abs().max() > 0.1
    assert other.up is pair.up
    assert torch.equal(shuffled(pair, 0).lm.logits(tokens), other.lm.logits(tokens))
