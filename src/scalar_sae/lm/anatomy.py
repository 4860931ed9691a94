"""A causal language model taken apart along an architecture: its layers and the modules before and after them."""

from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from scalar_sae.lm.architectures import Architecture
from scalar_sae.lm.attention import Attention, AttentionInputs
from scalar_sae.lm.layers import Alone, Function, Layer, Scaled, Stage, branch
from scalar_sae.lm.norms import AnyNorm, norm_of
from scalar_sae.lm.stubs import stood_in
from scalar_sae.lm.upcast import in_float32, is_float32
from scalar_sae.sites import Site

DUMMY_TOKENS = 8
"""Length of the random prompts on which a model is examined."""


class Anatomy:
    """The parts of a model, and how a row of the architecture table puts them together.

    Attributes:
        blocks: the model's own layer modules.
        attentions: the attention module of each layer.
        parts: every module that is called, each once: those of the layers, those after the layers, and the unembedding.
        layers: the layers as stages.
        unembedding: the last of the parts.
    """

    def __init__(self, hf: Any, architecture: Architecture) -> None:
        self.hf = hf
        self.architecture = architecture
        config, decoder = hf.config.get_text_config(), hf.get_decoder()
        self.blocks: list[nn.Module] = list(getattr(decoder, architecture.layers))
        self.attentions: list[nn.Module] = [getattr(block, architecture.attn) for block in self.blocks]
        self._inputs = AttentionInputs(self._handed, architecture.attn_inputs, architecture.stream)
        self._factor: float = getattr(config, "residual_multiplier", None) or 1.0
        self.layers = [
            self._layer(block, Attention(attention, number, self._inputs))
            for number, (block, attention) in enumerate(zip(self.blocks, self.attentions, strict=True))
        ]
        self._final: list[nn.Module] = [
            module for name in architecture.final if (module := getattr(decoder, name)) is not None
        ]
        self.unembedding: nn.Module = hf.get_output_embeddings()
        inner = [getattr(block, name) for block in self.blocks for name in architecture.parts]
        self.parts: list[nn.Module] = list(dict.fromkeys([*inner, *self._final, self.unembedding]))
        self._returned = self._returns()
        self._times: float | None = getattr(config, "logit_scale", None)
        self._over: float | None = getattr(config, "logits_scaling", None)
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)

    def in_float32(self, number: int) -> Layer:
        """A layer that computes in float32 or wider: the model's own if it does, else a copy."""
        block = in_float32(self.blocks[number])
        if block is self.blocks[number]:
            return self.layers[number]
        return self._layer(block, Attention(getattr(block, self.architecture.attn), number, self._inputs))

    def copied(self, number: int) -> int:
        """Number of bytes that `in_float32` copies for a layer."""
        block = self.blocks[number]
        return 0 if is_float32(block) else sum(4 * p.numel() for p in block.parameters())

    def norm_before(self, site: Site) -> AnyNorm | None:
        """The norm whose output is read at `attn_in` or `mlp_in`; None at other sites or if its form is not known."""
        for stage in self.layers[site.layer].stages:
            for one in stage.branches:
                kind, norm = one.steps[0]
                if kind == site.kind and isinstance(norm, nn.Module):
                    return norm_of(norm, self.hf.config.get_text_config().hidden_size)
        return None

    def embed(self, tokens: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token d_model"]:
        """The input of the model's first layer. The rest of its forward is not run."""

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        hook = self.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.hf(tokens, use_cache=False)
        except _Reached as reached:
            return reached.what
        finally:
            hook.remove()
        raise AssertionError("the first layer was not run")

    def unembed(self, x: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token d_vocab"]:
        """Logits from the residual stream after the last layer: final norm, unembedding, constant factor and soft
        cap.
        """
        for module in self._final:
            x = module(x)
        logits = self.unembedding(x)
        if self._times is not None:
            logits = logits * self._times
        if self._over is not None:
            logits = logits / self._over
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    @contextmanager
    def stood_in(self, returns: Callable[[nn.Module, dict[str, Any]], Tensor]) -> Generator[None]:
        """Within the block no part computes. Each part returns a given tensor instead, in its usual output form.

        Args:
            returns: from a part and its arguments by name to its output.
        """

        def stub(part: nn.Module, given: dict[str, Any]) -> Any:
            output, rest = returns(part, given), self._returned[part].rest
            return output if rest is None else (output, *rest)

        with stood_in(self.parts, stub):
            yield

    def width(self, part: nn.Module) -> int:
        """The width of the output of a part or a block."""
        return self._returned[part].width

    @contextmanager
    def _in_precision(self, dtype: torch.dtype) -> Generator[None]:
        """Within the block activations have this precision from the embedding on, whatever the precision of the
        weights.
        """

        def to_weights(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            weight = next(module.parameters(recurse=False))
            return tuple(x.to(weight.dtype) if _is_float(x) else x for x in args)

        def to_given(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return output.to(dtype) if _is_float(output) else output

        inside = {module for block in self.blocks for module in block.modules()}
        with ExitStack() as undo:
            for module in self.hf.modules():
                if module not in inside and next(module.parameters(recurse=False), None) is not None:
                    undo.callback(module.register_forward_pre_hook(to_weights).remove)
                    undo.callback(module.register_forward_hook(to_given).remove)
            yield

    @torch.no_grad()
    def _handed(self, n_prompts: int, n_tokens: int, dtype: torch.dtype, n_before: int | None) -> list[dict[str, Any]]:
        """The arguments that each layer's attention receives on random prompts, with a cache of `n_before` tokens if
        one is asked for. Nothing else is computed.
        """
        handed: list[dict[str, Any]] = []
        options: dict[str, Any] = {"use_cache": n_before is not None}
        if n_before is not None:
            before = torch.zeros(n_prompts, 1, n_before, 1, dtype=dtype, device=self.hf.device)
            options["past_key_values"] = DynamicCache([(before, before)] * len(self.blocks))

        def zeros(part: nn.Module, given: dict[str, Any]) -> Tensor:
            if part in self.attentions:
                handed.append(given)
                if len(handed) == len(self.attentions):
                    raise _Reached(None)
            x = next(value for value in given.values() if isinstance(value, Tensor))
            return x.new_zeros(*x.shape[:-1], self.width(part))

        try:
            with self.stood_in(zeros), self._in_precision(dtype):
                self.hf(dummy(self.hf, n_prompts, n_tokens), **options)
        except _Reached:
            return handed
        raise AssertionError("the last layer was not run")

    @torch.no_grad()
    def _returns(self) -> dict[nn.Module, "_Returned"]:
        """The form of each part's output in the model's own forward."""
        found: dict[nn.Module, _Returned] = {}

        def see(part: nn.Module, _: tuple[Any, ...], output: Any) -> None:
            first, rest = (output, None) if isinstance(output, Tensor) else (output[0], tuple(output[1:]))
            found[part] = _Returned(first.shape[-1], rest)

        hooks = [part.register_forward_hook(see) for part in (*self.parts, *self.blocks)]
        try:
            self.hf(dummy(self.hf, 2, DUMMY_TOKENS), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def _layer(self, block: nn.Module, attention: Attention) -> Layer:
        names = self.architecture
        mlp_norm, mlp = _part(block, names.mlp_norm), _part(block, names.mlp)
        mlp = mlp if names.stream is None else Alone(mlp)
        attn_post = self._post(block, names.attn_post_norm)
        mlp_post = self._post(block, names.mlp_post_norm)
        branches = (
            branch("attn", _part(block, names.attn_norm), attention, attn_post),
            branch("mlp", mlp_norm, mlp, mlp_post),
        )
        if names.parallel:
            stages = (Stage("resid_pre", branches, "resid_post", names.stream_first),)
        else:
            stages = (
                Stage("resid_pre", branches[:1], "resid_mid"),
                Stage("resid_mid", branches[1:], "resid_post"),
            )
        return Layer(stages, mlp_norm, mlp, mlp_post)

    def _post(self, block: nn.Module, name: str | None) -> Function | None:
        """What is applied to a branch's output: a norm, a constant factor, both, or nothing."""
        norm = None if name is None else getattr(block, name)
        return norm if self._factor == 1 else Scaled(self._factor, norm)


def dummy(hf: Any, n_prompts: int, n_tokens: int) -> Int[Tensor, "prompt token"]:
    """Random prompts of this number and length."""
    ids = torch.arange(1, n_prompts * n_tokens + 1, device=hf.device).view(n_prompts, n_tokens)
    return ids % hf.config.get_text_config().vocab_size


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class _Returned(NamedTuple):
    """The form of a module's output."""

    width: int
    rest: tuple[Any, ...] | None
    """What the module returns in addition to its output tensor; None if it returns the tensor alone."""


class _Reached(Exception):  # noqa: N818  # not an error: how the forward is left
    def __init__(self, what: Any) -> None:
        self.what = what


def _part(module: nn.Module, names: str | tuple[str, ...] | None) -> nn.Module:
    """The module of this name; several names are chained into one module; no name gives the identity."""
    if names is None:
        return nn.Identity()
    if isinstance(names, str):
        return getattr(module, names)
    return nn.Sequential(OrderedDict((name, getattr(module, name)) for name in names))
