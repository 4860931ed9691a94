"""Tokens that are not text: no SAE is trained on them, and none is measured there."""

from collections.abc import Collection

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def counted(tokens: Int[Tensor, "prompt token"], ignore: Collection[int]) -> Bool[Tensor, "prompt token"]:
    """Where tokens are none of those to ignore."""
    return ~torch.isin(tokens, tokens.new_tensor(sorted(ignore)))
