"""What all verbs have in common: `--quiet`, `--json`, and a result that is shown as text or as one JSON document."""

import contextlib
import functools
import inspect
import json as json_
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from pydantic_core import to_jsonable_python

from scalar_sae import console
from scalar_sae.errors import UserError, quoted
from scalar_sae.io import give_libraries_a_cache

Quiet = Annotated[bool, typer.Option("--quiet", help="Show results and errors only, without progress and messages.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON document, and nothing else on stdout.")
]


@dataclass(frozen=True)
class Outcome:
    """What a verb has found or made."""

    data: dict[str, Any]
    """For `--json`: values, paths, records. What is not finite becomes null."""
    show: Callable[[], None]
    """Prints it for people."""


MOST = 2**32
"""Above every number that a verb takes: what is larger is a slip, and some library would stumble over it later."""


def check_numbers(arguments: Mapping[str, Any]) -> None:
    """Raise a UserError if one of a verb's options is a number that is not finite, or is larger than any it can use."""
    for name, value in arguments.items():
        if isinstance(value, int | float) and not abs(value) < MOST:  # NaN is not
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {quoted(value)}: expected a number between {-MOST:,} and {MOST:,}; see --help")


def verb(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., Outcome | None]], Any]:
    """Make a function that returns an `Outcome` a verb; it has `--quiet` and `--json` beside its own options.

    Of several workers those that do not print return None.
    """

    def register(function: Callable[..., Outcome | None]) -> Callable[..., Outcome | None]:
        called = f"scalar {name or function.__name__}"

        @functools.wraps(function)
        def command(*, quiet: bool, json: bool, **arguments: Any) -> None:
            console.set_quiet(quiet)
            console.silence_libraries()
            check_numbers(arguments)
            give_libraries_a_cache()
            redirected = contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext()
            with redirected, console.in_log(called):
                outcome = function(**arguments)
            if outcome is None:
                return
            if json:
                print(json_.dumps(to_jsonable_python(outcome.data, inf_nan_mode="null")))  # noqa: T201
            else:
                outcome.show()

        signature, keyword = inspect.signature(function), inspect.Parameter.KEYWORD_ONLY
        common = {"quiet": Quiet, "json": Json}
        added = [inspect.Parameter(key, keyword, default=False, annotation=kind) for key, kind in common.items()]
        own = [parameter.replace(kind=keyword) for parameter in signature.parameters.values()]
        setattr(command, "__signature__", signature.replace(parameters=[*own, *added]))  # noqa: B010 (typer reads it)
        command.__annotations__ = {**function.__annotations__, **common}
        app.command(name)(command)
        return function

    return register
