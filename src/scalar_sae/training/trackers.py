"""TensorBoard and Weights & Biases (optional extras). They receive the events of `events.jsonl`, which stays the
record.
"""

import hashlib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from scalar_sae.errors import UserError, unknown

Write = Callable[[dict[str, float], int], None]
"""Takes values by name, and the step that they belong to."""


def check(name: str) -> None:
    """Raise a UserError if there is no such tracker or its extra cannot be imported."""
    if name not in TRACKERS:
        raise unknown("--log", name, list(TRACKERS))
    try:
        import_module(MODULES[name])
    except ImportError as error:
        raise UserError(f"--log {name}: cannot be imported ({error}); pip install 'scalar-sae[{name}]'") from error


class Tracker:
    """Forwards events to a tracker.

    Raises:
        UserError: there is no such tracker, or its extra cannot be imported.
    """

    def __init__(self, name: str, out: Path) -> None:
        check(name)
        self._write = TRACKERS[name](out)

    def __call__(self, kind: str, fields: dict[str, Any]) -> None:
        """Forward the numbers of an event that belongs to a step."""
        if "step" in fields:
            rest = {name: value for name, value in fields.items() if name not in ("step", "name")}
            prefix = "/".join([kind, fields["name"]] if "name" in fields else [kind])
            self._write(dict(_numbers(rest, prefix)), fields["step"])


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """Yield every number in a nested value with its path, such as `validate/topk/saes/resid_mid.0/fvu`."""
    if isinstance(value, int | float):
        yield path, float(value)
    elif isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(inner, f"{path}/{name}")


def _tensorboard(out: Path) -> Write:
    """Write event files to `out/tensorboard`."""
    writer = import_module(MODULES["tensorboard"]).SummaryWriter(str(out / "tensorboard"))

    def write(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def _wandb(out: Path) -> Write:
    """Log to a W&B run named after the directory. A resumed training continues the same run. W&B chooses the
    project.
    """
    number = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    run = import_module(MODULES["wandb"]).init(name=out.name, id=number, resume="allow", dir=str(out))
    return lambda values, step: run.log(values, step=step)


MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
TRACKERS: dict[str, Callable[[Path], Write]] = {"tensorboard": _tensorboard, "wandb": _wandb}
