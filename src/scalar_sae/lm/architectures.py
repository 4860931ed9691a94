"""Where a `transformers` model keeps the parts of its layers: one table for all families.

A model's architecture is found by structure when it is loaded, not by name: it is the first row whose modules the
model has and whose composition gives the model's own layer outputs and logits on a dummy prompt (`dissect`). So
relatives of a family need no row of their own. docs/models.md shows how to add one.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scalar_sae.errors import UserError
from scalar_sae.lm.layers import At, Attention, AttentionInputs, Layer, Stage, branch

DOCS = "docs/models.md"
DUMMY_TOKENS = 8


@dataclass(frozen=True)
class Architecture:
    """Names of modules: of a layer's, and of those of the decoder (`get_decoder()`) around the layers."""

    name: str
    layers: str
    attn_norm: str | None
    attn: str
    mlp_norm: str | None
    mlp: str | tuple[str, ...]
    """One module, or several in a row."""
    final: tuple[str, ...]
    """What lies between the last layer and the unembedding; those that a model has none of are left out."""
    attn_post_norm: str | None = None
    """Norm of the attention's output before it is added to the residual stream."""
    mlp_post_norm: str | None = None
    parallel: bool = False
    """Attention and MLP read the residual stream side by side."""
    attn_inputs: tuple[str, ...] = ("hidden_states",)
    """The arguments of the attention's forward that are the activation."""

    def missing(self, decoder: nn.Module) -> list[str]:
        """The modules that a decoder lacks to be of this architecture."""
        mlp = (self.mlp,) if isinstance(self.mlp, str) else self.mlp
        names = [self.attn_norm, self.attn, self.mlp_norm, *mlp, self.attn_post_norm, self.mlp_post_norm]
        layers = getattr(decoder, self.layers, None)
        first = layers[0] if isinstance(layers, nn.ModuleList) and len(layers) else None
        lacking = [f"{self.layers}.0.{name}" for name in names if name and not hasattr(first, name)]
        return lacking + [name for name in self.final if not hasattr(decoder, name)]


HOOKED: dict[str, Any] = {
    "layers": "blocks", "attn": "attn", "mlp": "mlp", "final": ("ln_final",),
    "attn_inputs": ("query_input", "key_input", "value_input"),
}  # fmt: skip
"""What is common to TransformerLens' own models (hooked.py)."""

ARCHITECTURES = (
    Architecture("gpt2", "h", "ln_1", "attn", "ln_2", "mlp", ("ln_f",)),
    Architecture("gptj", "h", "ln_1", "attn", "ln_1", "mlp", ("ln_f",), parallel=True),
    Architecture(
        "gemma2", "layers", "input_layernorm", "self_attn", "pre_feedforward_layernorm", "mlp", ("norm",),
        attn_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm",
    ),
    Architecture(
        "olmo2", "layers", None, "self_attn", None, "mlp", ("norm",),
        attn_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm",
    ),
    Architecture("llama", "layers", "input_layernorm", "self_attn", "post_attention_layernorm", "mlp", ("norm",)),
    Architecture(
        "gpt-neox", "layers", "input_layernorm", "attention", "post_attention_layernorm", "mlp", ("final_layer_norm",),
    ),
    Architecture(
        "pythia", "layers", "input_layernorm", "attention", "post_attention_layernorm", "mlp", ("final_layer_norm",),
        parallel=True,
    ),
    Architecture(
        "opt", "layers", "self_attn_layer_norm", "self_attn", "final_layer_norm", ("fc1", "activation_fn", "fc2"),
        ("final_layer_norm", "project_out"),
    ),
    Architecture(
        "phi", "layers", "input_layernorm", "self_attn", "input_layernorm", "mlp", ("final_layernorm",), parallel=True,
    ),
    Architecture(
        "hooked-gemma2", **HOOKED, attn_norm="ln1", mlp_norm="ln2", attn_post_norm="ln1_post", mlp_post_norm="ln2_post",
    ),
    Architecture(
        "hooked-olmo2", **HOOKED, attn_norm=None, mlp_norm=None, attn_post_norm="ln1", mlp_post_norm="ln2",
    ),
    Architecture("hooked", **HOOKED, attn_norm="ln1", mlp_norm="ln2"),
    Architecture("hooked-parallel", **HOOKED, attn_norm="ln1", mlp_norm="ln2", parallel=True),
)  # fmt: skip


class Anatomy:
    """A causal language model taken apart along an architecture."""

    def __init__(self, hf: Any, architecture: Architecture) -> None:
        self.hf = hf
        self.architecture = architecture
        decoder = hf.get_decoder()
        self._modules = list(getattr(decoder, architecture.layers))
        attentions = [getattr(module, architecture.attn) for module in self._modules]
        inputs = AttentionInputs(self._forward, attentions, architecture.attn_inputs)
        self.layers = [
            self._layer(module, Attention(attention, number, inputs))
            for number, (module, attention) in enumerate(zip(self._modules, attentions, strict=True))
        ]
        self._final = [module for name in architecture.final if (module := getattr(decoder, name)) is not None]
        self._unembed = hf.get_output_embeddings()
        self._cap: float | None = getattr(hf.config.get_text_config(), "final_logit_softcapping", None)

    def embed(self, tokens: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token d_model"]:
        """What the model itself feeds to its first layer; the rest of its forward is not run."""

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _FirstLayerReached(args[0] if args else kwargs["hidden_states"])

        hook = self._modules[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.hf(tokens, use_cache=False)
        except _FirstLayerReached as reached:
            return reached.x
        finally:
            hook.remove()
        raise AssertionError("the first layer was not run")

    def unembed(self, x: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token d_vocab"]:
        """Logits from the residual stream behind the last layer: final norm, unembedding, soft cap."""
        for module in self._final:
            x = module(x)
        logits = self._unembed(x)
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    @torch.no_grad()
    def difference(self) -> str | None:
        """Where the parts, put together, do not give what the model computes on a dummy prompt; None if nowhere."""
        own: list[Tensor] = []

        def record(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            own.append(output if isinstance(output, Tensor) else output[0])

        hooks = [module.register_forward_hook(record) for module in self._modules]
        try:
            logits = self._forward(DUMMY_TOKENS)
        finally:
            for hook in hooks:
                hook.remove()
        x = self.embed(self._dummy(DUMMY_TOKENS))
        for number, (layer, output) in enumerate(zip(self.layers, own, strict=True)):
            *_, (_, here) = layer.steps("resid_pre", At(x, None))
            if not _close(here.x, output):
                off, size = (here.x - output).abs().max().item(), output.abs().max().item()
                return f"layer {number} computes something else (off by {off:.1g} of {size:.1g})"
            x = output
        return None if _close(self.unembed(x), logits) else "the logits are computed in another way"

    def _forward(self, n_tokens: int) -> Float[Tensor, "1 token d_vocab"]:
        return self.hf(self._dummy(n_tokens), use_cache=False).logits

    def _dummy(self, n_tokens: int) -> Int[Tensor, "1 token"]:
        """Some prompt of this length."""
        ids = torch.arange(1, n_tokens + 1, device=self.hf.device) % self.hf.config.get_text_config().vocab_size
        return ids.unsqueeze(0)

    def _layer(self, module: nn.Module, attention: Attention) -> Layer:
        names = self.architecture
        mlp_norm = _part(module, names.mlp_norm)
        mlp = _part(module, names.mlp)
        attn_post = _part(module, names.attn_post_norm) if names.attn_post_norm else None
        mlp_post = _part(module, names.mlp_post_norm) if names.mlp_post_norm else None
        branches = (
            branch("attn", _part(module, names.attn_norm), attention, attn_post),
            branch("mlp", mlp_norm, mlp, mlp_post),
        )
        if names.parallel:
            stages = (Stage("resid_pre", branches, "resid_post"),)
        else:
            stages = (
                Stage("resid_pre", branches[:1], "resid_mid"),
                Stage("resid_mid", branches[1:], "resid_post"),
            )
        return Layer(stages, mlp_norm, mlp)


def dissect(hf: Any, name: str) -> Anatomy:
    """Take a causal language model apart, and check on a dummy prompt that the parts make up the whole.

    Raises:
        UserError: no architecture in the table is the model's, or its weights are not finite.
    """
    if not callable(getattr(hf, "get_decoder", None)) or hf.get_output_embeddings() is None:
        raise UserError(f"{name}: {type(hf).__name__} is not a causal language model of transformers")
    decoder = hf.get_decoder()
    tried: list[str] = []
    for architecture in ARCHITECTURES:
        if architecture.missing(decoder):
            continue
        try:
            anatomy = Anatomy(hf, architecture)
            difference = anatomy.difference()
        except Exception as error:  # modules of these names, which take or give other things
            difference = f"its modules do not fit together so ({error})"
        else:
            if difference is None:
                return anatomy
        tried.append(f"{architecture.name}: {difference}")
    damaged = [weight for weight, values in hf.named_parameters() if not values.isfinite().all()]
    if damaged:
        raise UserError(f"{name}: {damaged[0]} holds values that are not finite; the model's weights are damaged")
    if not tried:
        nearest = min(ARCHITECTURES, key=lambda architecture: len(architecture.missing(decoder)))
        tried = [f"nearest is {nearest.name}, but there is no {', '.join(nearest.missing(decoder))}"]
    raise UserError(
        f"{name}: {hf.config.model_type} is not an architecture that is understood ({'; '.join(tried)}); "
        f"{DOCS} shows how to add one in ten lines"
    )


class _FirstLayerReached(Exception):  # noqa: N818  # not an error: how the forward is left
    def __init__(self, x: Tensor) -> None:
        self.x = x


def _part(module: nn.Module, names: str | tuple[str, ...] | None) -> nn.Module:
    """The module of this name, or several in a row as one; the identity for none."""
    if names is None:
        return nn.Identity()
    if isinstance(names, str):
        return getattr(module, names)
    return nn.Sequential(OrderedDict((name, getattr(module, name)) for name in names))


def _close(ours: Tensor, theirs: Tensor) -> bool:
    """Equal but for rounding: a wrong composition is far off, another order of additions is not."""
    tolerance = 100 * torch.finfo(theirs.dtype).eps * theirs.abs().max()
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= tolerance)
