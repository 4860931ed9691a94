"""Linear maps by oneDNN and attention with narrow heads against torch's own."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from scalar_sae import kernels
from scalar_sae.kernels import FastCPUOps, causal_attention, linear, linear_gelu

MODULES = {
    "linear": nn.Linear(24, 40),
    "no bias": nn.Linear(24, 40, bias=False),
    "conv1d": Conv1D(40, 24),
    "double": nn.Linear(24, 40).double(),
}


def seeded(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_a_linear_map_and_its_gelu_are_those_of_torch():
    x, W, b = seeded(7, 24), seeded(24, 40), seeded(40)
    torch.testing.assert_close(linear(x, W, b), x @ W + b)
    torch.testing.assert_close(linear_gelu(x, W, b), nn.functional.gelu(x @ W + b, approximate="tanh"))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lies", ["by row", "by column"])
def test_gradients_of_a_linear_map_are_those_of_torch(bias: bool, lies: str):
    x, W, b = seeded(7, 24).requires_grad_(), seeded(24, 40), seeded(40).requires_grad_()
    W = (W if lies == "by row" else W.T.contiguous().T).requires_grad_()
    to, wanted = seeded(7, 40), [x, W, b] if bias else [x, W]
    ours = torch.autograd.grad(linear(x, W, b if bias else None), wanted, to)
    torchs = torch.autograd.grad(x @ W + b if bias else x @ W, wanted, to)
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other)
    assert ours[1].stride() == W.stride()


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_modules_compute_the_same(name: str):
    module = MODULES[name]
    x = seeded(3, 5, 24, dtype=next(module.parameters()).dtype)
    expected = module(x)
    with FastCPUOps():
        found = module(x)
    assert found.shape == (3, 5, 40)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 24), (20, 24), (3, 5, 24), (3, 7, 24), (0, 24), (24,)])
@pytest.mark.parametrize("lies", ["by row", "by column"])
@torch.no_grad()
def test_activations_times_a_matrix_are_the_same(shape: tuple[int, ...], lies: str):
    x, W = seeded(*shape), seeded(24, 40)
    W = W if lies == "by row" else W.T.contiguous().T
    expected = x @ W
    with FastCPUOps():
        found = x @ W
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_gradients_go_through_torchs_own(name: str):
    module = MODULES[name]
    x = seeded(3, 5, 24, dtype=next(module.parameters()).dtype).requires_grad_()
    grads: list[Tensor] = []
    for context in (FastCPUOps(), torch.enable_grad()):
        with context:
            grads.extend(torch.autograd.grad(module(x).square().sum(), x))
    assert torch.equal(*grads)


@given(batch=st.integers(1, 5), n_heads=st.integers(1, 3), n_token=st.integers(1, 70), d_head=st.integers(1, 32))
@torch.no_grad()
def test_attention_is_that_of_torch(batch: int, n_heads: int, n_token: int, d_head: int):
    q, k, v = seeded(3, batch, n_token, n_heads, d_head).transpose(2, 3)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    found = causal_attention(q, k, v)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    scaled = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    torch.testing.assert_close(causal_attention(q, k, v, 0.3), scaled, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_attention_is_taken_in_pieces(monkeypatch: pytest.MonkeyPatch):
    q, k, v = seeded(3, 5, 2, 40, 8)
    expected = causal_attention(q, k, v)
    monkeypatch.setattr(kernels, "SCORES", 2 * 2 * 32 * 40)
    torch.testing.assert_close(causal_attention(q, k, v), expected)


OTHERWISE: dict[str, dict[str, Any]] = {
    "mask": {"attn_mask": torch.ones(40, 40).tril(3).bool()},
    "not causal": {},
    "shared keys": {"is_causal": True, "enable_gqa": True},
}


@pytest.mark.parametrize("how", [*OTHERWISE, "causal", "wide heads"])
@torch.no_grad()
def test_only_plain_causal_attention_with_narrow_heads_is_ours(how: str, monkeypatch: pytest.MonkeyPatch):
    options = OTHERWISE.get(how, {"is_causal": True})
    d_head = 48 if how == "wide heads" else 8
    q, k, v = seeded(5, 4, 40, d_head), seeded(5, 4, 40, d_head) + 1, seeded(5, 4, 40, d_head) - 1
    if how == "shared keys":
        k, v = k[:, :2], v[:, :2]
    expected = nn.functional.scaled_dot_product_attention(q, k, v, **options)
    ours: list[int] = []
    monkeypatch.setattr(kernels, "causal_attention", lambda *a, **b: ours.append(1) or causal_attention(*a, **b))
    with FastCPUOps():
        found = nn.functional.scaled_dot_product_attention(q, k, v, **options)
    assert bool(ours) == (how == "causal")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_attention_that_is_asked_for_by_keywords_is_answered():
    q, k, v = seeded(3, 5, 4, 40, 8)
    with FastCPUOps():
        found = nn.functional.scaled_dot_product_attention(query=q, key=k, value=v, is_causal=True)
    torch.testing.assert_close(found, causal_attention(q, k, v), atol=1e-5, rtol=1e-4)
