"""Linear maps by oneDNN against torch's own."""

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from scalar_sae.linear import LinearsByOneDNN, linear, linear_gelu

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


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_modules_compute_the_same(name: str):
    module = MODULES[name]
    x = seeded(3, 5, 24, dtype=next(module.parameters()).dtype)
    expected = module(x)
    with LinearsByOneDNN():
        found = module(x)
    assert found.shape == (3, 5, 40)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_gradients_go_through_torchs_own(name: str):
    module = MODULES[name]
    x = seeded(3, 5, 24, dtype=next(module.parameters()).dtype).requires_grad_()
    grads: list[Tensor] = []
    for context in (LinearsByOneDNN(), torch.enable_grad()):
        with context:
            grads.extend(torch.autograd.grad(module(x).square().sum(), x))
    assert torch.equal(*grads)
