"""Two workers train the SAEs that one trains: every method, stopped by a signal on the way."""

import json
from pathlib import Path

import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.io import Events
from scalar_sae.saes.store import load_sae
from tests.forks import Forks
from tests.training.runs import STAIRS, TOPK, trained

HERE = {"sites": ["resid_mid.0"], "expansion": 2}
SPARSITY = {"weight": 0.1, "target_l0": 4}
METHODS = [
    {**TOPK, "auxk": 0.5, "dead_tokens": 200, "k_aux": 4, "unit_norm": True, "median_bias": True, "multi": 2},
    STAIRS,
    {"method": "staircase_jumprelu", "along": "ff_blocks", "expansion": 2, "sparsity": [SPARSITY]},
    {"method": "jacobian", "along": "ff_blocks", "k": 2, "expansion": 2, "share": 0.5},
    {"method": "staircase_jacobian", "k": 2, "expansion": 2, "share": 0.1},
    {"method": "relu", **HERE, "sparsity": SPARSITY},
    {"method": "gated", **HERE, "sparsity": SPARSITY},
    {"method": "jumprelu", **HERE, "bandwidth": 0.1, "loss": "target_l0", "sparsity": SPARSITY},
    {"method": "batch_topk", **HERE, "k": 2, "dead_tokens": 200},
    {"method": "matryoshka", **HERE, "k": 2, "dead_tokens": 200},
    {"method": "llama_scope", **HERE, "k": 2},
    {"method": "mutual_choice", **HERE, "k": 2},
    {"method": "feature_choice", **HERE, "k": 2, "first_phase": 0.5},
    {"method": "g_sae", **HERE, "k": 2},
    {"method": "atm", **HERE, "sparsity": SPARSITY},
]
AT = {"tokens": 1_600, "validations": 2, "buffer_tokens": 400}
WORK = """
import signal, sys; from pathlib import Path
from scalar_sae import distributed
from scalar_sae.io import Events
from tests.training.test_resume import Stop
from tests.training.test_workers import AT, METHODS
from tests.training.runs import trained
distributed.init()
folder = Path(sys.argv[1])
run = lambda events: trained(folder, folder / "text.txt", "two", METHODS, events, folder / "cache", **AT)
try:
    run(Stop(8, signal.SIGTERM) if distributed.rank() == 0 else Events(None))
    raise AssertionError("not stopped")
except SystemExit as stopped:
    assert stopped.code == 143
run(Events(folder / "two" / "events.jsonl"))
"""


def test_two_workers_train_what_one_trains(tmp_path: Path, text: Path, forks: Forks):
    forks.run(WORK, tmp_path, n_workers=2)
    (tmp_path / "one").mkdir()
    trained(tmp_path, text, "one", METHODS, Events(tmp_path / "one" / "events.jsonl"), **AT)
    for path in sorted((tmp_path / "one").rglob("sae.json")):
        (one, card), (two, other) = (load_sae(tmp_path / name / path.parent.relative_to(tmp_path / "one"))
                                     for name in ("one", "two"))  # fmt: skip
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            torch.testing.assert_close(
                getattr(one, name), getattr(two, name), atol=1e-4, rtol=1e-3, msg=f"{path} {name}"
            )
        if card.activation == "jumprelu":
            torch.testing.assert_close(one.activation.threshold, two.activation.threshold, atol=1e-4, rtol=1e-3)
        assert card.recipe["kept"]["val_loss"] == pytest.approx(other.recipe["kept"]["val_loss"], rel=1e-3)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "events.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    losses = [next(line["loss"] for line in lines if line["kind"] == "train" and line["step"] == 16)
              for lines in (one, two)]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    kinds = [line["kind"] for line in two]
    assert kinds.count("start") == 1, "only the first worker writes"


def test_a_batch_that_cannot_be_shared_is_named(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scalar_sae.distributed.world_size", lambda: 3)
    with pytest.raises(UserError, match="batch_tokens = 100 is not a multiple of the 3 workers"):
        trained(tmp_path, text, "run", [TOPK])
