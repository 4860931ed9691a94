"""A prompt that was run to the end of a model, and runs that differ from it at one token alone.

In a causal model no token depends on a later one. If the activation at one token changes, the tokens before it keep
their keys and values in every layer. These are stored once, and each further run is a pass of one token. What is called
are the model's own attention modules, with the cache, the mask and the positions that the model's own forward hands
them when it generates text (attention.py).

A module is not trusted to do the same with a cache as without: it must do so on random activations, in float32, at the
length and the position in question. Where one does not, every further run is a pass of the whole prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from scalar_sae.lm.attention import Attention
from scalar_sae.lm.layers import Branch, Function, Layer
from scalar_sae.lm.stretch import Stretch
from scalar_sae.lm.upcast import in_float32
from scalar_sae.sites import Site

PASS_BYTES = 2**25
"""Runs are taken so many at a time that their widest activation, or their keys and values, fit this."""
ROUNDING = 1e-4
"""Maximum difference between two computations of the same in float32, in units of the largest entry."""


class KeysAndValues(NamedTuple):
    """What one layer's attention keeps of every token of a prompt."""

    keys: Float[Tensor, "one head token d_key"]
    values: Float[Tensor, "one head token d_value"]


Kept = dict[int, KeysAndValues | None]
"""By layer; None where the attention keeps nothing in a cache. Only attention that was run is among them."""


@dataclass(frozen=True, eq=False)
class CachedRun:
    """A prompt that was run from a site to the end of the model."""

    stretch: Stretch
    start: Site
    stop: Site
    """The site after the last layer."""
    x: Float[Tensor, "one token d_model"]
    """The activation at the start."""
    skip: Float[Tensor, "one token d_model"] | None
    """For a start on a side branch, the residual stream to which the branch is added."""
    end: Float[Tensor, "one token d_model"]
    """The activation at the stop."""
    kept: Kept
    _alike: dict[int, bool] = field(default_factory=dict[int, bool])

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        stretch: Stretch,
        start: Site,
        stop: Site,
        x: Float[Tensor, "one token d_model"],
        skip: Float[Tensor, "one token d_model"] | None,
    ) -> "CachedRun":
        """Run a prompt."""
        kept: Kept = {}
        end = _with(stretch, start, lambda attention: _keeping(attention, kept)).run(start, stop, x, skip)
        return cls(stretch, start, stop, x, skip, end, kept)

    @torch.no_grad()
    def varied(self, position: int, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """What stands at the stop at a token when each row of x stands at the start there. Other tokens keep their
        activations.

        Args:
            position: the token.
            x: activations at the start. `at_once` rows are a pass.
        """
        if not len(x):
            return x  # attention refuses an empty batch
        return torch.cat([self._pass(position, some) for some in x.split(self.at_once(position))])

    @torch.no_grad()
    def reuses(self, position: int) -> bool:
        """Whether keys and values are reused at a token."""
        if position not in self._alike:
            n_token, d_model = self.x.shape[1:]
            x = torch.randn(2, n_token, d_model, generator=torch.Generator().manual_seed(0), device="cpu")
            x[1, :position] = x[0, :position]
            self._alike[position] = all(
                one is not None and _alike(self.stretch.layers[layer], x, position) for layer, one in self.kept.items()
            )
        return self._alike[position]

    def at_once(self, position: int) -> int:
        """How many rows `varied` takes in a pass."""
        n_numbers = 4 * (position + 1) if self.reuses(position) else 8 * self.x.shape[1]
        return max(1, PASS_BYTES // (4 * n_numbers * self.x.shape[2]))

    def _pass(self, position: int, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        if self.reuses(position):
            skip = None if self.skip is None else self.skip[:, position : position + 1].expand(len(x), -1, -1)
            alone = _with(self.stretch, self.start, lambda attention: _following(attention, self.kept, position))
            return alone.run(self.start, self.stop, x.unsqueeze(1), skip)[:, 0]
        whole = self.x.repeat(len(x), 1, 1)
        whole[:, position] = x
        skip = None if self.skip is None else self.skip.expand_as(whole)
        return self.stretch.run(self.start, self.stop, whole, skip)[:, position]


def _with(stretch: Stretch, start: Site, attends: Callable[[Attention], Function]) -> Stretch:
    """The layers from a site on, with something else in place of their attention."""

    def changed(layer: Layer) -> Layer:
        stages = (
            replace(
                stage,
                branches=tuple(
                    Branch(tuple((place, attends(f) if isinstance(f, Attention) else f) for place, f in branch.steps))
                    for branch in stage.branches
                ),
            )
            for stage in layer.stages
        )
        return replace(layer, stages=tuple(stages))

    layers = {number: changed(layer) for number, layer in stretch.layers.items() if number >= start.layer}
    return Stretch(layers, stretch.name)


def _keeping(attention: Attention, kept: Kept) -> Function:
    """Attention in a whole prompt, whose keys and values are kept."""

    def attend(x: Float[Tensor, "one token d_model"]) -> Float[Tensor, "one token d_model"]:
        kept[attention.layer] = None
        if not attention.inputs.with_cache:
            return attention(x)
        cache = DynamicCache()
        output = attention(x, cache)
        if cache.get_seq_length(attention.layer) == x.shape[1]:
            keys, values, _ = list(cache)[attention.layer]
            assert keys is not None
            assert values is not None
            kept[attention.layer] = KeysAndValues(keys, values)
        return output

    return attend


def _following(attention: Attention, kept: Kept, position: int) -> Function:
    """Attention at one token alone, after the tokens before it."""

    def attend(x: Float[Tensor, "row one d_model"]) -> Float[Tensor, "row one d_model"]:
        cache, before = DynamicCache(), kept[attention.layer]
        assert before is not None
        keys, values = (part[:, :, :position].expand(len(x), -1, -1, -1) for part in before)
        cache.update(keys, values, attention.layer)
        return attention(x, cache)

    return attend


def _alike(layer: Layer, x: Float[Tensor, "two token d_model"], position: int) -> bool:
    """Whether a layer's attention at a token alone gives what it gives in a whole prompt, after keys and values of a
    prompt that differs from this token on. The latter must not matter before the token.
    """
    attention = next(
        f for stage in layer.stages for branch in stage.branches for _, f in branch.steps if isinstance(f, Attention)
    )
    x, kept = x.to(layer.weight.device), Kept()
    try:
        wide = Attention(in_float32(attention.module), attention.layer, attention.inputs)
        other, whole = _keeping(wide, kept)(x[:1]), wide(x[1:])
        alone = _following(wide, kept, position)(x[1:, position : position + 1])
    except Exception:  # it does not compute in float32, such as a kernel for half precision
        return False
    found, expected = torch.cat([other[:, :position], alone], 1), whole[:, : position + 1]
    return bool((found - expected).abs().max() <= ROUNDING * expected.abs().max())
