"""The feed-forward half of a layer as plain tensors, for code that needs more than its output.

    h = norm(x)                               LayerNorm, RMSNorm or DyT
    mlp(h) = act(h W_in + b_in) W_out + b_out                       plain
           = (act(h W_gate + b_gate) * (h W_in + b_in)) W_out + b_out    gated

The benchmark's closed form and the Jacobian SAEs read it; everything else calls the model's own modules. What the
modules hold is found by name; what they compute with it (RMSNorm with w or 1 + w?) by comparing on random inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scalar_sae.errors import UserError
from scalar_sae.kernels import gelu_tanh
from scalar_sae.lm.layers import Layer

_MLPS = (
    ("gate_proj", "up_proj", "down_proj"),
    (None, "c_fc", "c_proj"),
    (None, "dense_h_to_4h", "dense_4h_to_h"),
    (None, "fc_in", "fc_out"),
    (None, "fc1", "fc2"),
)
"""Names of the gate, input and output matrices."""
_ACTS = ("act_fn", "act", "activation_fn", "activation")
_EPS = ("eps", "variance_epsilon")


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

    @classmethod
    def of(cls, module: nn.Module, d_model: int) -> "Norm | None":
        """LayerNorm, RMSNorm, RMSNorm with 1 + w (Gemma) or DyT, whichever computes what the module does."""
        weight, bias = _tensor(module, "weight", d_model, 1.0), _tensor(module, "bias", d_model, 0.0)
        eps = next((getattr(module, name) for name in _EPS if hasattr(module, name)), 0.0)
        forms: list[Norm] = [
            cls(weight, bias, eps, True),
            cls(weight, bias, eps, False),
            cls(1 + weight, bias, eps, False),
        ]
        if isinstance(alpha := getattr(module, "alpha", None), Tensor):
            forms.append(DyT(weight, bias, 0.0, False, _wide(alpha)))
        return next((norm for norm in forms if _same(norm, module, d_model)), None)


@dataclass(frozen=True, eq=False)
class DyT(Norm):
    """Dynamic tanh (arXiv 2503.10622), elementwise: weight ⊙ tanh(alpha x) + bias."""

    alpha: Float[Tensor, "*"]
    """One number, or one a dimension."""

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The squashed activation."""
        return (self.alpha * x).tanh() * self.weight + self.bias

    def slope(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Its derivative at x."""
        return self.weight * self.alpha * (1 - (self.alpha * x).tanh().square())


@dataclass(frozen=True, eq=False)
class FeedForward:
    """Norm and MLP of one layer, weights in row-vector convention, float32 or wider."""

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

    def to(self, device: torch.device) -> "FeedForward":
        """The same on a device."""
        weights = {name: t.to(device) for name, t in vars(self).items() if isinstance(t, Tensor)}
        norm = replace(
            self.norm, **{name: t.to(device) for name, t in vars(self.norm).items() if isinstance(t, Tensor)}
        )
        return replace(self, norm=norm, **weights)

    @classmethod
    @torch.no_grad()
    def of(cls, layer: Layer, name: str) -> "FeedForward":
        """Read the modules of a layer.

        Raises:
            UserError: attention runs beside the MLP, a norm follows it, or the modules are of another form.
        """
        if "resid_mid" not in layer.kinds:
            raise UserError(f"{name}: attention and MLP run side by side, so there is no feed-forward half")
        if "mlp_raw" in layer.kinds:
            raise UserError(f"{name}: the MLP's output passes a norm, which a feed-forward half in plain tensors lacks")
        mlp: Any = layer.mlp
        names = next((names for names in _MLPS if all(hasattr(mlp, part) for part in names if part)), None)
        act = next((getattr(mlp, part) for part in _ACTS if hasattr(mlp, part)), None)
        if names is None or act is None:
            raise UserError(f"{name}: {type(mlp).__name__} is no MLP of known form")
        gate, into, out = (None if part is None else _linear(getattr(mlp, part)) for part in names)
        assert into is not None
        assert out is not None
        norm = Norm.of(layer.mlp_norm, into[0].shape[0])
        if norm is None:
            raise UserError(f"{name}: {type(layer.mlp_norm).__name__} is no LayerNorm, RMSNorm or DyT")
        half = cls(norm, *into, *(gate or (None, None)), _fast(act), *out)
        if not _same(half.mlp, mlp, into[0].shape[0]):
            raise UserError(f"{name}: {type(mlp).__name__} is no MLP of known form")
        return half


def _fast(act: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A model's nonlinearity, or a faster function that computes the same."""
    probe = torch.linspace(-8, 8, 1001, device="cpu")
    same = torch.allclose(act(probe), gelu_tanh(probe), rtol=1e-5, atol=1e-6)
    return gelu_tanh if same else act


def _linear(module: Any) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, " d_out"]]:
    """Weight and bias of a linear map in row-vector convention, which only Conv1D stores."""
    weight = _wide(module.weight if type(module).__name__ == "Conv1D" else module.weight.T)
    return weight, _tensor(module, "bias", weight.shape[1], 0.0)


def _tensor(module: nn.Module, name: str, size: int, default: float) -> Float[Tensor, " size"]:
    """A parameter vector, or a constant where the module has none."""
    value = getattr(module, name, None)
    if value is None:
        return torch.full((size,), default, device=next(module.parameters(), torch.zeros((), device="cpu")).device)
    return _wide(value)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _same(ours: Callable[[Tensor], Tensor], module: nn.Module, d_model: int) -> bool:
    """Whether a formula gives what a module computes on random inputs, but for the rounding of its precision."""
    weight = next(module.parameters(), torch.zeros((), device="cpu"))
    probe = torch.randn(16, d_model, generator=torch.Generator().manual_seed(0), device="cpu").to(weight) + 0.5
    theirs = _wide(module(probe))
    error = (ours(_wide(probe)) - theirs).abs().max()
    return bool(error <= 100 * torch.finfo(probe.dtype).eps * theirs.abs().max())
