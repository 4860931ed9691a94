"""Blocks of models in half precision are computed in float32, so SCALAR's identities hold as they do in float32."""
# pyright: reportUnknownLambdaType=false, reportPrivateUsage=false

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scalar_sae.lm.model import LanguageModel
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.memory import resident
from scalar_sae.scoring.pair import Pair, read
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.score import score
from scalar_sae.scoring.sweep import closed_form
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import GlobalEdges
from scalar_sae.scoring.sweep.subcircuits import sweep
from scalar_sae.scoring.texts import Texts
from scalar_sae.sites import Block
from tests.helpers import random_sae
from tests.lm.families import DTYPES, FAMILIES, PARALLEL, POST_NORM, family_hf, family_lm, upcast
from tests.reference import scorer

TOKENS = torch.arange(33).view(3, 11) * 5 % 64
HALF = DTYPES[1:]
every_half = pytest.mark.parametrize("dtype", HALF, ids=lambda dtype: str(dtype)[6:])
every_family = pytest.mark.parametrize("family", FAMILIES)


def block_of(family: str) -> str:
    return "ff_layer.1" if family in PARALLEL else "ff_block.1"


def pair_of(lm: LanguageModel, block: str) -> Pair:
    return Pair(lm, Block.parse(block), random_sae(16, 24, 4, 1), random_sae(16, 20, 4, 2))


@pytest.mark.parametrize("outlier", [False, True], ids=["", "outlier"])
@every_half
@every_family
def test_both_identities_hold_through_the_closed_form(family: str, dtype: torch.dtype, outlier: bool):
    pair = pair_of(family_lm(family, dtype, outlier=outlier), block_of(family))
    assert Readout.of(pair).ff is not None
    prompt = next(read(pair, TOKENS[:1]))
    keep_index = keep_indices(
        torch.rand(24, 20, generator=torch.Generator().manual_seed(0)), np.array([0, 100, 480]), 0
    )
    subs = [(sub.pre_acts.clone(), sub.acts) for sub in sweep(pair, prompt, GlobalEdges(keep_index), 3)]
    close: dict[str, Any] = {"atol": 2e-6 * prompt.x_down.abs().max().item() + 2e-5, "rtol": 1e-4}
    for index, (pre_acts, _) in enumerate(subs):
        torch.testing.assert_close(pre_acts, scorer.pre_acts(pair, prompt, keep_index <= index), **close)
    none, _, everything = (acts for _, acts in subs)
    ablated = pair.compute(pair.up.b_dec.expand(1, 11, -1), prompt.up_skip)
    torch.testing.assert_close(none, pair.down.encode(ablated)[0], **close)
    torch.testing.assert_close(everything, pair.full_circuit(prompt), **close)


@every_half
@every_family
def test_a_block_with_attention_is_that_of_the_same_weights_in_float32(family: str, dtype: torch.dtype):
    half = pair_of(family_lm(family, dtype, outlier=True), "transformer_block.1")
    wide = replace(half, lm=upcast(family, dtype, outlier=True))
    x = torch.randn(2, 11, 16, generator=torch.Generator().manual_seed(0))
    ours, theirs = half.compute(x, None), wide.compute(x, None)
    assert not torch.equal(half.lm.run(half.block.up, half.block.down, x), theirs)
    torch.testing.assert_close(ours, theirs, atol=4e-6 * theirs.abs().max().item(), rtol=0)


@every_half
@pytest.mark.parametrize("block", ["ff_block.0", "transformer_block.0"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_scores_are_those_of_the_same_weights_in_float32_within_the_interval(
    family: str, block: str, dtype: torch.dtype
):
    texts = Texts(
        *(torch.randint(0, 64, (n, 11), generator=torch.Generator().manual_seed(n)) for n in (8, 20)), data={}
    )
    config = ScoreConfig(
        ranking="leave_one_out_with_prior", rank_prompts=8, prompts=20, context=11, edges="coarse", special="count"
    )
    half, wide = (score(pair_of(lm, block), texts, config) for lm in (family_lm(family, dtype), upcast(family, dtype)))
    assert half.kl_circuit[-1] < 1e-5
    for name in ("log_area", "edges_at.90"):
        low, high = wide.ci[name] or (0.0, 0.0)
        value: Any = half.log_area if name == "log_area" else half.edges_at["90"]
        assert low <= value <= high, name


def test_the_block_alone_is_copied():
    """A layer in float32, once; a model in float32 is not copied at all."""
    pair = pair_of(LanguageModel.load(family_hf("llama", torch.bfloat16)), "transformer_block.1")
    of_layer = sum(4 * p.numel() for p in pair.lm.hf.model.layers[1].parameters())
    assert pair.lm.copied(pair.block.up, pair.block.down) == of_layer
    assert set(pair.computation.layers) == {1}
    assert pair.computation is pair.computation
    assert pair.lm.hf.model.layers[1].mlp.up_proj.weight.dtype == torch.bfloat16
    wide = pair_of(family_lm("llama"), "transformer_block.1")
    assert wide.lm.copied(wide.block.up, wide.block.down) == 0
    assert wide.computation.layers[1] is wide.lm._anatomy.layers[1]
    assert resident(pair) == resident(wide)


def test_the_closed_form_of_a_norm_behind_the_mlp_is_the_modules(monkeypatch: pytest.MonkeyPatch):
    for family in POST_NORM:
        pair = pair_of(family_lm(family), "ff_block.1")
        prompt = next(read(pair, TOKENS[:1]))
        keep_index = keep_indices(
            torch.rand(24, 20, generator=torch.Generator().manual_seed(0)), np.array([0, 50, 200, 480]), 0
        )
        closed = [sub.pre_acts.clone() for sub in sweep(pair, prompt, GlobalEdges(keep_index), 4)]
        with monkeypatch.context() as patch:
            patch.setattr(closed_form, "_last_feed_forward", lambda pair: (None, pair.block.up))
            plain = [sub.pre_acts.clone() for sub in sweep(pair, prompt, GlobalEdges(keep_index), 4)]
        torch.testing.assert_close(closed, plain, atol=2e-5, rtol=1e-4)
