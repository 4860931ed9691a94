"""Everything that training makes lies where the language model does. There is no GPU in CI, so the default device is
one on which nothing can be computed (as in tests/benchmark/test_devices.py).
"""

import signal
from pathlib import Path

import pytest
import torch

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


def test_training_does_not_depend_on_the_default_device(tmp_path: Path, text: Path):
    settings = {**SMALL, "corpus": str(text), "tokens": 600, "validations": 2, "saes": DIFFERENT}
    config, lm, corpus = validated(TrainConfig, settings, "train"), tiny_lm(), load_corpus(str(text), tiny_lm())
    here, there = tmp_path / "here", tmp_path / "there"
    train(config, lm, corpus, here, Events(None))
    with torch.device("meta"):
        with pytest.raises(SystemExit):
            train(config, lm, corpus, there, Stop(3, signal.SIGTERM), tmp_path / "cache")
        train(config, lm, corpus, there, Events(None), tmp_path / "cache")
    files = sorted(path.relative_to(here) for path in here.rglob("*.safetensors"))
    assert len(files) >= len(DIFFERENT)
    for file in files:
        assert (here / file).read_bytes() == (there / file).read_bytes(), file
