"""The feed-forward half of a layer as plain tensors, for code that needs more than its output.

    h = norm(x)                               LayerNorm or RMSNorm
    mlp(h) = act(h W_in + b_in) W_out + b_out                       plain
           = (act(h W_gate + b_gate) * (h W_in + b_in)) W_out + b_out    gated

The benchmark's closed form and the Jacobian SAEs read it; everything else calls the model's own modules.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.models.gpt2.modeling_gpt2 import GPT2Block


@dataclass(frozen=True, eq=False)
class Norm:
    """Normalisation of a token's activation over d_model."""

    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    eps: float
    centred: bool
    """True: LayerNorm, the mean is subtracted. False: RMSNorm."""

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The normalised activation."""
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight + self.bias


@dataclass(frozen=True, eq=False)
class FeedForward:
    """Norm and MLP of one layer, weights in row-vector convention."""

    norm: Norm
    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, " d_mlp"]
    W_gate: Float[Tensor, "d_model d_mlp"] | None
    b_gate: Float[Tensor, " d_mlp"] | None
    act: Callable[[Tensor], Tensor]
    """The elementwise nonlinearity."""
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, " d_model"]

    def mlp(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The MLP's output for a normalised input."""
        hidden = h @ self.W_in + self.b_in
        if self.W_gate is None:
            return self.act(hidden) @ self.W_out + self.b_out
        gate = h @ self.W_gate + (0.0 if self.b_gate is None else self.b_gate)
        return self.act(gate) * hidden @ self.W_out + self.b_out

    @classmethod
    def of_gpt2(cls, layer: GPT2Block) -> "FeedForward":
        """GPT-2: LayerNorm, plain MLP; its Conv1D weights are in row-vector convention already."""
        norm, mlp = layer.ln_2, layer.mlp
        assert isinstance(norm, torch.nn.LayerNorm)
        return cls(
            norm=Norm(norm.weight, norm.bias, norm.eps, centred=True),
            W_in=mlp.c_fc.weight,
            b_in=mlp.c_fc.bias,
            W_gate=None,
            b_gate=None,
            act=mlp.act,
            W_out=mlp.c_proj.weight,
            b_out=mlp.c_proj.bias,
        )
