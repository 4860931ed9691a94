"""Passes through a block that are read at the last token of a prompt alone."""

import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.explore.stage import Stage

PASS_BYTES = 2**25
"""Passes are taken so many at a time that their widest activation fits this."""


def at_once(here: Stage) -> int:
    """How many passes over a cut prompt are taken at a time."""
    widest = max(len(here.change) * here.pair.lm.d_model * 4, here.width, here.pair.down.d_sae)
    return max(1, PASS_BYTES // (4 * widest))


def at_last(here: Stage, x: Float[Tensor, "row token d_model"]) -> Float[Tensor, "row d_model"]:
    """What down's encoder multiplies at the last token when x stands at the upstream site."""
    where = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    where[:, -1] = True
    return here.pair.down.normalize_input(here.pair.compute_at(where, x, here.prompt.up_skip))
