"""What tells weights apart: a digest of their bytes."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from scalar_sae.saes.sae import SAE


def digest(tensors: Iterable[Tensor]) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over the bytes of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)  # numpy has no bfloat16
    return found.hexdigest()[:16]


def digest_of_sae(sae: SAE) -> str:
    """The digest of all tensors of an SAE."""
    more = (sae.W_skip, getattr(sae.activation, "threshold", None))
    return digest([sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, *(tensor for tensor in more if tensor is not None)])
