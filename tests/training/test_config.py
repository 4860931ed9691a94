"""Presets, configs, the schedule."""

from pathlib import Path

import pytest
import yaml

from scalar_sae.errors import UserError
from scalar_sae.saes.methods.registry import CONFIGS
from scalar_sae.training import presets
from scalar_sae.training.config import TrainConfig, read_preset, validated
from scalar_sae.training.learner import learning_rate
from tests.training.runs import SMALL, TOPK


def test_the_schedule():
    config = TrainConfig(saes=[TOPK], **{**SMALL, "tokens": 10_000})
    rates = [learning_rate(config, step) for step in range(101)]
    assert max(rates) == rates[3] == pytest.approx(config.lr)
    assert rates[-1] == pytest.approx(config.min_lr)


def test_the_cooldown_schedule_is_constant_between_a_warm_up_and_a_linear_end():
    config = TrainConfig(saes=[TOPK], **{**SMALL, "tokens": 10_000, "lr": 1.0, "min_lr": 0.01, "schedule": "cooldown"})
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert set(rates[3:81]) == {1.0}
    assert rates[80:] == pytest.approx([1.0 - 0.99 * i / 20 for i in range(21)])
    constant = config.model_copy(update={"cooldown": 0.0})
    assert {learning_rate(constant, step) for step in range(3, 100)} == {1.0}


def test_llama_scopes_preset_is_its_authors_recipe():
    config = validated(TrainConfig, read_preset("llama-scope")["train"], "train")
    rate = [learning_rate(config, step) for step in (4_999, 5_000, 312_400, config.steps)]
    assert rate == pytest.approx([8e-4, 8e-4, 8e-4, 8e-6], rel=1e-3)
    method = config.saes[0]
    assert (method.method, method.beta1, method.beta2, method.clip) == ("llama_scope", 0.9, 0.9999, 0.001)


def test_gaos_preset_is_the_papers_recipe_and_the_default_of_topk_is_not():
    config = validated(TrainConfig, read_preset("topk-gao")["train"], "train")
    assert {learning_rate(config, step) for step in range(100, config.steps)} == {config.lr}
    assert config.lr == pytest.approx(2e-4 * (2**14 / 512) ** 0.5, rel=0.01)
    assert (config.beta2, config.clip) == (0.999, 1.0)
    fields = {"unit_norm": True, "median_bias": True, "auxk": 1 / 32, "multi": 1}
    gao = config.saes[0].model_dump()
    assert {name: gao[name] for name in fields} == fields
    plain = TrainConfig(saes=[TOPK], **SMALL).saes[0].model_dump()
    assert (plain["unit_norm"], plain["median_bias"], plain["auxk"]) == (False, False, 0.0)


def test_jacobian_saes_stand_at_ff_layers_unless_a_config_says_otherwise():
    zoo = [method for method in read_preset("zoo")["train"]["saes"] if method["method"] == "jacobian"]
    assert [method["along"] for method in zoo] == ["ff_layers", "ff_blocks"]
    config = TrainConfig(saes=[{"method": "jacobian"}], **SMALL).saes[0]
    assert [str(block.up) for block in config.blocks(2)] == ["mlp_in.0", "mlp_in.1"]


@pytest.mark.parametrize("name", presets.names())
def test_presets_are_valid(name: str):
    validated(TrainConfig, read_preset(name)["train"], "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokns": 5}, "unknown train field 'tokns'.*did you mean 'tokens'"),
        ({"saes": [{**TOPK, "method": "topkk"}]}, "unknown method 'topkk'.*did you mean 'topk'"),
        ({"saes": [{**TOPK, "kk": 3}]}, r"unknown train field 'saes.0.topk.kk'.*did you mean 'saes.0.topk.k'"),
        (
            {"saes": [{"method": "relu", "sites": ["resid_mid.0"], "sparsity": {"weight": 1, "warmpu": 0}}]},
            r"unknown train field 'saes.0.relu.sparsity.warmpu'.*did you mean 'saes.0.relu.sparsity.warmup'",
        ),
        (
            {"saes": [{"method": "relu", "sites": ["resid_mid.0"], "sparsity": {"weigth": 1}}]},
            r"unknown train field 'saes.0.relu.sparsity.weigth'.*did you mean 'saes.0.relu.sparsity.weight'",
        ),
        ({"saes": [TOPK, TOPK]}, "not all different"),
        ({"saes": [{**TOPK, "dead_tokens": 2000}]}, "topk: dead_tokens = 2000 is not below tokens = 2000"),
        ({"saes": [{**TOPK, "dead_tokens": 10_000_000}]}, "dead_tokens = 10000000 is not below tokens = 2000"),
        ({"saes": [{"sites": ["resid_mid.0"]}]}, "saes.0: method: is missing; give one of topk, staircase, .*atm"),
        ({"saes": [{**TOPK, "expansion": 10**9}]}, "expansion: Input should be less than or equal to 4096"),
        ({"lr": float("inf")}, "lr: Input should be a finite number"),
        (
            {"saes": [{"method": "relu", "sites": ["resid_mid.0"], "sparsity": {"weight": float("inf")}}]},
            "sparsity.weight: Input should be a finite number",
        ),
        ({"lr": 1e-3, "min_lr": 1}, "min_lr = 1.0 is above lr = 0.001"),
        ({"tokens": 50}, "less than one batch"),
        ({"lr": -1}, "lr: Input should be greater than 0"),
        ({"seed": 2**32}, "seed: Input should be less than 4294967296"),
        ({"saes": [{**TOPK, "seed": 2**40}]}, "saes.0.topk.seed: Input should be less than 4294967296"),
        *(
            ({"saes": [{"method": method, "sites": ["resid_mid.0"], "beta1": 1}]}, "beta1: Input should be less than 1")
            for method in ("gated", "jumprelu")
        ),
    ],
)
def test_a_bad_config_is_one_line_that_names_the_field(change: dict, message: str):
    with pytest.raises(UserError, match=message) as error:
        validated(TrainConfig, {**SMALL, "saes": [TOPK], **change}, "train")
    assert "\n" not in str(error.value)


def test_presets_that_are_not_there(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        read_preset("quikstart")
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"trian": {}}))
    with pytest.raises(UserError, match="expected the sections train: and score:"):
        read_preset(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize("method", CONFIGS)
def test_saes_are_named_as_their_method_is(method: str):
    assert CONFIGS[method].model_fields["name"].default == method
