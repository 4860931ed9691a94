"""Everything the benchmark makes lies where its data lies. There is no GPU in CI, so the default device is one on which
nothing can be computed: a tensor made without a thought of where does not go unnoticed.
"""

import pytest
import torch

from scalar_sae.benchmark.config import LOCAL, ScoreConfig, Texts
from scalar_sae.benchmark.ranking import RANKINGS
from scalar_sae.benchmark.score import score
from tests.helpers import tiny_pair

TEXTS = Texts(torch.arange(30).view(3, 10) % 32, torch.arange(5, 25).view(2, 10), {"fingerprint": "f"})


@pytest.mark.parametrize("ranking", [*RANKINGS, LOCAL])
@pytest.mark.parametrize("block", ["ff_layer.0", "ff_block.0", "transformer_block.0"])
def test_scores_do_not_depend_on_the_default_device(block: str, ranking: str):
    pair = tiny_pair(block)
    config = ScoreConfig(rankings={ranking: 2}, prompts=2, context=10, ablation="mean" if ranking == "ig" else "zero")
    here = score(pair, TEXTS, "m", ranking, config)
    with torch.device("meta"):
        there = score(pair, TEXTS, "m", ranking, config)
    assert there.kl_circuit == here.kl_circuit
    assert there.ci == here.ci
