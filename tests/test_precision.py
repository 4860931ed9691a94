"""The precision that a language model computes in: chosen, kept by a run, recorded, said once."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from scalar_sae import console
from scalar_sae.lm.model import LanguageModel
from scalar_sae.records.results import Results
from scalar_sae.saes.store import load_sae
from tests.helpers import tiny_lm
from tests.test_study import scalar

PRESET = {
    "train": {
        "tokens": 512,
        "batch_tokens": 256,
        "buffer_tokens": 512,
        "context": 32,
        "warmup_steps": 1,
        "validations": 0,
        "saes": [{"method": "topk", "sites": ["ff_blocks"], "expansion": 1}],
    },
    "score": {
        "rankings": {"leave_one_out_with_prior": 1},
        "prompts": 2,
        "context": 16,
        "edges": "1,16",
        "controls": [],
    },
}
BLOCK = ("--block", "ff_block.0", "--prompts", "2", "--rank-prompts", "1", "--context", "16", "--edges", "1,16")


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("precision") / "small.yaml"
    path.write_text(yaml.safe_dump(PRESET))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, preset: Path) -> Path:
    """A run whose model computes in bfloat16."""
    out = tmp_path_factory.mktemp("precision") / "run"
    console.say_once.cache_clear()
    done = scalar("train", preset, "--out", out, "--dtype", "bfloat16")
    assert done.stderr.count("language model in bfloat16") == 1
    return out


def test_a_run_keeps_the_model_in_the_precision_it_was_trained_on(run: Path):
    assert json.loads((run / "lm" / "config.json").read_text())["dtype"] == "bfloat16"
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["dtype"] == "bfloat16"
    assert LanguageModel.load(run / "lm").dtype == torch.bfloat16
    card = load_sae(run / "saes" / "topk" / "resid_mid.0")[1]
    assert card.recipe["lm"] == {"lm": str(run / "lm"), "dtype": "bfloat16"}


def test_scoring_takes_the_runs_precision_or_the_one_asked_for(run: Path, tmp_path: Path):
    for asked, expected in ((), "bfloat16"), (("--dtype", "float32"), "float32"):
        out = tmp_path / f"{expected}.json"
        scalar("score", "--saes", run, *BLOCK, *asked, "--out", out)
        assert Results.read(out).records[0].config["dtype"] == expected
    done = scalar("score", "--saes", run, *BLOCK, "--dtype", "half", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "unknown dtype 'half'" in done.stderr


def test_the_same_command_goes_on_in_the_runs_precision_without_the_first_model(
    run: Path, preset: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded: list[object] = []
    monkeypatch.setattr(LanguageModel, "load", _noting(loaded))
    scalar("train", preset, "--out", run, "--dtype", "bfloat16")
    scalar("train", "--resume", "--out", run)
    assert loaded == [run / "lm"] * 4
    done = scalar("train", preset, "--out", run, check=False)
    assert "train.dtype: bfloat16 here, auto asked" in done.stderr
    done = scalar("train", "--resume", "--out", run, "--dtype", "float32", check=False)
    assert "leave out the preset, --set, --special and --dtype" in done.stderr


def _noting(loaded: list[object]):
    load = LanguageModel.load.__func__

    def noting(source: object, *args: object, **options: object) -> LanguageModel:
        loaded.append(source)
        return load(LanguageModel, source, *args, **options)

    return noting


def test_what_a_model_says_of_its_precision():
    lm = tiny_lm()
    assert (lm.describe(), lm.remark()) == ({"lm": "tiny", "dtype": "float32"}, "")
    lm.hf.config.dequantized_from = {"file": "x.gguf", "sha256": "0", "types": {"Q4_1": 3, "F32": 9, "Q8_0": 1}}
    assert lm.remark() == "language model in float32; its weights were dequantised from Q4_1 and Q8_0 (x.gguf)"
    assert lm.describe()["dequantized_from"]["types"]["Q4_1"] == 3
