"""Predicted parameters and arithmetic, against what is known."""

import pytest
import torch

from scalar_sae.training import cost as costs
from scalar_sae.training.config import TrainConfig
from scalar_sae.training.learner import learners
from tests.helpers import Shape
from tests.training.runs import SMALL
from tests.training.test_workers import METHODS

D, D_SAE = 16, 64


def test_a_relu_sae_costs_five_products():
    method = {"method": "relu", "sites": ["resid_mid.0"], "expansion": 4}
    (learner,) = learners(TrainConfig(saes=[method], **SMALL), Shape(D, 1))
    found = costs.cost(learner.trainee, D)
    assert found.parameters == 2 * D * D_SAE + D + D_SAE
    assert found.flop_per_token == 5 * 2 * D * D_SAE  # encode, decode, and the gradients of W_enc, W_dec and the code


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["method"])
def test_arithmetic_is_linear_and_nothing_is_changed(method: dict, monkeypatch: pytest.MonkeyPatch):
    trainee = learners(TrainConfig(saes=[method], **SMALL), Shape(D, 2))[0].trainee
    before = {name: tensor.clone() for name, tensor in trainee.state_dict().items()}
    found = costs.cost(trainee, D)
    torch.testing.assert_close(dict(trainee.state_dict()), before, atol=0, rtol=0, equal_nan=True)
    assert all(parameter.grad is None for parameter in trainee.parameters())
    assert found.flop_per_token > 0
    tolerance = (
        0.5 if method["method"] == "mutual_choice" else 0.02
    )  # its auxiliary loss goes by what died in the probe
    monkeypatch.setattr(costs, "PROBE_TOKENS", 2 * costs.PROBE_TOKENS)
    assert costs.cost(trainee, D).flop_per_token == pytest.approx(found.flop_per_token, rel=tolerance)


def test_a_topk_sae_costs_the_encoders_product():
    (learner,) = learners(
        TrainConfig(saes=[{"method": "topk", "sites": ["resid_mid.0"], "expansion": 4}], **SMALL), Shape(D, 1)
    )
    assert costs.cost(learner.trainee, D).flop_per_token == 2 * D * D_SAE  # the rest goes by the selected latents
