"""Stand-ins for modules: a model's forward runs while chosen modules of it do not compute.

They show what a model passes to its modules and what it makes of their outputs, at no cost and without the modules'
rounding.
"""

import inspect
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from torch import nn

Stub = Callable[[nn.Module, dict[str, Any]], Any]
"""From a module and its arguments by name to a value returned instead of its output."""


@contextmanager
def stood_in(modules: Iterable[nn.Module], stub: Stub) -> Generator[None]:
    """Within the block, calling one of the modules calls `stub` instead."""
    with ExitStack() as undo:
        for module in modules:
            undo.callback(_restore, module, vars(module).get("forward"))
            module.forward = _standing_in(module, stub)
        yield


def _standing_in(module: nn.Module, stub: Stub) -> Callable[..., Any]:
    signature = inspect.signature(module.forward)

    @wraps(module.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        named = dict(signature.bind(*args, **kwargs).arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named |= named.pop(parameter.name, {})
        return stub(module, named)

    return forward


def _restore(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward
