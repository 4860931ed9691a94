"""An activation that replaces the model's own within a block of code (`LanguageModel.spliced_by`)."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

from jaxtyping import Int64
from torch import Tensor, nn

from scalar_sae.errors import UserError
from scalar_sae.sites import Site


class Inserted(NamedTuple):
    """A replacement and its site."""

    site: Site
    of: Callable[[Int64[Tensor, "batch token"]], Tensor]
    """From token ids to the activation at the site, [batch, token, d_model]."""


@contextmanager
def refused(module: nn.Module, message: str) -> Generator[None]:
    """Within the block, every complete forward pass of a module raises a UserError."""

    def refuse(*_: Any) -> None:
        raise UserError(message)

    hook = module.register_forward_hook(refuse)
    try:
        yield
    finally:
        hook.remove()
