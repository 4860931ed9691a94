"""Attention as a function of its activation alone. Its other arguments, such as mask and positions, are recorded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache

from scalar_sae.errors import UserError

LENGTHS_KEPT = 8
"""Number of prompt lengths for which masks and rotary positions are kept."""


@dataclass(frozen=True, eq=False)
class PerPrompt:
    """An argument with one entry per prompt, or one per prompt and head."""

    of_one: Tensor

    def of(self, n_prompts: int) -> Tensor:
        """The argument for a batch of `n_prompts`."""
        if len(self.of_one) == 1:
            return self.of_one.expand(n_prompts, *self.of_one.shape[1:])
        return self.of_one.repeat(n_prompts, *[1] * (self.of_one.dim() - 1))


class AttentionInputs:
    """The arguments that the model passes to its attention modules: the activation, mask and positions.

    Mask and positions are recorded from the model's own forward on random prompts, once per prompt length and precision
    of the activation. A model creates them in the precision of its activations. For an activation in float32, even a
    half-precision model therefore creates rotary tables in float32.

    With a cache, the activation is that of the tokens that follow those in it. The model then passes the cache too, and
    the mask and the positions of the tokens that follow.

    Args:
        handed: returns the arguments of each layer's attention, by name, from the model's own forward on random
            prompts. Its own arguments are the number of prompts, their length, the precision of the activations, and
            the number of tokens in a cache before them; None: without a cache.
        activation: names of the arguments that hold the activation.
        stream: name of the argument that holds the residual stream, if there is one.
    """

    def __init__(
        self,
        handed: Callable[[int, int, torch.dtype, int | None], list[dict[str, Any]]],
        activation: tuple[str, ...],
        stream: str | None,
    ) -> None:
        self._handed = handed
        self._activation = activation
        self._stream = stream
        self._recorded: dict[Any, list[dict[str, Any]]] = {}

    def of(self, layer: int, x: Float[Tensor, "batch token d_model"], cache: Cache | None = None) -> dict[str, Any]:
        """The arguments of a layer's attention for an activation. The residual stream is zero.

        Args:
            layer: number of the layer.
            x: the activation.
            cache: keys and values of the tokens before; None: there are none, and none are kept.

        Raises:
            UserError: an argument depends on the tokens of the prompt.
        """
        n_before = None if cache is None else cache.get_seq_length(layer)
        key = (n_before, x.shape[1], x.device, x.dtype)
        if key not in self._recorded:
            if len(self._recorded) == LENGTHS_KEPT:
                del self._recorded[next(iter(self._recorded))]
            self._recorded[key] = self._record(x.shape[1], x.dtype, n_before)
        given = {name: _for_batch(value, len(x)) for name, value in self._recorded[key][layer].items()}
        given |= dict.fromkeys(self._activation, x)
        given |= {name: cache for name, value in given.items() if isinstance(value, Cache)}
        return given if self._stream is None else given | {self._stream: torch.zeros_like(x)}

    @cached_property
    def with_cache(self) -> bool:
        """Whether the model passes a cache of `transformers` to the attention of every layer."""
        try:
            handed = self._handed(1, 1, torch.float32, 0)
        except Exception:  # the model's forward has another signature
            return False
        return all(any(isinstance(value, Cache) for value in given.values()) for given in handed)

    def _record(self, n_tokens: int, dtype: torch.dtype, n_before: int | None) -> list[dict[str, Any]]:
        one, two = (self._handed(n_prompts, n_tokens, dtype, n_before) for n_prompts in (1, 2))
        own = (*self._activation, self._stream)
        return [
            {name: _per_prompt(first[name], second[name], name, dtype) for name in first if name not in own}
            for first, second in zip(one, two, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Attention:
    """One layer's attention as a function of its input alone."""

    module: nn.Module
    layer: int
    inputs: AttentionInputs

    def __call__(
        self, x: Float[Tensor, "batch token d_model"], cache: Cache | None = None
    ) -> Float[Tensor, "batch token d_model"]:
        """The module's output, which `transformers` returns first in a tuple.

        Args:
            x: its input.
            cache: keys and values of the tokens before; those of x are added to it.
        """
        output = self.module(**self.inputs.of(self.layer, x, cache))
        return output if isinstance(output, Tensor) else output[0]


def _per_prompt(one: Any, two: Any, name: str, dtype: torch.dtype) -> Any:
    """An argument as it is for one prompt. If the argument for two prompts is twice as long, a `PerPrompt`.

    Numbers are in the precision of the activation where that is wider than the model's.
    """
    if isinstance(one, tuple):
        return tuple(_per_prompt(*both, name, dtype) for both in zip(one, two, strict=True))
    if not isinstance(one, Tensor):
        return one
    if one.is_floating_point():
        wide = torch.promote_types(one.dtype, dtype)
        one, two = one.to(wide), two.to(wide)
    if one.shape == two.shape and torch.equal(one, two):
        return one
    if one.dim() and two.shape == (2 * len(one), *one.shape[1:]) and torch.equal(two, torch.cat([one, one])):
        return PerPrompt(one)
    raise UserError(f"attention is handed `{name}`, which depends on the prompt's tokens")


def _for_batch(value: Any, n_prompts: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_for_batch(part, n_prompts) for part in value)
    return value.of(n_prompts) if isinstance(value, PerPrompt) else value
