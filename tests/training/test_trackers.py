"""What TensorBoard and W&B are told, with stand-ins for both."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from scalar_sae.errors import UserError
from scalar_sae.io import Events
from scalar_sae.training.trackers import Tracker
from tests.test_study import scalar
from tests.training.runs import STAIRS, trained


class Told:
    """Both libraries: a SummaryWriter and a run."""

    def __init__(self, *_: Any, **settings: Any) -> None:
        self.settings = settings
        self.scalars: dict[tuple[str, int], float] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name, step] = value

    def log(self, values: dict[str, float], step: int) -> None:
        self.scalars |= {(name, step): value for name, value in values.items()}

    def flush(self) -> None: ...


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_is_told_every_number_of_the_log(
    name: str, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
):
    told = Told()
    stand_in: Any = ModuleType(name)
    stand_in.SummaryWriter = lambda *_: told
    stand_in.init = lambda **_: told
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, stand_in)
    events = Events(tmp_path / "events.jsonl")
    events.listeners.append(Tracker(name, tmp_path))
    trained(tmp_path, text, "run", [STAIRS], events, validations=2)
    lines = [SimpleNamespace(**json.loads(line)) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if line.kind == "validate")
    assert told.scalars["validate/staircase/saes/resid_post.1/fvu", 20] == last.saes["resid_post.1"]["fvu"]
    assert told.scalars["validate/staircase/saes/resid_post.1/l0_per_chunk/1", 20] > 0
    assert told.scalars["validate/staircase/kl_all", 10] > 0
    train = next(line for line in lines if line.kind == "train")
    assert told.scalars["train/loss/staircase/resid_mid.0", 20] == train.loss["staircase/resid_mid.0"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_an_extra_that_is_not_there_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(UserError, match=rf"--log {name}: cannot be imported .*pip install 'scalar-sae\[{name}\]'"):
        Tracker(name, tmp_path)


def test_a_tracker_that_does_not_exist_claims_no_directory(tmp_path: Path):
    done = scalar("train", "quickstart", "--out", tmp_path / "run", "--log", "tensorbord", check=False)
    assert done.returncode == 2
    assert "did you mean 'tensorboard'" in done.stderr
    assert not (tmp_path / "run").exists()
