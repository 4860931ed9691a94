"""Comparing distributions a few tokens at a time gives what all logits at once give."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from scalar_sae.lm import outputs
from scalar_sae.lm.outputs import compare, log_probs
from tests.helpers import tiny_lm

TOKENS = torch.randint(0, 32, (3, 7), generator=torch.Generator().manual_seed(0))


def ends(batch: int, seed: int) -> torch.Tensor:
    return torch.randn(batch, 7, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fit", [1, 2, 5, 7, 14, 1000])
@pytest.mark.parametrize(("n", "n_reference", "n_tokens"), [(3, 3, 3), (3, 1, 1), (1, 3, 3), (1, 1, 3), (1, 1, 1)])
def test_divergences_are_those_of_whole_logits(
    monkeypatch: pytest.MonkeyPatch, fit: int, n: int, n_reference: int, n_tokens: int
):
    """By torch's own losses; a piece holds `fit` tokens, and half as many are compared at a time."""
    monkeypatch.setattr(outputs, "LOGIT_BYTES", 4 * 32 * fit)
    monkeypatch.setattr(outputs, "CACHE_BYTES", 2 * 32 * fit)
    lm = tiny_lm()
    x, references, tokens = ends(n, 1), [log_probs(lm, ends(n_reference, seed)) for seed in (2, 3)], TOKENS[:n_tokens]
    found = compare(lm, x, references, tokens)
    batch = max(n, n_reference, n_tokens)
    q = lm.unembed(x).log_softmax(-1).expand(batch, -1, -1)
    for kl, p in zip(found.kl, references, strict=True):
        expected = kl_div(q, p.expand_as(q), log_target=True, reduction="none").sum(-1)
        torch.testing.assert_close(kl, expected, atol=1e-6, rtol=1e-5)
    target = tokens[:, 1:].expand(batch, -1)
    expected = cross_entropy(q[:, :-1].transpose(1, 2), target, reduction="none")
    torch.testing.assert_close(found.ce, expected, atol=1e-6, rtol=1e-5)


def test_log_probabilities_made_in_pieces_are_those_of_whole_logits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outputs, "LOGIT_BYTES", 4 * 32 * 3)
    lm, x = tiny_lm(), ends(3, 1)
    torch.testing.assert_close(log_probs(lm, x), lm.unembed(x).log_softmax(-1))


def test_a_distribution_does_not_diverge_from_itself():
    lm, x = tiny_lm(), ends(3, 1)
    assert compare(lm, x, [log_probs(lm, x)], TOKENS).kl.abs().max() == 0
