"""The norms of a language model as plain tensors: LayerNorm, RMSNorm, DyT, or none.

The name of a norm does not say what it computes (RMSNorm may use w or 1 + w), and neither do its attributes in every
case (OLMo's eps is written in its forward). Therefore eps is measured, and a form is accepted only if it reproduces the
module's outputs to float32 rounding, on small and large activations and on zero. This comparison is made in float32,
whatever the model's precision, and again in the model's own precision.
"""

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scalar_sae.lm.upcast import in_float32

TINY = 2.0**-40
"""Scale of the activation with which eps is measured. Its square is far below any eps."""
SIZES = (1e-6, 1e-3, 1.0, 1e3)
"""Scales of the activations on which a norm is compared, in addition to those where its eps matters most."""
ROUNDINGS = 16
"""Tolerance of a norm's output, in rounding errors: a dozen operations, and a mean over d_model."""


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm or RMSNorm of a token's activation over d_model."""

    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    eps: float
    centred: bool
    """True for LayerNorm, which subtracts the mean. False for RMSNorm."""

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The normalised activation."""
        return self.divided(x)[1] * self.weight + self.bias

    def divided(
        self, x: Float[Tensor, "*batch d_model"]
    ) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch d_model"]]:
        """The divisor, and the activation divided by it, before weight and bias are applied."""
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        sigma = (x.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return sigma, x / sigma

    def times(self, factor: float) -> "Norm":
        """The same norm with its output multiplied by a constant."""
        return Norm(self.weight * factor, self.bias * factor, self.eps, self.centred)

    def to(self, to: torch.device | torch.dtype) -> "Norm":
        """The same norm on a device or in a precision."""
        return Norm(self.weight.to(to), self.bias.to(to), self.eps, self.centred)


@dataclass(frozen=True, eq=False)
class DyT:
    """Dynamic tanh (arXiv 2503.10622), elementwise: weight ⊙ tanh(alpha x) + bias."""

    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    alpha: Float[Tensor, "*"]
    """A scalar, or one value per dimension."""

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The squashed activation."""
        return (self.alpha * x).tanh() * self.weight + self.bias

    def slope(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The derivative at x."""
        return self.weight * self.alpha * (1 - (self.alpha * x).tanh().square())

    def to(self, to: torch.device | torch.dtype) -> "DyT":
        """The same norm on a device or in a precision."""
        return DyT(self.weight.to(to), self.bias.to(to), self.alpha.to(to))


@dataclass(frozen=True, eq=False)
class NoNorm:
    """The identity, for models such as OLMo 2 whose MLP reads the residual stream directly."""

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The activation."""
        return x

    def to(self, to: torch.device | torch.dtype) -> "NoNorm":
        """The identity."""
        return self


AnyNorm = Norm | DyT | NoNorm


def before_gain(norm: AnyNorm) -> bool:
    """Whether TransformerLens' `hook_normalized` lies before the norm's gain, where the gain makes a difference.

    For an RMSNorm it always lies before the gain. For a LayerNorm it lay after gain and bias until TransformerLens 3.
    An SAE's files do not say which version they were made with, so after gain and bias is assumed.
    """
    return isinstance(norm, Norm) and not norm.centred and bool((norm.weight != 1).any())


def vector(module: Any, name: str, size: int, default: float) -> Float[Tensor, " size"]:
    """A parameter vector of a module, or a constant vector if the module lacks it."""
    value = getattr(module, name, None)
    return torch.full((size,), default, device="cpu") if value is None else value.detach()


@torch.no_grad()
def norm_of(module: nn.Module, d_model: int) -> AnyNorm | None:
    """The form of a norm module; None if no form fits, or several do."""
    if isinstance(module, nn.Identity):
        return NoNorm()
    wide = in_float32(module, torch.device("cpu"))
    weight, bias = vector(wide, "weight", d_model, 1.0), vector(wide, "bias", d_model, 0.0)
    if weight.shape != (d_model,) or bias.shape != (d_model,):
        return None
    forms: list[Norm | DyT] = [
        Norm(w, bias, _eps(wide, w, centred), centred) for w in (weight, 1 + weight) for centred in (True, False)
    ]
    if isinstance(alpha := getattr(wide, "alpha", None), Tensor):
        forms.append(DyT(weight, bias, alpha.detach()))
    fitting = [form for form in forms if _computes(form, wide) and _computes(form, module)]
    return fitting[0] if len(fitting) == 1 else None


def _eps(module: nn.Module, weight: Tensor, centred: bool) -> float:
    """The eps that a norm adds to the mean square, given its weight and form."""
    x = _probe(len(weight), TINY, offset=0.0, outlier=False)
    if centred:
        x = x - x.mean(-1, keepdim=True)
    y, wx = _without_bias(module)(x).double(), (weight * x).double()
    gain = (
        y * wx
    ).sum() / wx.square().sum()  # 1 / sqrt(power + eps), which is equal for all rows because the power is far smaller
    eps = gain.pow(-2).item() - x.double().square().mean().item()
    if not TINY**2 < eps < math.inf:  # no eps is added; or the gain is zero, so eps cannot be measured
        return 0.0
    rounded = (float(f"{eps:.{digits}g}") for digits in range(1, 9))
    return next(number for number in rounded if abs(number - eps) <= 1e-6 * eps)


def _computes(norm: Norm | DyT, module: nn.Module) -> bool:
    """Whether a norm reproduces a module's outputs, up to the rounding of the module's precision."""
    weight = next(module.parameters(), torch.zeros(1, device="cpu"))
    sizes = (*SIZES, 0.3 * norm.eps**0.5, 3 * norm.eps**0.5) if isinstance(norm, Norm) else SIZES
    x = _activations(len(norm.weight), sizes).to(weight)
    x = x[x.isfinite().all(-1)]  # float16 ends at 65,504
    theirs, x = module(x), x.to("cpu", torch.float64)
    ours = norm.to(torch.float64)(x)
    if theirs.shape != ours.shape:
        return False
    if isinstance(norm, Norm):
        sigma, _ = norm.divided(x)
        size = (x.abs() + (x.abs().mean(-1, keepdim=True) if norm.centred else 0)) / sigma
    else:
        size = torch.ones_like(x)
    precision = torch.finfo(theirs.dtype)
    rounding = ROUNDINGS * precision.eps * (size * norm.weight.abs() + norm.bias.abs() + precision.smallest_normal)
    theirs = theirs.to("cpu", torch.float64)
    close = (ours - theirs).abs() <= rounding
    return bool((close | (ours.isnan() & theirs.isnan())).all())


def _activations(d_model: int, sizes: tuple[float, ...]) -> Float[Tensor, "row d_model"]:
    """Activations of these scales, with and without a mean and an outlier dimension. The last one is zero."""
    probes = [_probe(d_model, size, offset=m, outlier=o) for size in sizes for m in (0.0, 1.0) for o in (False, True)]
    return torch.cat([*probes, torch.zeros(1, d_model, device="cpu")])


def _probe(d_model: int, size: float, *, offset: float, outlier: bool) -> Float[Tensor, "4 d_model"]:
    x = torch.randn(4, d_model, generator=torch.Generator().manual_seed(d_model), device="cpu") + offset
    if outlier:
        x[:, d_model // 2] *= 100
    return x * size


def _without_bias(module: nn.Module) -> nn.Module:
    module = deepcopy(module)
    if isinstance(bias := getattr(module, "bias", None), Tensor):
        bias.zero_()
    return module
