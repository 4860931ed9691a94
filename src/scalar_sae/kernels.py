"""Faster CPU versions of the operations that take most of the time of a sweep or a training step.

Linear maps use oneDNN, which is at least as fast as torch's own product and can apply a GELU in the same kernel. torch
contains these kernels without a public name. Causal attention with narrow heads avoids the masked half of the scores,
which torch's kernel computes. Only `linear` supports gradients.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

ROWS = 16
"""Products with fewer rows are left to torch."""
NARROW = 32
"""Maximum width of heads. For wider heads, torch's own attention is as fast."""
TOKENS = 32
"""Number of queries processed at once in attention."""
SCORES = 2**19
"""Number of attention scores held at once."""


def linear(
    x: Float[Tensor, "row d_in"], W: Float[Tensor, "d_in d_out"], b: Float[Tensor, " d_out"] | None = None
) -> Float[Tensor, "row d_out"]:
    """The linear map x W + b, with gradients."""
    if _by_onednn(x):
        return _Linear.apply(x, W, b)
    return x @ W if b is None else torch.addmm(b, x, W)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, W)
        return _product(x, W, b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, W), (for_x, for_W, for_b) = grads, ctx.saved_tensors, ctx.needs_input_grad
        to_x = _product(grad, W.T) if for_x else None
        to_W = None
        if for_W:  # in the memory layout of W
            to_W = _product(x.T, grad) if W.is_contiguous() else _product(grad.T, x).T
        return to_x, to_W, grad.sum(0) if for_b else None


def _product(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, W.T, b, "none", [], "")


def linear_gelu(
    x: Float[Tensor, "row d_in"], W: Float[Tensor, "d_in d_out"], b: Float[Tensor, " d_out"]
) -> Float[Tensor, "row d_out"]:
    """`gelu_tanh(x W + b)`."""
    if _by_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, W.T, b, "gelu", [], "tanh")
    return gelu_tanh(torch.addmm(b, x, W))


class FastCPUOps(TorchFunctionMode):
    """Within the block, modules and SAEs use these operations without gradients.

    They replace `Linear`, GPT-2's `Conv1D`, products of activations with a matrix, and attention.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle a torch function that is called within the block."""
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            if func is functional.linear and not kwargs and _by_onednn(args[0]):
                return _product(args[0], args[1].T, args[2] if len(args) == 3 else None)
            if func is torch.addmm and not kwargs and _by_onednn(args[1]):
                return linear(args[1], args[2], args[0])
            if func in _MATMUL and not kwargs and _by_onednn(args[0]) and _many_rows_times_a_matrix(*args):
                return _product(*args)
            attends = func is functional.scaled_dot_product_attention and len(args) >= 3
            if attends and _causal_and_narrow(*args, **kwargs):
                return causal_attention(*args[:3], scale=kwargs.get("scale"))
        return func(*args, **kwargs)


def causal_attention(
    q: Float[Tensor, "batch head token d_head"],
    k: Float[Tensor, "batch head token d_head"],
    v: Float[Tensor, "batch head token d_head"],
    scale: float | None = None,
) -> Float[Tensor, "batch head token d_head"]:
    """softmax(scale q k^T) v, where no token sees a later one. The scale is 1 / sqrt(d_head) if none is given.

    Some prompts and tokens are processed at a time, so that their scores fit in the cache. Masked scores are skipped
    except within a triangle.
    """
    batch, n_heads, n_token, d_head = q.shape
    factor = d_head**-0.5 if scale is None else scale
    mask = q.new_full((n_token, n_token), -math.inf).triu(1)
    # in the layout in which heads are read, side by side
    out = q.new_empty(batch, n_token, n_heads, d_head).transpose(1, 2)
    rows = max(1, SCORES // (n_heads * TOKENS * n_token))
    for some, *three in zip(*(x.split(rows) for x in (out, q, k, v)), strict=True):
        query, key, value = (x.reshape(-1, n_token, d_head) for x in three)
        for start in range(0, n_token, TOKENS):
            end = min(start + TOKENS, n_token)
            seen = key[:, :end].transpose(1, 2)
            scores = torch.baddbmm(mask[start:end, :end], query[:, start:end], seen, alpha=factor)
            some[:, :, start:end] = (scores.softmax(-1) @ value[:, :end]).view(-1, n_heads, end - start, d_head)
    return out


_MATMUL = (torch.matmul, Tensor.matmul)


def _many_rows_times_a_matrix(x: Tensor, W: Tensor) -> bool:
    """Whether oneDNN is faster for this product. It reorders the matrix first, which pays off only for many rows."""
    return W.dim() == 2 and x.dim() >= 2 and x.numel() >= ROWS * x.shape[-1]


def _causal_and_narrow(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **more: Any,
) -> bool:
    """Whether `causal_attention` gives the same result faster."""
    plain = is_causal and attn_mask is None and dropout_p == 0 and not more.keys() - {"scale"}
    return plain and q.dim() == 4 and q.shape == k.shape == v.shape and q.shape[-1] <= NARROW and _plain(q)


def gelu_tanh(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """GELU with the tanh formula of GPT-2, as x sigmoid(2u), which on CPUs is faster than torch's own kernel."""
    c = 2 * (2 / math.pi) ** 0.5
    linear_term = torch.full((), c, dtype=x.dtype, device=x.device)
    return torch.addcmul(linear_term, x, x, value=0.044715 * c).mul_(x).sigmoid_() * x


def _there() -> bool:
    """Whether this version of torch has the kernels under the names used here."""
    one = torch.ones(1, 1, device="cpu")
    try:
        torch.ops.mkldnn._linear_pointwise(one, one, one[0], "gelu", [], "tanh")
    except (AttributeError, RuntimeError):
        return False
    return True


_ONEDNN = _there()


def _by_onednn(x: Tensor) -> bool:
    return _ONEDNN and _plain(x)


def _plain(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32
