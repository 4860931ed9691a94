"""The table of architectures: where a `transformers` model keeps the parts of its layers.

A row names modules and says how they are put together. On loading, recognition.py finds the row that fits a model by
its structure, not by its name. Relatives of a model family therefore need no row of their own. docs/models.md shows how
to add a row.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Architecture:
    """The names of a layer's modules, and of the modules around the layers in the decoder (`get_decoder()`)."""

    name: str
    layers: str
    attn_norm: str | None
    attn: str
    mlp_norm: str | None
    mlp: str | tuple[str, ...]
    """One module, or several in sequence."""
    final: tuple[str, ...]
    """Modules between the last layer and the unembedding. Those that a model lacks are skipped."""
    attn_post_norm: str | None = None
    """Norm of the attention's output before it is added to the residual stream."""
    mlp_post_norm: str | None = None
    parallel: bool = False
    """Attention and MLP read the residual stream in parallel."""
    stream_first: bool = False
    """Whether a parallel layer adds (stream + attention) + MLP, or else stream + (attention + MLP). The rounding
    differs.
    """
    attn_inputs: tuple[str, ...] = ("hidden_states",)
    """The arguments of the attention's forward that hold the activation."""
    stream: str | None = None
    """The argument that passes the residual stream to attention and MLP, in models whose modules add it to their output
    themselves."""

    @property
    def parts(self) -> list[str]:
        """The names of a layer's modules."""
        mlp = (self.mlp,) if isinstance(self.mlp, str) else self.mlp
        names = (self.attn_norm, self.attn, self.attn_post_norm, self.mlp_norm, *mlp, self.mlp_post_norm)
        return list(dict.fromkeys(name for name in names if name))

    def missing(self, decoder: nn.Module) -> list[str]:
        """The modules of this architecture that a decoder lacks."""
        layers = getattr(decoder, self.layers, None)
        first = layers[0] if isinstance(layers, nn.ModuleList) and len(layers) else None
        lacking = [f"{self.layers}.0.{name}" for name in self.parts if getattr(first, name, None) is None]
        return lacking + [name for name in self.final if not hasattr(decoder, name)]


HOOKED: dict[str, Any] = {
    "layers": "blocks", "attn": "attn", "mlp": "mlp", "final": ("ln_final",),
    "attn_inputs": ("query_input", "key_input", "value_input"),
}  # fmt: skip
"""The fields common to TransformerLens' own models (hooked.py)."""

ARCHITECTURES = (
    Architecture("gpt2", "h", "ln_1", "attn", "ln_2", "mlp", ("ln_f",)),
    Architecture("gptj", "h", "ln_1", "attn", "ln_1", "mlp", ("ln_f",), parallel=True),
    Architecture(
        "bloom", "h", "input_layernorm", "self_attention", "post_attention_layernorm", "mlp", ("ln_f",),
        stream="residual",
    ),
    Architecture("falcon", "h", "input_layernorm", "self_attention", "post_attention_layernorm", "mlp", ("ln_f",)),
    Architecture(
        "falcon-parallel", "h", "input_layernorm", "self_attention", "input_layernorm", "mlp", ("ln_f",), parallel=True,
    ),
    Architecture("falcon-two-norms", "h", "ln_attn", "self_attention", "ln_mlp", "mlp", ("ln_f",), parallel=True),
    Architecture(
        "gemma2", "layers", "input_layernorm", "self_attn", "pre_feedforward_layernorm", "mlp", ("norm",),
        attn_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm",
    ),
    Architecture(
        "glm4", "layers", "input_layernorm", "self_attn", "post_attention_layernorm", "mlp", ("norm",),
        attn_post_norm="post_self_attn_layernorm", mlp_post_norm="post_mlp_layernorm",
    ),
    Architecture(
        "olmo2", "layers", None, "self_attn", None, "mlp", ("norm",),
        attn_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm",
    ),
    Architecture("llama", "layers", "input_layernorm", "self_attn", "post_attention_layernorm", "mlp", ("norm",)),
    Architecture(
        "cohere", "layers", "input_layernorm", "self_attn", "input_layernorm", "mlp", ("norm",), parallel=True,
        stream_first=True,
    ),
    Architecture(
        "persimmon", "layers", "input_layernorm", "self_attn", "post_attention_layernorm", "mlp", ("final_layernorm",),
    ),
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
    Architecture("hooked-parallel", **HOOKED, attn_norm="ln1", mlp_norm="ln2", parallel=True, stream_first=True),
)  # fmt: skip
