"""The feed-forward half of a layer as plain tensors, for code that needs more than its output.

    h = norm(x)                               LayerNorm, RMSNorm, DyT or nothing
    mlp(h) = post(act(h W_in + b_in) W_out + b_out)                       plain
           = post((act(h W_gate + b_gate) * (h W_in + b_in)) W_out + b_out)    gated

`post` is a norm in Gemma 2 and 3, GLM-4 and OLMo 2, and the identity elsewhere. Only the closed-form score and the
Jacobian SAEs read these tensors; all other code calls the model's own modules. Weights are found by name. Their
computation is checked in float32, to rounding: each norm and each linear map by its outputs, and the operations between
the linear maps by replacing the maps with stand-ins.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scalar_sae.errors import UserError
from scalar_sae.kernels import gelu_tanh
from scalar_sae.lm.layers import Alone, Layer, Scaled
from scalar_sae.lm.norms import AnyNorm, DyT, Norm, norm_of, vector
from scalar_sae.lm.stubs import stood_in
from scalar_sae.lm.upcast import in_float32

_MLPS = (
    ("gate_proj", "up_proj", "down_proj"),
    ("gate_up_proj", "gate_up_proj", "down_proj"),
    (None, "up_proj", "down_proj"),
    (None, "c_fc", "c_proj"),
    (None, "dense_h_to_4h", "dense_4h_to_h"),
    (None, "fc_in", "fc_out"),
    (None, "fc1", "fc2"),
)
"""Names of the gate, input and output matrices. Gate and input may be one matrix, with the gate first."""
_ACTS = ("act_fn", "act", "activation_fn", "activation", "gelu_impl")
SIZES = (2.0**-10, 1.0, 2.0**10)
"""Scales of the activations on which modules are compared."""
ROUNDINGS = 16
"""Tolerance of a matrix product, in rounding errors: each is float32's eps times the sum of its terms' magnitudes."""

Act = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class FeedForward:
    """Norm and MLP of one layer. Weights are in row-vector convention, in float32 or wider."""

    norm: AnyNorm
    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, " d_mlp"]
    W_gate: Float[Tensor, "d_model d_mlp"] | None
    b_gate: Float[Tensor, " d_mlp"] | None
    act: Act
    """The elementwise nonlinearity."""
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, " d_model"]
    post: Norm | None = None
    """Norm of the MLP's output."""

    def mlp(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What is added to the residual stream for a normalised input: the MLP's output, after its norm if there is
        one.
        """
        raw = self.raw(h)
        return raw if self.post is None else self.post(raw)

    def raw(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The MLP's output before that norm."""
        hidden = h @ self.W_in + self.b_in
        if self.W_gate is None:
            return self.act(hidden) @ self.W_out + self.b_out
        gate = h @ self.W_gate + (0.0 if self.b_gate is None else self.b_gate)
        return self.act(gate) * hidden @ self.W_out + self.b_out

    def times(self, factor: float) -> "FeedForward":
        """The same MLP with its output multiplied by a constant."""
        if factor == 1:
            return self
        if self.post is not None:
            return replace(self, post=self.post.times(factor))
        return replace(self, W_out=self.W_out * factor, b_out=self.b_out * factor)

    def to(self, device: torch.device) -> "FeedForward":
        """The same MLP on a device."""
        movable = (Tensor, Norm, DyT)
        moved: dict[str, Any] = {name: t.to(device) for name, t in vars(self).items() if isinstance(t, movable)}
        act = deepcopy(self.act).to(device) if isinstance(self.act, nn.Module) else self.act
        return replace(self, act=act, **moved)

    @classmethod
    @torch.no_grad()
    def of(cls, layer: Layer, name: str) -> "FeedForward":
        """Read the modules of a layer.

        Raises:
            UserError: the modules have another form.
        """
        inner: Any = layer.mlp.inner if isinstance(layer.mlp, Alone) else layer.mlp
        if (mlp := _read(in_float32(layer.mlp, torch.device("cpu")))) is None:
            raise UserError(f"{name}: {type(inner).__name__} is no MLP of known form")
        d_model = len(mlp["W_in"])
        if (norm := norm_of(layer.mlp_norm, d_model)) is None:
            raise UserError(f"{name}: {type(layer.mlp_norm).__name__} is no LayerNorm, RMSNorm or DyT of known form")
        factor, behind = 1.0, layer.mlp_post
        if isinstance(behind, Scaled):
            factor, behind = behind.factor, behind.before
        post = norm_of(behind, d_model) if isinstance(behind, nn.Module) else None
        if behind is not None and (not isinstance(post, Norm) or isinstance(norm, DyT)):
            raise UserError(f"{name}: the MLP's output passes a {type(behind).__name__}, which is of no known form")
        half = cls(norm, **mlp, post=post if isinstance(post, Norm) else None)
        return half.times(factor).to(layer.weight.device)


class _Map(NamedTuple):
    """A linear map in row-vector convention, with its module."""

    module: nn.Module
    W: Float[Tensor, "d_in d_out"]
    b: Float[Tensor, " d_out"]


def _read(mlp: nn.Module) -> dict[str, Any] | None:
    """Read the fields of FeedForward from an MLP in float32; None if it has another form."""
    inner: Any = mlp.inner if isinstance(mlp, Alone) else mlp
    names = next((names for names in _MLPS if all(hasattr(inner, part) for part in names if part)), None)
    act = next((getattr(inner, part) for part in _ACTS if hasattr(inner, part)), None)
    if names is None or act is None:
        return None
    maps = [_linear(getattr(inner, part)) for part in dict.fromkeys(names) if part]
    if not all(isinstance(found, _Map) for found in maps):
        return None
    *ins, out = (found for found in maps if found is not None)

    def hidden(returned: list[Tensor]) -> Tensor:
        parts = returned if names[0] != names[1] else list(returned[0].chunk(2, -1))
        return act(parts[0]) if len(parts) == 1 else act(parts[0]) * parts[1]

    if not _wired_so(mlp, ins, hidden, out):
        return None
    weights, biases = [part.W for part in ins], [part.b for part in ins]
    if names[0] == names[1]:
        weights, biases = list(weights[0].chunk(2, 1)), list(biases[0].chunk(2))
    W_gate, b_gate = (weights[0], biases[0]) if len(weights) == 2 else (None, None)
    return {
        "W_in": weights[-1], "b_in": biases[-1], "W_gate": W_gate, "b_gate": b_gate, "act": _fast(act),
        "W_out": out.W, "b_out": out.b,
    }  # fmt: skip


def _wired_so(mlp: nn.Module, ins: list[_Map], hidden: Callable[[list[Tensor]], Tensor], out: _Map) -> bool:
    """Whether an MLP passes its input to `ins`, `hidden` of their outputs to `out`, and returns the output of `out`.

    The maps are replaced by stand-ins that return whole numbers. Only the MLP's own nonlinearity then rounds, so
    equality is required to the bit.
    """
    for size in SIZES:
        numbers = torch.Generator().manual_seed(0)
        x = _whole_numbers(len(ins[0].W), size, numbers)
        returned = {part.module: _whole_numbers(len(part.b), size, numbers) for part in (*ins, out)}
        handed: dict[nn.Module, Tensor] = {}

        def stub(module: nn.Module, given: dict[str, Any], returned: Any = returned, handed: Any = handed) -> Tensor:
            handed[module] = next(iter(given.values()))
            return returned[module].clone()

        with stood_in(returned, stub):
            y = mlp(x)
        wanted = dict.fromkeys((part.module for part in ins), x)
        wanted[out.module] = hidden([returned[part.module] for part in ins])
        alike = all(module in handed and torch.equal(handed[module], wanted[module]) for module in wanted)
        if not (alike and torch.equal(y, returned[out.module])):
            return False
    return True


def _linear(module: Any) -> _Map | None:
    """A module in float32 as a linear map; None if it is not linear. Only Conv1D stores weights for row vectors."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        return None
    W = weight.detach() if type(module).__name__ == "Conv1D" else weight.detach().T
    b = vector(module, "bias", W.shape[1], 0.0)
    for size in SIZES:
        x = size * torch.randn(4, len(W), generator=torch.Generator().manual_seed(0), device="cpu").to(W)
        y = module(x)
        rounding = ROUNDINGS * torch.finfo(torch.float32).eps * (x.abs() @ W.abs() + b.abs())
        if y.shape != rounding.shape or not ((x @ W + b - y).abs() <= rounding).all():
            return None
    return _Map(module, W, b)


def _whole_numbers(width: int, size: float, generator: torch.Generator) -> Float[Tensor, "4 width"]:
    return torch.randint(-8, 9, (4, width), generator=generator, device="cpu").float() * size


def _fast(act: Act) -> Act:
    """A faster function equal to a model's nonlinearity up to float32 rounding, or the nonlinearity itself."""
    x = torch.cat([size * torch.linspace(-8, 8, 1001, device="cpu") for size in SIZES])
    rounding = ROUNDINGS * torch.finfo(torch.float32).eps * x.abs()
    return gelu_tanh if ((act(x) - gelu_tanh(x)).abs() <= rounding).all() else act
