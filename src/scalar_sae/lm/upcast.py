"""Float32 copies of the modules of a half-precision model."""

from copy import deepcopy

import torch
from torch import Tensor, nn


def is_float32(module: nn.Module) -> bool:
    """Whether a module is in float32 or wider."""
    return all(t.dtype in (torch.float32, torch.float64) for t in _floats(module))


def in_float32(module: nn.Module, device: torch.device | None = None) -> nn.Module:
    """The module in float32 or wider, on a device if one is given. It is copied only if necessary."""
    there = device is None or all(t.device == device for t in _floats(module))
    if there and is_float32(module):
        return module
    copy = deepcopy(module) if is_float32(module) else deepcopy(module).to(torch.float32)
    return copy if device is None else copy.to(device)


def _floats(module: nn.Module) -> list[Tensor]:
    return [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
