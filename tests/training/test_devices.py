"""Everything that training makes lies where the language model does. There is no GPU in CI, so the default device is
one on which nothing can be computed (as in tests/scoring/test_devices.py, and as there `--device cuda` computes on a
GPU).
"""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scalar_sae.corpora import load_corpus
from scalar_sae.io import Events
from scalar_sae.training.config import TrainConfig, validated
from scalar_sae.training.loop import train
from tests.helpers import tiny_lm
from tests.training.runs import SMALL
from tests.training.test_resume import Stop
from tests.training.test_workers import METHODS

SAME = ("staircase", "staircase_jacobian", "relu", "matryoshka", "mutual_choice")
"""They make no tensor that another method does not make."""
DIFFERENT = [method for method in METHODS if method["method"] not in SAME]


def test_training_does_not_depend_on_a_device(tmp_path: Path, text: Path, device: torch.device):
    settings = {**SMALL, "corpus": str(text), "tokens": 600, "validations": 2, "saes": DIFFERENT}
    config, corpus = validated(TrainConfig, settings, "train"), load_corpus(str(text), tiny_lm())
    here, there, lm = tmp_path / "here", tmp_path / "there", tiny_lm().to(device)
    train(config, tiny_lm(), corpus, here, Events(None))
    with torch.device("meta"):
        with pytest.raises(SystemExit):
            train(config, lm, corpus, there, Stop(3, signal.SIGTERM), tmp_path / "cache")
        train(config, lm, corpus, there, Events(None), tmp_path / "cache")
    files = sorted(path.relative_to(here) for path in here.rglob("*.safetensors"))
    assert len(files) >= len(DIFFERENT)
    for file in files:
        if device.type == "cpu":
            assert (here / file).read_bytes() == (there / file).read_bytes(), file
        else:  # what is kept of a token may change where two activations differ by rounding alone
            theirs = load_file(there / file)
            for name, ours in load_file(here / file).items():
                torch.testing.assert_close(theirs[name], ours, atol=0.02 * ours.abs().max().item(), rtol=0.02)
