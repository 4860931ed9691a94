"""Everything the benchmark makes lies where its data lies. There is no GPU in CI, so the default device is one on which
nothing can be computed: a tensor made without a thought of where does not go unnoticed. `pytest --device cuda` computes
on a GPU, and compares with the CPU.
"""

import pytest
import torch

from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.rankings.registry import RANKINGS
from scalar_sae.scoring.score import score
from scalar_sae.scoring.texts import Texts
from tests.helpers import moved, tiny_pair

TEXTS = Texts(torch.arange(30).view(3, 10) % 32, torch.arange(5, 25).view(2, 10), {"fingerprint": "f"})


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("block", ["ff_layer.0", "ff_block.0", "transformer_block.0"])
def test_scores_do_not_depend_on_a_device(block: str, ranking: str, device: torch.device):
    pair = tiny_pair(block)
    config = ScoreConfig(
        ranking=ranking, rank_prompts=2, prompts=2, context=10, ablation="mean" if ranking == "ig" else "zero"
    )
    here = score(pair, TEXTS, config, method="m")
    with torch.device("meta"):
        there = score(moved(pair, device), TEXTS, config, method="m")
    if device.type == "cpu":
        assert there.kl_circuit == here.kl_circuit
        assert there.ci == here.ci
    else:  # edges whose scores differ by rounding alone may change places
        ends = {"kl_circuit": (0, -1), "kl_model": (0, -1)}
        for curve, places in ends.items():
            for place in places:
                assert getattr(there, curve)[place] == pytest.approx(getattr(here, curve)[place], rel=1e-3, abs=1e-5)
        assert there.floor.kl == pytest.approx(here.floor.kl, rel=1e-3, abs=1e-5)
        assert there.log_area == pytest.approx(here.log_area, rel=0.05)
