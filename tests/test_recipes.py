"""`python -m benchmarks.recipes`: the combinations that are trained, and the one that is chosen."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from benchmarks import recipes
from benchmarks.recipes import PRESET, Row, chosen, swept

SWEEP = {"lr_scale": [0.5, 2.0], "warmup_steps": [1, 4]}


def row(loss: float, l0: float = 10.0, wanted_l0: float | None = 10.0) -> Row:
    return Row("relu", {}, 1e-3, l0=l0, fvu=loss, dead=0.0, ce_increase=0.0, loss=loss, wanted_l0=wanted_l0)


def test_every_combination_of_every_method_is_trained_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "text.txt").write_text("def area(radius):\n    return 3.14159 * radius**2  # of a circle\n" * 60)
    saes = [
        {"method": "relu", "sites": ["resid_mid.0"], "expansion": 2, "sparsity": {"target_l0": 4}},
        {"method": "jacobian", "along": "ff_blocks", "layers": [1], "k": 2, "expansion": 2},
    ]
    train = {
        "corpus": str(tmp_path / "text.txt"), "tokens": 1000, "batch_tokens": 100, "buffer_tokens": 400,
        "context": 16, "validations": 1, "saes": saes,
    }  # fmt: skip
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"sweep": SWEEP, "train": train}))
    command = ["recipes", "--out", str(tmp_path / "out"), "--preset", str(tmp_path / "small.yaml")]
    monkeypatch.setattr(sys, "argv", command)
    recipes.main()
    found = [json.loads(line) for line in (tmp_path / "out" / "recipes.jsonl").read_text().splitlines()]
    assert len(found) == 8
    assert [one["fields"] for one in found[:4]] == [one["fields"] for one in found[4:]]
    assert len({json.dumps(one["fields"]) for one in found}) == 4
    assert len({one["loss"] for one in found}) == 8, "every combination trains differently"
    assert [one["wanted_l0"] for one in found] == [4.0] * 4 + [None] * 4
    assert [one["loss"] == one["fvu"] for one in found] == [True] * 4 + [False] * 4, "Jacobian SAEs: their own loss"
    table = capsys.readouterr().out
    recipes.main()
    assert capsys.readouterr().out == table, "a finished run is read, not trained again"


def test_the_checked_in_sweep_names_fields_that_methods_have():
    content = yaml.safe_load(PRESET.read_text())
    for method in content["train"]["saes"]:
        config = swept(content["train"], method, content["sweep"])
        assert {one.lr_scale for one in config.saes} == set(content["sweep"]["lr_scale"])


def test_the_choice_is_the_least_loss_at_the_l0_that_was_asked_for():
    assert chosen([row(0.3), row(0.2), row(0.1, l0=20)]) == 1
    assert chosen([row(0.1, l0=20), row(0.2, l0=5)]) is None
    assert chosen([row(0.1, l0=20, wanted_l0=None), row(0.2, wanted_l0=None)]) == 0, "the method fixes L0"
