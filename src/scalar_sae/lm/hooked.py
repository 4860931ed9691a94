"""Adapters that give TransformerLens' models the interface that this package expects of a `transformers` model.

A bridge (`TransformerBridge`) holds a `transformers` model and computes its logits with it. A `HookedTransformer` is a
separate model whose weights may be folded and centred, so its own modules are called and its own logits are used.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig

from scalar_sae.errors import UserError


class _Output(NamedTuple):
    """The output, in the form that `transformers` returns."""

    logits: Float[Tensor, "batch token d_vocab"]


class Hooked(nn.Module):
    """A `HookedTransformer` with the interface of a `transformers` model."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        cfg = inner.cfg
        if cfg.use_attn_in or cfg.use_split_qkv_input:
            raise UserError(
                f"{cfg.model_name}: every head reads a residual stream of its own; "
                "set_use_attn_in(False) and set_use_split_qkv_input(False) give it one"
            )
        self.name_or_path = ""  # no files lie beside its weights
        cap: float | None = cfg.output_logits_soft_cap
        sizes: dict[str, Any] = {
            "hidden_size": cfg.d_model,
            "vocab_size": cfg.d_vocab,
            "max_position_embeddings": cfg.n_ctx,
            "final_logit_softcapping": cap if cap and cap > 0 else None,
        }
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            sizes[token] = getattr(inner.tokenizer, token, None)
        self.config: Any = PretrainedConfig(**sizes)
        self.config.model_type = type(inner).__name__

    @property
    def device(self) -> torch.device:
        """The device to which tokens are moved."""
        return next(self.parameters()).device

    def forward(self, tokens: Int[Tensor, "batch token"], use_cache: bool) -> _Output:
        """The model's own logits. No token is treated as padding."""
        return _Output(self.inner(tokens, padding_side="right"))

    def get_decoder(self) -> nn.Module:
        """The module that contains the layers."""
        return self.inner

    def get_output_embeddings(self) -> nn.Module:
        """The unembedding."""
        return self.inner.unembed

    def save_pretrained(self, folder: Path) -> None:
        """Not supported.

        Raises:
            UserError: always.
        """
        raise UserError(f"{folder}: a HookedTransformer cannot be written; use the model of transformers it came from")


def as_hf(module: nn.Module) -> tuple[nn.Module, str, Any]:
    """A module as a `transformers` model, with its name and the tokenizer that it carries, if any."""
    given: Any = module
    tokenizer = getattr(module, "tokenizer", None)
    if isinstance(original := getattr(module, "original_model", None), nn.Module):
        module = original
    elif all(hasattr(module, name) for name in ("cfg", "blocks", "unembed")):
        return Hooked(module), given.cfg.model_name, tokenizer
    return module, getattr(module, "name_or_path", "") or type(module).__name__, tokenizer
