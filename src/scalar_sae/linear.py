"""Linear maps outside any graph, by oneDNN on CPUs: as fast as torch's own product or faster, and with a GELU in
the same kernel. torch has these kernels but gives them no public name.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def linear(
    x: Float[Tensor, "row d_in"], W: Float[Tensor, "d_in d_out"], b: Float[Tensor, " d_out"]
) -> Float[Tensor, "row d_out"]:
    """X W + b."""
    if _by_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, W.T, b, "none", [], "")
    return torch.addmm(b, x, W)


def linear_gelu(
    x: Float[Tensor, "row d_in"], W: Float[Tensor, "d_in d_out"], b: Float[Tensor, " d_out"]
) -> Float[Tensor, "row d_out"]:
    """`gelu_tanh(x W + b)`."""
    if _by_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, W.T, b, "gelu", [], "tanh")
    return gelu_tanh(torch.addmm(b, x, W))


class LinearsByOneDNN(TorchFunctionMode):
    """In the block modules' linear maps (`Linear`, and GPT-2's `Conv1D`) take this way too, outside any graph."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch is asked for in the block."""
        if not kwargs and not torch.is_grad_enabled():
            if func is functional.linear and _by_onednn(args[0]):
                bias = args[2] if len(args) == 3 else None
                return torch.ops.mkldnn._linear_pointwise(args[0], args[1], bias, "none", [], "")
            if func is torch.addmm and _by_onednn(args[1]):
                return linear(args[1], args[2], args[0])
        return func(*args, **(kwargs or {}))


def gelu_tanh(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """GELU with the tanh formula, GPT-2's, as x sigmoid(2u): on CPUs faster than torch's own kernel."""
    c = 2 * (2 / math.pi) ** 0.5
    linear_term = torch.full((), c, dtype=x.dtype, device=x.device)
    return torch.addcmul(linear_term, x, x, value=0.044715 * c).mul_(x).sigmoid_() * x


def _there() -> bool:
    """Whether this torch has the kernels under the names that we know."""
    one = torch.ones(1, 1, device="cpu")
    try:
        torch.ops.mkldnn._linear_pointwise(one, one, one[0], "gelu", [], "tanh")
    except (AttributeError, RuntimeError):
        return False
    return True


_ONEDNN = _there()


def _by_onednn(x: Tensor) -> bool:
    return _ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32
