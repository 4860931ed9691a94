"""Tokens that are not text: no SAE is trained on them, and none is measured there."""

from collections.abc import Collection

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from scalar_sae.lm.model import LanguageModel


def special_tokens(lm: LanguageModel) -> tuple[int, ...]:
    """Ids that mark beginnings and ends of text or padding: no SAE is trained on them."""
    named = (getattr(lm.hf.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id"))
    return tuple(sorted({token for token in named if isinstance(token, int)}))


def counted(tokens: Int[Tensor, "prompt token"], ignore: Collection[int]) -> Bool[Tensor, "prompt token"]:
    """Where tokens are none of those to ignore."""
    return ~torch.isin(tokens, torch.tensor(sorted(ignore), dtype=tokens.dtype))
