"""Which latents are dead, and the losses that revive them."""

import torch

from scalar_sae.saes.components.dead_latents import DeadLatents, auxk_loss, window
from scalar_sae.saes.methods.topk import TopKConfig
from tests.saes.dictionaries import HERE, data, prepared


def test_the_auxiliary_loss_reaches_dead_latents_and_no_others():
    x = data()
    trainee = prepared(TopKConfig(sites=HERE, k=3), x)
    dead = torch.zeros(64, dtype=torch.bool)
    dead[5:15] = True
    residual = data(seed=4).requires_grad_()
    auxk_loss(trainee.weights(), x, residual, dead, 4).backward()
    assert residual.grad is None
    for grad in (trainee.W_enc.grad.T, trainee.W_dec.grad):
        assert grad[dead].any()
        assert not grad[~dead].any()
    none = torch.zeros(64, dtype=torch.bool)
    assert auxk_loss(trainee.weights(), x, residual, none, 4) == 0


def test_the_auxiliary_loss_is_its_equation():
    x, residual = data(), data(seed=4)
    weights = prepared(TopKConfig(sites=HERE, k=3), x).weights()
    dead = torch.arange(64) % 3 == 0
    u = torch.where(dead, weights.pre_acts(x), -torch.inf)
    z = torch.where(u >= u.topk(4).values[:, -1:], u, 0.0).relu()
    expected = (residual - z @ weights.W_dec).square().mean() / residual.var(0, correction=0).mean()
    torch.testing.assert_close(auxk_loss(weights, x, residual, dead, 4), expected)


def test_dead_is_counted_in_tokens():
    dead_latents = DeadLatents(3)
    dead_latents.record(torch.tensor([True, False, False]), 5)
    dead_latents.record(torch.tensor([False, True, False]), 2)
    assert dead_latents.tokens_since_fired.tolist() == [2, 0, 7]
    dead_latents.window = 7
    assert dead_latents.mask().tolist() == [False, False, True]
    assert [window(n, 5000) for n in (None, 700)] == [500, 700]
    assert [window(n, 50_000_000) for n in (None, 10_000_000)] == [5_000_000, 10_000_000]
    assert window(None, 10**9) == 10_000_000
