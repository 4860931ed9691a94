"""Predicted parameters, arithmetic and memory, against what is known and what is used."""

import json
from pathlib import Path

import pytest
import torch

from scalar_sae.io import Events
from scalar_sae.saes.components import ff_jacobian
from scalar_sae.saes.methods.base import Acts, Progress, TrainableSAEs
from scalar_sae.training import cost as costs
from scalar_sae.training import memory
from scalar_sae.training.config import TrainConfig
from scalar_sae.training.learner import learners
from tests.helpers import Shape
from tests.training.runs import SMALL, TOPK, trained
from tests.training.test_workers import METHODS

D, D_SAE = 16, 64


def test_a_relu_sae_costs_five_products():
    method = {"method": "relu", "sites": ["resid_mid.0"], "expansion": 4}
    (learner,) = learners(TrainConfig(saes=[method], **SMALL), Shape(D, 1))
    found = costs.cost(learner.trainee, D, 100)
    assert found.parameters == 2 * D * D_SAE + D + D_SAE
    assert found.flop_per_token == 5 * 2 * D * D_SAE  # encode, decode, and the gradients of W_enc, W_dec and the code
    assert found.step_bytes > 4 * found.parameters


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["method"])
def test_bytes_grow_as_predicted_and_nothing_is_changed(method: dict):
    trainee = learners(TrainConfig(saes=[method], **SMALL), Shape(D, 2))[0].trainee
    before = {name: tensor.clone() for name, tensor in trainee.state_dict().items()}
    predicted = costs.cost(trainee, D, 1000).step_bytes
    torch.testing.assert_close(dict(trainee.state_dict()), before, atol=0, rtol=0, equal_nan=True)
    assert all(parameter.grad is None for parameter in trainee.parameters())
    acts = {read: torch.randn(1000, D) for read in trainee.reads}
    most = [_bytes_of_a_step(trainee, acts, progress) for progress in (Progress(0, 2), Progress(1, 1))]
    assert max(most) == pytest.approx(predicted, rel=0.1)


def test_the_first_steps_of_llama_scope_are_foreseen():
    """They keep d_model / 2 = 32 of 64 latents a token, the last ones 2."""
    method = {"method": "llama_scope", "sites": ["resid_mid.0"], "k": 2, "expansion": 1}
    trainee = learners(TrainConfig(saes=[method], **SMALL), Shape(64, 1))[0].trainee
    predicted = costs.cost(trainee, 64, 1000).step_bytes
    acts = {read: torch.randn(1000, 64) for read in trainee.reads}
    first, last = (_bytes_of_a_step(trainee, acts, progress) for progress in (Progress(0, 100), Progress(99, 100)))
    assert predicted == pytest.approx(first, rel=0.1)
    assert predicted > 1.1 * last


def test_work_in_pieces_of_one_size_is_not_multiplied(monkeypatch: pytest.MonkeyPatch):
    """A Jacobian's rows are gathered for a few tokens at a time: how often depends on the batch."""
    monkeypatch.setattr(ff_jacobian, "CACHED", 2**12)
    method = {"method": "jacobian", "along": "ff_blocks", "k": 4, "expansion": 4}
    trainee = learners(TrainConfig(saes=[method], **SMALL), Shape(D, 1))[0].trainee
    acts = {read: torch.randn(3000, D) for read in trainee.reads}
    most = _bytes_of_a_step(trainee, acts, Progress(1, 1))
    assert costs.cost(trainee, D, 3000).step_bytes == pytest.approx(most, rel=0.1)


def _bytes_of_a_step(trainee: TrainableSAEs, acts: Acts, progress: Progress) -> int:
    with memory.unchanged(trainee), memory.Bytes() as used:
        torch.stack(list(trainee.losses(acts, progress).values())).sum().backward()
        trainee.after_backward()
    trainee.zero_grad()
    return max(moment.in_use for moment in used.history)


def test_a_topk_sae_costs_the_encoders_product():
    (learner,) = learners(
        TrainConfig(saes=[{"method": "topk", "sites": ["resid_mid.0"], "expansion": 4}], **SMALL), Shape(D, 1)
    )
    assert costs.cost(learner.trainee, D, 100).flop_per_token == 2 * D * D_SAE  # the rest goes by the selected latents


def test_what_is_foreseen_is_what_a_run_fills(tmp_path: Path, text: Path):
    """Every tensor of a whole run is counted, and the largest sum compared: all but what is kept though freed."""
    events = Events(tmp_path / "events.jsonl")
    with memory.Bytes() as used:
        trained(tmp_path, text, "run", METHODS[::4], events, validations=3)
    start = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[0])
    assert max(moment.in_use for moment in used.history) == pytest.approx(
        sum(start["memory"].values()) - start["memory"]["kept though freed"], rel=0.1
    )


def test_the_largest_phase_is_named(tmp_path: Path, text: Path):
    """Beside what stays there is one phase; here a validation, with its logits and spliced copies."""
    log = tmp_path / "events.jsonl"
    trained(tmp_path, text, "run", [TOPK], Events(log), validations=1)
    parts = json.loads(log.read_text().splitlines()[0])["memory"]
    assert set(parts) == {
        "a validation", "text", "language model", "weights and moments", "best weights", "buffer", "validation text",
        "kept though freed",
    }  # fmt: skip
