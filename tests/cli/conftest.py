"""One small run and feature tables of it, for all tests of the command line. Tests leave it as it is, or copy it."""

import random
import shutil
from pathlib import Path

import pytest
import yaml

from tests.test_study import scalar

PRESET = {
    "train": {
        "tokens": 512,
        "batch_tokens": 256,
        "buffer_tokens": 512,
        "context": 32,
        "warmup_steps": 1,
        "validations": 0,
        "saes": [
            {"method": "topk", "sites": ["resid_pre.0", "resid_mid.0", "resid_post.0"], "expansion": 1},
            {"method": "topk", "name": "wide", "sites": ["resid_pre.0", "resid_mid.0", "resid_post.0"], "expansion": 2},
        ],
    },
    "score": {
        "rankings": {"leave_one_out_with_prior": 1},
        "prompts": 2,
        "context": 16,
        "edges": "1,16",
        "controls": [],
    },
}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of a few thousand words, which is read much faster than the standard library."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "(1", "+", "2)", "=", "3;", "\n"]
    path.write_text(" ".join(random.Random(0).choices(words, k=8000)))
    return path


@pytest.fixture(scope="session")
def preset(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    path = tmp_path_factory.mktemp("preset") / "small.yaml"
    path.write_text(yaml.safe_dump({**PRESET, "train": {"corpus": str(text), **PRESET["train"]}}))
    return path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, preset: Path, text: Path) -> Path:
    """A finished run with feature tables. Not to be changed."""
    out = tmp_path_factory.mktemp("cli") / "run"
    scalar("quickstart", "--preset", preset, "--out", out)
    read = ("--prompts", "64", "--context", "16", "--edges", "none", "--tokens", text)
    scalar("features", out, "--method", "topk", *read)
    return out


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return shutil.copytree(finished_run, tmp_path / "run")
