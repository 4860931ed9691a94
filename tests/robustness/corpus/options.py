"""Cases of options: every option and argument of every verb, as the command line declares them, with bad values."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from pydantic import BaseModel

from tests.robustness.corpus.verdict import shown
from tests.robustness.corpus.world import JOBS, Job

LONG = "n" * 300
INTEGERS = ("-1", "0", "9" * 20, "9" * 5000, "1.5", "abc", "nan", "", "1e3", "0x10", "-9223372036854775809")
NUMBERS = ("-1", "nan", "inf", "-inf", "abc", "", "1e400", "9" * 400, "1,5")
WORDS = ("nope", "", LONG, "a\nb", "[/b]", "\x1b[31mred", "\u202eabc", "../..", ".", "/dev/null", "hf://", "hf://a",
         "hf://../../etc/passwd", "text.txt/below", "nan", "-", "9" * 20, "\udcff", "a=b", ",", "~nobody-there/x",
         "loop", "pipe", "meta")  # fmt: skip
PATHS = (LONG, f"new/{LONG}", "/dev/null", "/dev/full", "/dev/null/x", "text.txt", "text.txt/below", "", "loop",
         "loop/x", "dangling/x", "pipe", "/proc/nope", "/proc/1/x", "x/" * 2500 + "x")  # fmt: skip
VALUES = ("null", "[]", "{}", "nope", "-1", "0", "9" * 20, ".inf", ".nan", "true", "[[1]]", "{a: 1}", "1e400",
          "!!python/object/apply:os.mkdir [executed]", "'a\\nb'", "[" * 200, "")  # fmt: skip
MAYBE = {"null", "nope", "-1", "0", "true", "", "[]", "'a\\nb'"}
"""Values that some fields can have."""
FREE = {("judge", "model"), ("export", "model"), ("push", "repository"), ("compare", "base"), ("measure", "tokens"),
        ("export", "layers"), ("measure", "threshold"), ("judge", "latents"), ("explore", "judge")}  # fmt: skip
"""Options whose value is any text."""


@dataclass(frozen=True)
class OptionCase:
    """A job with a bad value for one of its options."""

    verb: str
    option: str
    value: str
    argv: tuple[str, ...]
    job: Job
    free: bool
    """Whether the value may turn out to be a good one."""

    @property
    def names(self) -> tuple[str, ...]:
        """What a message may call the value: a part of NAME=PATH; of one that says nothing, the option."""
        before, _, after = self.value.partition("=")
        if self.option.startswith("--set"):
            return (*shown(self.value), self.option.partition(" ")[2] or before or "field ''")
        return (*shown(self.value), after) if self.value.strip(".") else (self.option.strip("-"), ": ")

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return f"{self.verb} {self.option} {self.value[:60]!r}"


PLAIN = {
    "report": "report", "compare": "compare", "ls": "ls", "measure": "measure", "features": "features",
    "judge": "judge", "blind": "blind", "explore": "explore", "export": "export", "pull": "pull", "push": "push",
    "score": "score",
    "circuit": "circuit", "quickstart": "quickstart", "train": "train", "train-lm": "new-lm",
}  # fmt: skip
"""Verb -> the job that its options are put into."""


@dataclass(frozen=True)
class Parameter:
    """An option or argument, as a verb declares it."""

    name: str
    kind: Any
    """The type of its value, or of each of its values."""
    option: str
    """What it is called on the command line; empty for an argument."""
    multiple: bool


def verbs() -> dict[str, list[Parameter]]:
    """The verbs and their parameters but flags, from the functions that declare them."""
    from scalar_sae.cli import app

    apps = (app, *(one.typer_instance for one in app.registered_groups))
    commands = [one for each in apps if each is not None for one in each.registered_commands]
    found: dict[str, list[Parameter]] = {}
    for command in commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        signature = inspect.signature(command.callback)
        parameters = [_parameter(each) for each in signature.parameters.values()]
        found[name] = [each for each in parameters if each.kind is not bool]
    return found


def _parameter(declared: inspect.Parameter) -> Parameter:
    kind, info = get_args(declared.annotation)
    kinds = [each for each in get_args(kind) or (kind,) if each is not type(None)]  # of `int | None`
    while get_origin(kinds[0]) is list or kinds[0] is list:
        kinds = list(get_args(kinds[0]))
    option = isinstance(info, typer.models.OptionInfo)
    names = [each for each in (info.default, *(info.param_decls or ())) if str(each).startswith("--")]
    named = [*names, f"--{declared.name.replace('_', '-')}"][0] if option else ""
    return Parameter(declared.name, kinds[0], named, "list" in str(kind))


def option_cases() -> Iterator[OptionCase]:
    """All of them."""
    for verb, parameters in verbs().items():
        job = JOBS[PLAIN[verb]]
        for parameter in parameters:
            for value in _bad(parameter):
                yield _case(verb, parameter, value, job)
    yield from _fields()


def _bad(parameter: Parameter) -> tuple[str, ...]:
    if parameter.name == "change":
        return ("a", "=1", "nope=1", "tokens", "a.b=1", "\n=1", "steps=[", "seed=" + "9" * 20)
    return {int: INTEGERS, float: NUMBERS, Path: PATHS}.get(parameter.kind, WORDS)


def _case(verb: str, parameter: Parameter, value: str, job: Job) -> OptionCase:
    free = (verb, parameter.name) in FREE or parameter.name in ("out", "rater", "cache") or value in ("0", "0x10")
    free = free or not value.strip("./")  # the current folder, or one above it
    if parameter.option:
        argv, label = _with_option(job.argv, parameter, value), parameter.option
    else:
        argv, label = _with_argument(job.argv, parameter.name, value), parameter.name.upper()
    return OptionCase(verb, label, value, tuple(argv), job, free)


def _with_option(argv: list[str], parameter: Parameter, value: str) -> list[str]:
    found = list(argv)
    if parameter.option in found and not parameter.multiple:
        at = found.index(parameter.option)
        del found[at : at + 2]
    return [*found, f"{parameter.option}={value}"]


def _with_argument(argv: list[str], name: str, value: str) -> list[str]:
    """In the place of the first word that stands without an option, or of the second; behind `--`, whatever it is."""
    options = [word for i, word in enumerate(argv) if word.startswith("--") or argv[i - 1].startswith("--")]
    words = [word for word in argv[1:] if word not in options]
    words[1 if name in ("b", "repository") else 0] = value
    return [argv[0], *options, "--", *words]


def _fields() -> Iterator[OptionCase]:
    """`--set` with every field of what it sets."""
    from scalar_sae.lm.train import LmRecipe
    from scalar_sae.training.config import TrainConfig

    targets: dict[str, type[BaseModel]] = {"train-lm": LmRecipe, "train": TrainConfig}
    for verb, model in targets.items():
        job = JOBS[PLAIN[verb]]
        for number, field in enumerate(model.model_fields):
            for value in VALUES[number % 3 :: 3]:
                argv = (*job.argv, "--set", f"{field}={value}")
                yield OptionCase(verb, f"--set {field}", value, argv, job, value in MAYBE)
