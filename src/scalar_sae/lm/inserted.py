"""An activation that stands in for a model's own while a block of code runs (`LanguageModel.spliced_by`)."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

from jaxtyping import Int64
from torch import Tensor, nn

from scalar_sae.errors import UserError
from scalar_sae.sites import Site


class Inserted(NamedTuple):
    """What is spliced in, and where."""

    site: Site
    of: Callable[[Int64[Tensor, "batch token"]], Tensor]
    """From token ids to what stands at the site, [batch, token, d_model]."""


@contextmanager
def refused(module: nn.Module, message: str) -> Generator[None]:
    """Within the block, a UserError ends every whole forward pass of a module."""

    def refuse(*_: Any) -> None:
        raise UserError(message)

    hook = module.register_forward_hook(refuse)
    try:
        yield
    finally:
        hook.remove()
