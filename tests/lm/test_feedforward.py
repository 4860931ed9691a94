"""The feed-forward half as plain tensors is what the model's modules compute, in every precision, or is refused."""
# pyright: reportUnknownLambdaType=false, reportPrivateUsage=false

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scalar_sae.errors import UserError
from scalar_sae.lm.layers import Layer
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.norms import DyT, NoNorm, Norm, norm_of
from scalar_sae.sites import Site
from tests.lm.families import DTYPES, FAMILIES, GATED, PARALLEL, POST_NORM, family_hf, family_lm

TOKENS = torch.arange(33).view(3, 11) * 5 % 64
D = 24
CENTRED = (
    "gpt2", "pythia", "gpt-neox", "olmo", "cohere", "persimmon", "gptj", "opt", "phi", "bloom", "falcon",
    "falcon-parallel", "falcon-two-norms",
)  # fmt: skip
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
with_outlier = pytest.mark.parametrize("outlier", [False, True], ids=["", "outlier"])


@with_outlier
@every_dtype
@pytest.mark.parametrize("family", FAMILIES)
def test_the_feed_forward_half_is_the_models_own(family: str, dtype: torch.dtype, outlier: bool):
    """Of a half precision model to float32's rounding what its float32 copy computes, and to its own what it does."""
    lm = family_lm(family, dtype, outlier=outlier)
    start = Site("resid_pre" if family in PARALLEL else "resid_mid", 1)
    half = lm.feed_forward(1)
    assert half.W_in.dtype == torch.float32
    assert (half.W_gate is not None) == (family in (*GATED, "gemma2", "gemma3", "olmo2", "glm4", "cohere"))
    assert (half.post is not None) == (family in POST_NORM)
    assert isinstance(half.norm, NoNorm if family == "olmo2" else Norm)
    assert not isinstance(half.norm, Norm) or half.norm.centred == (family in CENTRED)
    wide = LanguageModel(deepcopy(lm.hf).float(), family)
    x = lm.activations(TOKENS, [start])[start]
    h, y = half.norm(x), half.mlp(half.norm(x))
    for model, precision in ((wide, torch.float32), (lm, dtype)):
        eps = torch.finfo(precision).eps
        own = model.run(start, Site("mlp_in", 1), x, x)
        torch.testing.assert_close(h, own, atol=4 * eps * own.abs().max().item(), rtol=0)
        own = model.run(Site("mlp_in", 1), Site("mlp_out", 1), h)
        torch.testing.assert_close(y, own, atol=16 * eps * own.abs().max().item(), rtol=0)


@every_dtype
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 1e3])
def test_an_eps_that_stands_in_the_code_is_found(scale: float, dtype: torch.dtype):
    """OLMo's norm has neither weights nor an eps among its attributes."""
    lm = family_lm("olmo", dtype)
    half = lm.feed_forward(0)
    assert isinstance(half.norm, Norm)
    assert half.norm.eps == 1e-5
    x = scale * torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(0))
    own = deepcopy(lm.hf.model.layers[0].post_attention_layernorm).float()(x)
    torch.testing.assert_close(half.norm(x), own, atol=1e-6, rtol=1e-5)
    assert not half.norm(torch.zeros(1, 7, 16)).any()


class Own(nn.Module):
    """A norm with everything in its code."""

    def __init__(self, function: Any, **tensors: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def power(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean(-1, keepdim=True)


@every_dtype
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-8, 1e-6, 1e-5, 3.7e-3, 0.1])
@pytest.mark.parametrize("kind", ["layer_norm", "layer_norm_bias", "rms", "rms_1_plus_w", "layer_norm_1_plus_w"])
def test_every_norm_is_recognised_with_its_eps(kind: str, eps: float, dtype: torch.dtype):
    g = torch.Generator().manual_seed(0)
    w, b = (torch.randn(D, generator=g).to(dtype) for _ in range(2))

    def compute(module: Any, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        y = y - y.mean(-1, keepdim=True) if kind.startswith("layer_norm") else y
        y = y * (power(y) + eps).rsqrt()
        y = y * (module.weight.float() + ("1_plus" in kind)) + (module.bias.float() if kind.endswith("bias") else 0)
        return y.to(x.dtype)

    module = Own(compute, weight=w, **({"bias": b} if kind.endswith("bias") else {}))
    norm = norm_of(module, D)
    assert isinstance(norm, Norm)
    assert norm.eps == eps
    assert norm.centred == kind.startswith("layer_norm")
    x = torch.randn(5, D, generator=g)
    torch.testing.assert_close(norm(x), module.float()(x), atol=1e-5, rtol=1e-5)


NEARLY: dict[str, Any] = {
    "eps outside the root": lambda _, x: x / (power(x).sqrt() + 1e-3),
    "L2 norm without the mean": lambda _, x: x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt(),
    "variance over d - 1": lambda _, x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt(),
    "a little larger": lambda _, x: 1.0001 * F.rms_norm(x, (D,), eps=1e-6),
    "half of it": lambda _, x: F.rms_norm(x, (D,), eps=1e-6) * torch.cat([torch.ones(D // 2), torch.zeros(D // 2)]),
    "limited": lambda _, x: F.rms_norm(x.clamp(-100, 100), (D,), eps=1e-6),
    "a floor instead of eps": lambda _, x: x * power(x).clamp(min=1e-6).rsqrt(),
    "no norm": lambda _, x: 2 * x,
}


@pytest.mark.parametrize("kind", NEARLY)
def test_what_is_nearly_a_norm_is_not_taken_for_one(kind: str):
    assert norm_of(Own(NEARLY[kind]), D) is None


@every_dtype
def test_an_eps_that_has_no_short_decimal_is_found(dtype: torch.dtype):
    """`torch.nn.RMSNorm` without an eps adds 2^-23."""
    norm = norm_of(nn.RMSNorm(D).to(dtype), D)
    assert isinstance(norm, Norm)
    assert norm.eps == pytest.approx(2**-23, rel=1e-6)


def test_a_dyt_is_recognised_and_one_that_is_not_quite_is_not():
    g = torch.Generator().manual_seed(0)
    tensors = {"weight": torch.randn(D, generator=g), "bias": torch.randn(D, generator=g), "alpha": torch.tensor(0.7)}
    module = Own(lambda m, x: m.weight * (m.alpha * x).tanh() + m.bias, **tensors)
    norm = norm_of(module.bfloat16(), D)
    assert isinstance(norm, DyT)
    x = torch.randn(5, D, generator=g)
    torch.testing.assert_close(norm(x), module.float()(x))
    assert norm_of(Own(lambda m, x: m.weight * (m.alpha * x).tanh() + 1.001 * m.bias, **tensors), D) is None


MLPS: dict[str, Any] = {
    "the gate's output is limited": lambda m, x: m.down_proj(m.act_fn(m.gate_proj(x).clamp(max=7)) * m.up_proj(x)),
    "one more unit": lambda m, x: m.down_proj(m.act_fn(m.gate_proj(x)) * (m.up_proj(x) + 1)),
    "the output is scaled": lambda m, x: 1.001 * m.down_proj(m.act_fn(m.gate_proj(x)) * m.up_proj(x)),
    "the input is added": lambda m, x: x + m.down_proj(m.act_fn(m.gate_proj(x)) * m.up_proj(x)),
    "gate and input are exchanged": lambda m, x: m.down_proj(m.gate_proj(x) * m.act_fn(m.up_proj(x))),
    "the act is scaled": lambda m, x: m.down_proj(m.act_fn(1.702 * m.gate_proj(x)) * m.up_proj(x)),
}


@every_dtype
@pytest.mark.parametrize("change", MLPS)
def test_an_mlp_that_does_a_little_more_is_not_taken_for_a_plain_one(
    change: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    hf = family_hf("llama", dtype)
    monkeypatch.setattr(type(hf.model.layers[0].mlp), "forward", MLPS[change])
    lm = LanguageModel(hf, "mine")  # its own modules are called all the same
    with pytest.raises(UserError, match="mine, layer 1: LlamaMLP is no MLP of known form"):
        lm.feed_forward(1)


@every_dtype
def test_a_linear_map_with_something_beside_its_weight_is_not_taken_for_plain(dtype: torch.dtype):
    """As an adapter has it."""
    hf = family_hf("llama", dtype)
    low = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)) * 1e-2
    hf.model.layers[1].mlp.down_proj.register_forward_hook(lambda _m, args, y: y + args[0] @ low.T.to(args[0].dtype))
    with pytest.raises(UserError, match="mine, layer 1: LlamaMLP is no MLP of known form"):
        LanguageModel(hf, "mine").feed_forward(1)


@pytest.mark.parametrize("act", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast"])
def test_the_faster_gelu_stands_in_for_the_same_function_alone(act: str):
    from transformers.activations import ACT2FN

    from scalar_sae.kernels import gelu_tanh
    from scalar_sae.lm.feedforward import _fast

    assert _fast(ACT2FN[act]) is gelu_tanh
    for other in ("gelu", "quick_gelu", "silu", "relu", "gelu_10"):
        assert _fast(ACT2FN[other]) is not gelu_tanh


def test_a_norm_behind_the_mlp_of_unknown_form_is_refused():
    layer = family_lm("gemma2")._anatomy.layers[0]
    strange = Layer(layer.stages, layer.mlp_norm, layer.mlp, Own(NEARLY["eps outside the root"]))
    from scalar_sae.lm.feedforward import FeedForward

    with pytest.raises(UserError, match="mine: the MLP's output passes a Own, which is of no known form"):
        FeedForward.of(strange, "mine")


@every_dtype
@pytest.mark.parametrize("form", ["rms", "rms_1_plus_w", "layer_norm"])
def test_a_gain_of_zero_has_no_form_and_the_modules_are_called(form: str, dtype: torch.dtype):
    """Nothing of the norm is left in its outputs; with one entry that is not zero all of it can be told."""
    gain = torch.full((D,), -1.0 if form == "rms_1_plus_w" else 0.0, dtype=dtype)

    def compute(module: Any, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        y = y - y.mean(-1, keepdim=True) if form == "layer_norm" else y
        w = module.weight.float() + (form == "rms_1_plus_w")
        return (y * (power(y) + 1e-5).rsqrt() * w).to(x.dtype)

    assert norm_of(Own(compute, weight=gain.clone()), D) is None
    gain[5] += 0.5
    norm = norm_of(Own(compute, weight=gain), D)
    assert isinstance(norm, Norm)
    assert (norm.eps, norm.centred, norm.weight.count_nonzero()) == (1e-5, form == "layer_norm", 1)
    hf = family_hf("llama", dtype)
    hf.model.layers[1].post_attention_layernorm.weight.data.zero_()
    lm = LanguageModel(hf, "mine")
    with pytest.raises(UserError, match="mine, layer 1: LlamaRMSNorm is no LayerNorm, RMSNorm or DyT of known form"):
        lm.feed_forward(1)
