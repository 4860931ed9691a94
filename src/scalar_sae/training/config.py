"""The config of a training run. It is read from a preset (YAML); the resolved config is written beside the results."""

import os
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scalar_sae.bounds import Address, Count, Rate, Seed, Size
from scalar_sae.errors import UserError, quoted, unknown
from scalar_sae.lm.special import Rule
from scalar_sae.readers import explained, parse_yaml, read_text
from scalar_sae.saes.methods.base import Schedule
from scalar_sae.saes.methods.registry import CONFIGS, MethodConfig
from scalar_sae.training import presets

Config = TypeVar("Config", bound=BaseModel)

LONGEST = 2**20
"""Maximum size of a preset file in bytes."""


class TrainConfig(BaseModel):
    """How to train SAEs on the activations of a language model."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lm: Address = "python-stdlib"
    """The language model: the name of a shipped one, a folder, a GGUF file, or `owner/name[@revision]` on the Hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision in which the language model computes. `auto` takes the one in its configuration. The run saves the
    model in this precision. SAEs are always trained in float32."""
    corpus: Address = "python-stdlib"
    """The text: a shipped name, a path, or hf://owner/name:configuration@split#column; see docs/text.md."""
    saes: list[MethodConfig] = Field(min_length=1)
    """The SAEs, all trained in one pass over the language model."""
    tokens: Count
    """Training tokens, rounded down to whole batches."""
    batch_tokens: Size = 4096
    """Tokens per optimiser step."""
    buffer_tokens: Count = 65_536
    """Number of tokens that are shuffled together."""
    context: Size = 128
    """Tokens per window of text."""
    lr: Rate = 1e-3
    """Peak learning rate."""
    min_lr: float = Field(default=1e-4, ge=0)
    """Learning rate at the end of the schedule."""
    warmup_steps: int = Field(default=750, ge=0, le=10**12)
    """Steps of linear warm-up."""
    schedule: Schedule = "cosine"
    """Decay of the learning rate after the warm-up: along a cosine, or only at the end of the run (`cooldown`)."""
    cooldown: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps, at the end of the run, over which `cooldown` decays linearly; 0 keeps the rate constant."""
    beta2: float = Field(default=0.95, gt=0, lt=1)
    """Adam's second-moment decay."""
    clip: Rate = 1.0
    """Maximum gradient norm, applied to each trainee separately."""
    seed: Seed = 0
    """Seed of the order of the text, and of the initial weights of methods without a seed of their own."""
    validations: int = Field(default=5, ge=0, le=10**6)
    """Number of times the SAEs are measured on validation text during training; 0 for never."""
    special: Rule = "skip"
    """Special tokens: `skip` leaves them out, `first` the first token of every prompt too, `count` trains on all, and a
    list of ids leaves out those ids instead.
    """

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        names = [method.name for method in self.saes]
        if len(set(names)) < len(names):
            raise ValueError(f"saes: the names {names} are not all different; give each a name of its own")
        for method in self.saes:
            dead = getattr(method, "dead_tokens", None)
            if dead is not None and dead >= self.tokens:
                raise ValueError(f"{method.name}: dead_tokens = {dead} is not below tokens = {self.tokens}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr = {self.min_lr} is above lr = {self.lr}")
        if self.tokens < self.batch_tokens:
            raise ValueError(f"tokens = {self.tokens} is less than one batch of {self.batch_tokens}")
        if self.buffer_tokens < self.batch_tokens:
            raise ValueError(f"buffer_tokens = {self.buffer_tokens} is less than one batch of {self.batch_tokens}")
        return self

    @property
    def steps(self) -> int:
        """Number of optimiser steps in the token budget."""
        return self.tokens // self.batch_tokens


def read_preset(name: str) -> dict[str, Any]:
    """The content of a shipped preset, or of a YAML file at a path.

    Raises:
        UserError: there is no such preset or file, or it is not YAML with a section `train:` and optionally `score:`.
    """
    path = Path(name)
    if name in presets.names():
        text = presets.text(name)
    elif path.suffix in (".yaml", ".yml") and os.path.lexists(path):
        text = read_text(path, "no such file; give a preset's name", LONGEST)
    else:
        raise unknown("preset", name, [*presets.names(), "a path to a .yaml file"])
    content = parse_yaml(text, name)
    if not isinstance(content, dict) or not isinstance(content.get("train"), dict):
        raise UserError(f"{name}: expected the sections train: and score:")
    if not isinstance(content.get("score"), dict | None):
        raise UserError(f"{name}: score: expected fields and their values, not {quoted(content['score'])}")
    return content


def validated(model: type[Config], values: Any, where: str) -> Config:
    """Validate plain values as a config, with one-line errors.

    Raises:
        UserError: a field is unknown or out of range. The closest known field is suggested.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        # it may be a misspelling of the missing field
        first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown(f"{where} field", place, _fields_near(model, first["loc"])) from error
        if first["type"] == "union_tag_invalid":
            context = first.get("ctx", {})
            tags = context["expected_tags"].replace("'", "").split(", ")
            raise UserError(f"{where}: {unknown('method', str(context['tag']), tags)}") from error
        if first["type"] == "union_tag_not_found":
            raise UserError(f"{where}: {place}: method: is missing; give one of {', '.join(CONFIGS)}") from error
        raise UserError(f"{where}: {explained(error)}") from error


def _fields_near(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    if len(loc) == 1:
        return list(model.model_fields)
    if loc[0] != "saes" or len(loc) < 4 or str(loc[2]) not in CONFIGS:
        return [".".join(map(str, (*loc[:-1], field))) for field in model.model_fields]
    method: Any = CONFIGS[str(loc[2])]
    for part in loc[3:-1]:  # a config nested in a method's config
        inner = method.model_fields[str(part)].annotation if isinstance(part, str) else method
        method = next((kind for kind in (inner, *get_args(inner)) if hasattr(kind, "model_fields")), method)
    return [".".join(map(str, (*loc[:-1], field))) for field in method.model_fields]
