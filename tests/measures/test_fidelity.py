"""Fidelity against a direct computation, at every kind of site."""

import pytest
import torch
import torch.nn.functional as F

from scalar_sae.measures.fidelity import fidelity
from scalar_sae.sites import Site
from tests.helpers import PLAIN_KINDS, random_sae, tiny_lm

TOKENS = torch.arange(28).view(2, 14)


@pytest.mark.parametrize("kind", PLAIN_KINDS)
def test_one_sae_at_any_site(kind: str):
    lm, sae, site = tiny_lm(), random_sae(16, 24, 4, 0), Site(kind, 1)
    (found,) = fidelity(lm, {"mine": {site: sae}}, TOKENS)
    state = lm.states(TOKENS, [site])[site]
    x_hat = sae.decode(sae.encode(state.x))
    rows, error = state.x.flatten(0, 1), (state.x - x_hat).flatten(0, 1)
    assert found.fvu == pytest.approx((error.square().sum() / (rows - rows.mean(0)).square().sum()).item(), rel=1e-5)
    assert found.loss == pytest.approx(error.square().sum(1).mean().item(), rel=1e-5)
    assert found.l0 == pytest.approx((sae.encode(state.x) > 0).sum(-1).float().mean().item())
    ce = [
        F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).item()
        for logits in (lm.hf(TOKENS).logits, lm.logits_from(site, x_hat, state.skip))
    ]
    assert found.ce_increase == pytest.approx(ce[1] - ce[0], abs=1e-5)


def test_l0_per_chunk_adds_up():
    from dataclasses import replace

    sae = replace(random_sae(16, 24, 4, 0), chunks=(8, 16, 24))
    (found,) = fidelity(tiny_lm(), {"mine": {Site("resid_mid", 0): sae}}, TOKENS)
    assert len(found.l0_per_chunk) == 3
    assert sum(found.l0_per_chunk) == pytest.approx(found.l0, rel=1e-6)
