"""The heads of the one attention layer of a block: what each gives at the last token of a prompt.

A head's output is its piece of the input of attention's output projection. The projection is recognised by what it
computes, so this works for the attention modules of every family that has one.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from scalar_sae.errors import UserError
from scalar_sae.explore.passes import at_once
from scalar_sae.explore.stage import Stage
from scalar_sae.lm.attention import Attention
from scalar_sae.sites import Site


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads of the one attention layer of a block: the input of its output projection, a piece a head."""

    projection: nn.Module
    n: int
    layer: int
    """Number of its layer."""

    def outputs(self, here: Stage, x: Float[Tensor, "row token d_model"]) -> Float[Tensor, "row head d_head"]:
        """What each head gives at the last token."""
        found: list[Tensor] = []

        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            found.append(args[0][:, -1].unflatten(-1, (self.n, -1)))

        hook = self.projection.register_forward_pre_hook(see)
        try:
            for some in x.split(at_once(here)):
                here.pair.compute(some, here.prompt.up_skip)
        finally:
            hook.remove()
        return torch.cat(found)

    @contextmanager
    def replaced(self, outputs: Float[Tensor, "row d_heads"]) -> Generator[None]:
        """Within the block the heads give these outputs at a prompt's only token."""
        done = 0

        def give(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
            nonlocal done
            some = outputs[done : done + len(args[0])]
            done += len(some)
            return (some.unsqueeze(1).to(args[0]),)

        hook = self.projection.register_forward_pre_hook(give)
        try:
            yield
        finally:
            hook.remove()


def heads_of(stage: Stage) -> Heads | None:
    """The heads between the two ends of a block; None where no attention lies between them.

    Raises:
        UserError: there are several attention layers, or the heads cannot be told apart.
    """
    block = stage.pair.block
    layers = [
        number
        for number in range(block.up.layer, block.down.layer + 1)
        if block.up.depth <= Site("attn_in", number).depth < block.down.depth
    ]
    if not layers:
        return None
    if len(layers) > 1:
        raise UserError(f"{block}: holds {len(layers)} attention layers; an edge is split over the heads of one")
    attention = next(
        function
        for one in stage.pair.computation.layers[layers[0]].stages
        for branch in one.branches
        for _, function in branch.steps
        if isinstance(function, Attention)
    )
    n_heads = getattr(stage.pair.lm.hf.config.get_text_config(), "num_attention_heads", 0)
    projection = _projection(attention, stage)
    if projection is None or not n_heads:
        raise UserError(f"{block}: the heads of {type(attention.module).__name__} cannot be told apart")
    return Heads(projection, n_heads, layers[0])


def _projection(attention: Attention, stage: Stage) -> nn.Module | None:
    """The linear map whose output is the attention's: the last that its forward calls. None if there is none."""
    called: list[tuple[nn.Module, Tensor]] = []

    def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            called.append((module, output))

    linear = [
        m for m in attention.module.modules() if isinstance(w := getattr(m, "weight", None), Tensor) and w.dim() == 2
    ]
    hooks = [module.register_forward_hook(see) for module in linear]
    try:
        output = attention(stage.whole[:1].unsqueeze(0).to(next(attention.module.parameters())))
    finally:
        for hook in hooks:
            hook.remove()
    module, last = called[-1] if called else (None, None)
    return module if last is not None and last.equal(output) else None


@dataclass(frozen=True, eq=False)
class LastQuery:
    """What the last token attends to: its query, and the keys and values of all tokens of a prompt.

    When a latent is removed at an earlier token, only that token's key and value change. The output of each head at the
    last token then follows without another pass over the prompt.
    """

    query: Float[Tensor, "head d_key"]
    """Times the scale of attention."""
    key: Float[Tensor, "head token d_key"]
    value: Float[Tensor, "head token d_value"]
    bias: Float[Tensor, "#head token"]
    """What is added to the scores; minus infinity where the last token does not look."""

    @classmethod
    def of(cls, here: Stage, heads: Heads) -> "LastQuery | None":
        """Of a prompt. None where attention computes something else than softmax(scale q k^T + bias) v."""
        seen = _attended(here, heads, here.whole.unsqueeze(0))
        if seen is None:
            return None
        q, k, v, bias, scale = seen
        found = cls(q[0, :, -1] * scale, k[0], v[0], bias)
        own = heads.outputs(here, here.whole.unsqueeze(0))[0]
        outputs = found._outputs(found._scores(found.key), found.value)
        same = outputs.shape == own.shape and torch.allclose(
            outputs, own, atol=1e-5 * float(own.abs().max()), rtol=1e-4
        )
        return found if same else None

    def without(
        self, here: Stage, heads: Heads, source: Int[Tensor, " row"], add: Float[Tensor, "row d_model"]
    ) -> Float[Tensor, "row head d_value"]:
        """Outputs of the heads at the last token when each row alone takes `add` away at its source, an earlier token.

        Every pass over the prompt serves one row at each token.
        """
        first = torch.searchsorted(source, source)  # sources are in ascending order
        number = torch.arange(len(source), device=source.device) - first
        keys, values = (
            self.key.new_empty(len(source), *self.key[:, 0].shape),
            self.value.new_empty(len(source), *self.value[:, 0].shape),
        )
        for turns in torch.arange(int(number.max()) + 1).split(at_once(here)):
            rows = ((number >= turns[0]) & (number <= turns[-1])).nonzero()[:, 0]
            x = here.whole.repeat(len(turns), 1, 1)
            x[number[rows] - turns[0], source[rows]] -= add[rows]
            seen = _attended(here, heads, x)
            assert seen is not None
            keys[rows] = seen[1][number[rows] - turns[0], :, source[rows]]
            values[rows] = seen[2][number[rows] - turns[0], :, source[rows]]
        found: list[Tensor] = []
        for rows in torch.arange(len(source), device=source.device).split(at_once(here)):
            at = source[rows]
            scores = self._scores(self.key).repeat(len(rows), 1, 1)
            changed = (keys[rows] * self.query).sum(-1) + self.bias.expand(len(self.query), -1)[:, at].T
            scores[torch.arange(len(rows)), :, at] = changed
            pattern = scores.softmax(-1)
            there = pattern[torch.arange(len(rows)), :, at].unsqueeze(-1)
            found.append(
                torch.einsum("rht,htd->rhd", pattern, self.value)
                + there * (values[rows] - self.value[:, at].transpose(0, 1))
            )
        return torch.cat(found)

    def _scores(self, key: Float[Tensor, "head token d_key"]) -> Float[Tensor, "head token"]:
        return torch.einsum("hd,htd->ht", self.query, key) + self.bias

    def _outputs(
        self, scores: Float[Tensor, "head token"], value: Float[Tensor, "head token d_value"]
    ) -> Float[Tensor, "head d_value"]:
        return torch.einsum("ht,htd->hd", scores.softmax(-1), value)


class _SeesAttention(TorchFunctionMode):
    """Within the block, the arguments of torch's attention are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a call, and let it be computed."""
        if func is functional.scaled_dot_product_attention:
            self.calls.append((args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attended(
    here: Stage, heads: Heads, x: Float[Tensor, "row token d_model"]
) -> tuple[Tensor, Tensor, Tensor, Tensor, float] | None:
    """Queries, keys and values [row, head, token, d] of the block's attention, the last token's bias [#head, token],
    and the scale. None where attention is computed in another way.
    """
    pair, n_token = here.pair, x.shape[1]
    kinds = pair.computation.layers[heads.layer].kinds
    end = Site("attn_raw" if "attn_raw" in kinds else "attn_out", heads.layer)
    skip = None if here.prompt.up_skip is None else here.prompt.up_skip.expand_as(x)
    with _SeesAttention() as seen:
        pair.computation.run(pair.block.up, end, x, skip)
    if len(seen.calls) != 1:
        return None
    args, given = seen.calls[0]
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, args, strict=False)) | given
    q, k, v, mask = given["query"], given["key"], given["value"], given.get("attn_mask")
    if k.shape[-2] != n_token or q.shape[-2] != n_token or v.shape[-2] != n_token or given.get("dropout_p", 0.0):
        return None
    if k.shape[1] != q.shape[1]:
        k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
    bias = q.new_zeros(1, n_token)
    if mask is not None:
        last = mask.expand(mask.shape[0], mask.shape[1], n_token, n_token)[0, :, -1]
        bias = (
            torch.zeros_like(last, dtype=q.dtype).masked_fill(~last, -torch.inf) if last.dtype == torch.bool else last
        )
    scale = given.get("scale")
    return q, k, v, bias, q.shape[-1] ** -0.5 if scale is None else scale
