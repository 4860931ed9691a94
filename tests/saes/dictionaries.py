"""Single dictionaries on a few made-up activations, for the tests of methods."""

import torch

from scalar_sae.saes.methods.base import Progress
from scalar_sae.saes.methods.dictionary import Dictionary, DictionaryMethod
from scalar_sae.sites import Site
from tests.helpers import Shape

SITE = Site("resid_mid", 0)
HERE = ["resid_mid.0"]
LATE = Progress(99, 100)


def data(n: int = 64, seed: int = 0, d_model: int = 8) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_model, generator=g) * torch.linspace(0.5, 2, d_model) + 0.3


def prepared(config: DictionaryMethod, x: torch.Tensor) -> Dictionary:
    trainee = config.trainees(Shape(x.shape[1], 1), 0)[0]
    assert isinstance(trainee, Dictionary)
    trainee.prepare(dict.fromkeys(trainee.reads, x))
    return trainee


def losses_and_grads(
    config: DictionaryMethod, x: torch.Tensor, weights: Dictionary | None = None
) -> list[torch.Tensor]:
    """Loss and gradients of W_enc, b_enc, W_dec, b_dec; the same first weights for whoever is compared."""
    trainee = prepared(config, x)
    if weights is not None:
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(trainee, name).data.copy_(getattr(weights, name).data)
    loss = trainee.losses({SITE: x}, LATE)[SITE]
    loss.backward()
    return [loss.detach(), *(getattr(trainee, name).grad for name in ("W_enc", "b_enc", "W_dec", "b_dec"))]


def assert_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)
