"""Configs that say another thing than the tensors beside them are refused in every format, in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from scalar_sae.errors import UserError
from scalar_sae.saes.store import load_saes
from tests.saes.formats.test_formats import FORMATS, Weights, gpt_circuits_case

LEFT_OVER = "which the kind of SAE that its config names does not have"


def rewrite(path: Path, change: dict[str, Any]) -> None:
    """Change what a config says; `trainer.k` lies one level in, None takes a key out."""
    read, write = (yaml.safe_load, yaml.safe_dump) if path.suffix == ".yaml" else (json.loads, json.dumps)
    config = read(path.read_text())
    for name, value in change.items():
        *outer, key = name.split(".")
        place = config[outer[0]] if outer else config
        place[key] = value
        if value is None:
            del place[key]
    path.write_text(write(config))


CONTRADICTIONS: list[tuple[str, str, dict[str, Any], str]] = [
    ("Llamascopium", "config.json", {"norm_activation": "zzz"}, "norm_activation = 'zzz': expected one of none"),
    ("Llamascopium", "config.json", {"act_fn": "zzz"}, "act_fn = 'zzz': expected one of relu, topk, jumprelu"),
    ("Llama Scope 2024", "hyperparams.json", {"d_sae": 99}, "the config says d_sae = 99, the tensors have 16"),
    ("Gemma Scope 2", "config.json", {"architecture": "topk"}, "architecture = 'topk': expected jump_relu"),
    ("Gemma Scope 2", "config.json", {"affine_connection": False}, "affine_connection = False, the tensors have True"),
    ("circuit-tracer ReLU", "config.yaml", {"activation": "jump_relu"}, "and no activation_function.threshold"),
    ("BatchTopK JumpReLU", "config.json", {"sae_type": "vanilla"}, LEFT_OVER),
    ("BatchTopK JumpReLU", "config.json", {"sae_type": "topk", "top_k": 3}, LEFT_OVER),
    ("BatchTopK", "config.json", {"top_k": "abc"}, "top_k = 'abc': expected a whole number"),
    ("dictionary_learning, killed", "config.json", {"trainer.dict_class": "JumpReluAutoEncoder"}, "lacks the tensor"),
    ("SAELens before 6", "cfg.json", {"activation_fn_str": "zzz"}, "activation function 'zzz': expected relu or topk"),
]


@pytest.mark.parametrize(("name", "file", "change", "message"), CONTRADICTIONS)
def test_a_config_that_says_another_thing(name: str, file: str, change: dict[str, Any], message: str, tmp_path: Path):
    FORMATS[name][0](tmp_path / "saes", Weights(torch.float32))
    (config,) = tmp_path.rglob(file)
    load_saes(tmp_path)
    rewrite(config, change)
    with pytest.raises(UserError, match=message) as caught:
        load_saes(tmp_path)
    assert str(config.parent) in str(caught.value)


@pytest.mark.parametrize(
    ("variant", "other"), [("jumprelu", "standard"), ("jumprelu", "topk"), ("gated", "gated_v2"), ("gated", "standard")]
)
def test_a_variant_of_gpt_circuits_that_is_another(variant: str, other: str, tmp_path: Path):
    gpt_circuits_case(tmp_path, Weights(torch.float32), variant, by_key=False)
    load_saes(tmp_path)
    rewrite(tmp_path / "sae.json", {"sae_variant": other})
    with pytest.raises(UserError, match=f"{LEFT_OVER}|lacks the tensor"):
        load_saes(tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_no_config_value_ends_in_a_traceback(name: str, tmp_path: Path):
    FORMATS[name][0](tmp_path / "saes", Weights(torch.float32))
    for config in [path for pattern in ("*.json", "*.yaml") for path in tmp_path.rglob(pattern)]:
        before = config.read_text()
        content: dict[str, Any] = (yaml.safe_load if config.suffix == ".yaml" else json.loads)(before)
        inner = [f"{outer}.{key}" for outer, value in content.items() if isinstance(value, dict) for key in value]
        for key in [*content, *inner]:
            for value in ("abc", 0, [1], None):
                rewrite(config, {key: value})
                try:
                    load_saes(tmp_path)
                except UserError as error:
                    assert "\n" not in str(error)  # noqa: PT017  # some of these do load
                config.write_text(before)
