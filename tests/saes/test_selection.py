"""Methods that choose how many latents stay: the identities that tie them to one another."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalar_sae.activations.reading import Gradient
from scalar_sae.errors import UserError
from scalar_sae.saes.components.sparse import largest_values
from scalar_sae.saes.components.zipf import Law
from scalar_sae.saes.methods.base import Progress
from scalar_sae.saes.methods.batch_topk import BatchTopKConfig, batch_top_k
from scalar_sae.saes.methods.llama_scope import LlamaScopeConfig
from scalar_sae.saes.methods.matryoshka import MatryoshkaConfig
from scalar_sae.saes.methods.topk import TopKConfig
from scalar_sae.saes.methods.unverified.feature_choice import (
    FeatureChoiceConfig,
    FeatureChoiceTrainee,
    divided,
    feature_choice,
)
from scalar_sae.saes.methods.unverified.g_sae import GSAEConfig, GSAETrainee
from scalar_sae.saes.methods.unverified.mutual_choice import MutualChoiceConfig
from tests.helpers import Shape
from tests.saes.dictionaries import HERE, LATE, SITE, assert_same, data, losses_and_grads, prepared


def test_batch_topk_of_one_token_is_topk():
    x = data(1)
    plain = prepared(TopKConfig(sites=HERE, k=3, unit_norm=True, expansion=4), x)
    one = TopKConfig(sites=HERE, k=3, unit_norm=True, expansion=4)
    batch = BatchTopKConfig(sites=HERE, k=3, scale="none", expansion=4)
    assert_same(losses_and_grads(one, x, plain), losses_and_grads(batch, x, plain))


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_batch_selection_keeps_the_largest_of_the_batch(seed: int, k: int, batch: int):
    acts = torch.rand(batch, 6, generator=torch.Generator().manual_seed(seed))
    kept = acts * batch_top_k(acts, k)
    expected = acts.flatten().sort(descending=True).values[: batch * k]
    torch.testing.assert_close(kept.flatten().sort(descending=True).values[: len(expected)], expected)
    assert int((kept > 0).sum()) == len(expected)


@given(st.integers(0, 10**6), st.integers(1, 30_000), st.sampled_from([1.0, 0.5, 0.01, 0.0]))
@settings(deadline=None, max_examples=30)
def test_the_largest_values_are_found_among_many(seed: int, k: int, share: float):
    """Also where a sample misleads: all equal but a share of them, which stand together."""
    flat = torch.zeros(30_000)
    some = flat[: int(share * len(flat))]
    some += torch.randn(some.shape, generator=torch.Generator().manual_seed(seed))
    expected = flat.sort(descending=True).values[:k]
    assert torch.equal(largest_values(flat, k).sort(descending=True).values, expected)


def test_mutual_choice_selects_as_batch_topk():
    x = data()
    assert_same(
        losses_and_grads(BatchTopKConfig(sites=HERE, k=3, auxk=0), x),
        losses_and_grads(MutualChoiceConfig(sites=HERE, k=3, auxk=0), x),
    )


GAO = {"unit_norm": True, "median_bias": True, "auxk": 1 / 32, "k_aux": 4, "multi": 2}


def gradient_sae(x: torch.Tensor, g: torch.Tensor, **options) -> tuple[GSAETrainee, list[torch.Tensor]]:
    """A g-SAE after a step without update, with its loss and gradients."""
    trainee = prepared(GSAEConfig(sites=HERE, **{"k": 3, **options}), data())
    assert isinstance(trainee, GSAETrainee)
    trainee.dead_latents.window = 0
    loss = trainee.losses({SITE: x, Gradient(SITE): g}, LATE)[SITE]
    loss.backward()
    return trainee, [loss.detach(), *(getattr(trainee, name).grad for name in ("W_enc", "b_enc", "W_dec", "b_dec"))]


@pytest.mark.parametrize("options", [{}, GAO])
def test_gradient_sae_with_beta_zero_is_topk_to_the_bit(options: dict):
    x = data()
    plain = prepared(TopKConfig(sites=HERE, k=3, **options), x)
    plain.dead_latents.window = 0
    loss = plain.losses({SITE: x}, LATE)[SITE]
    loss.backward()
    expected = [loss.detach(), *(getattr(plain, name).grad for name in ("W_enc", "b_enc", "W_dec", "b_dec"))]
    _, ours = gradient_sae(x, data(seed=1), beta=0.0, **options)
    assert all(torch.equal(a, b) for a, b in zip(expected, ours, strict=True))


@pytest.mark.parametrize("rescale", [True, False])
def test_gradient_sae_does_not_depend_on_the_units_of_the_activations(rescale: bool):
    """In units of a tenth, activations are ten times as large and gradients a tenth: the chain rule."""
    x, g = data(), data(seed=1)
    codes = list[torch.Tensor]()
    for unit in (1.0, 10.0):
        trainee = prepared(GSAEConfig(sites=HERE, k=3, scale="sqrt_d", rescale=rescale), unit * x)
        assert isinstance(trainee, GSAETrainee)
        found = trainee.as_trained(SITE, {SITE: unit * x, Gradient(SITE): g / unit})
        assert found is not None
        codes.append(found[0] / unit)
    torch.testing.assert_close(codes[0], codes[1])


@pytest.mark.parametrize("combine", ["sum", "product"])
def test_gradient_sae_leaves_out_tokens_without_a_gradient(combine: str):
    x, g, last = data(), data(seed=1), torch.arange(64) % 16 == 15
    _, fewer = gradient_sae(x[~last], g[~last], combine=combine, auxk=0.5)
    trainee, ours = gradient_sae(x, g.masked_fill(last.unsqueeze(1), 0.0), combine=combine, auxk=0.5)
    assert all(torch.equal(a, b) for a, b in zip(fewer, ours, strict=True))
    assert trainee.dead_latents.tokens_since_fired.max() in (0, 64), "they count as seen"


@pytest.mark.parametrize("combine", ["sum", "product"])
def test_gradient_sae_is_evaluated_with_gradients_and_without(combine: str):
    """With them by its equation; tokens without a gradient are selected by activation in both."""
    x, g, last = data(), data(seed=1), torch.arange(64) % 16 == 15
    g[last] = 0.0
    trainee = prepared(GSAEConfig(sites=HERE, k=3, beta=2.0, combine=combine, scale="unit"), x)
    assert isinstance(trainee, GSAETrainee)
    found = trainee.as_trained(SITE, {SITE: x, Gradient(SITE): g})
    assert found is not None
    sae, norm = trainee.sae(SITE), (g / trainee.scale[1]).norm(dim=1)[~last].mean()
    z = (x @ sae.W_enc + sae.b_enc).relu()
    pull = (g / trainee.scale[1] / norm @ trainee.W_dec.detach().T).abs()
    score = torch.where(last.unsqueeze(1), z, z * (1 + 2 * pull if combine == "sum" else pull))
    kept = torch.zeros_like(z).scatter(1, score.topk(3).indices, 1.0)
    torch.testing.assert_close(found[0], sae.decode(z * kept), atol=1e-5, rtol=1e-4)
    assert torch.equal(found[1], (z * kept > 0).sum(0))
    plain = sae.decode(sae.encode(x))
    torch.testing.assert_close(found[0][last], plain[last], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[0][~last], plain[~last])


def test_gradient_sae_refuses_text_without_gradients():
    trainee = GSAEConfig(sites=HERE, k=3).trainees(Shape(8, 1), 0)[0]
    with pytest.raises(UserError, match=r"gradient at resid_mid.0 is 0 at every token .* give a context of at least 2"):
        trainee.prepare({SITE: data(), Gradient(SITE): torch.zeros(64, 8)})


def test_gradient_sae_prefers_what_the_loss_depends_on():
    x = data()
    trainee = prepared(GSAEConfig(sites=HERE, k=1, beta=1e6), x)
    with torch.no_grad():
        trainee.W_dec.zero_()
        trainee.W_dec[5, 0] = 1.0
    trainee.losses({SITE: x, Gradient(SITE): torch.eye(8)[0].expand(64, 8)}, LATE)
    positive = (trainee.weights().pre_acts(x)[:, 5] > 0).any()
    assert positive
    assert trainee.dead_latents.tokens_since_fired[5] == 0


def test_llama_scope_with_unit_columns_selects_as_topk():
    x = data()
    config = LlamaScopeConfig(sites=HERE, k=3, annealing=0.0, scale="none", decoder_norm=1.0)
    trainee, plain = prepared(config, x), prepared(TopKConfig(sites=HERE, k=3), x)
    with torch.no_grad():
        plain.W_enc.copy_(trainee.W_enc)
        plain.W_dec.copy_(trainee.W_dec)
    torch.testing.assert_close(trainee.sae(SITE).encode(x), plain.sae(SITE).encode(x))


def test_llama_scope_selects_by_activation_times_norm_and_keeps_the_activation():
    x, k = data(), 3
    trainee = prepared(LlamaScopeConfig(sites=HERE, k=k, annealing=0.0), x)
    with torch.no_grad():
        trainee.W_dec.mul_(torch.linspace(0.2, 5, 64).unsqueeze(1))
        trainee.b_enc.copy_(0.3 * torch.randn(64, generator=torch.Generator().manual_seed(1)))
        trainee.b_dec.fill_(0.1)
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    W_enc, b_enc, W_dec, b_dec = (getattr(trainee, name).detach().clone().requires_grad_() for name in names)
    loss = trainee.losses({SITE: x}, LATE)[SITE]
    loss.backward()

    y = x * 8**0.5 / x.norm(dim=1).mean()
    f = (y @ W_enc + b_enc).relu()
    strength = (f * W_dec.norm(dim=1)).detach()
    kept = strength >= strength.sort(dim=1, descending=True).values[:, k - 1 : k]
    assert not torch.equal(kept, f >= f.sort(dim=1, descending=True).values[:, k - 1 : k]), "norms decide"
    error = (f * kept) @ W_dec + b_dec - y
    expected = (error.square() / (y - y.mean(0)).norm(dim=1, keepdim=True)).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for name, theirs in zip(names, (W_enc, b_enc, W_dec, b_dec), strict=True):
        torch.testing.assert_close(getattr(trainee, name).grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_llama_scopes_loss_is_finite_where_every_token_equals_the_mean():
    x = data(1).expand(5, -1)
    trainee = prepared(LlamaScopeConfig(sites=HERE, k=3), data())
    loss = trainee.losses({SITE: x}, LATE)[SITE]
    loss.backward()
    y = x * trainee.scale[0]
    error = (trainee.coded(y, 3).decoded() - y).square().mean()
    torch.testing.assert_close(loss, error / 1e-8**0.5)
    assert all(p.grad.isfinite().all() for p in trainee.parameters())


def test_llama_scope_anneals_k_and_ends_with_a_threshold_at_k():
    x = data(400)
    trainee = prepared(LlamaScopeConfig(sites=HERE, k=2, annealing=0.1), x)
    assert [trainee.k_at(Progress(step, 100)) for step in (0, 5, 10, 99)] == [4, 3, 2, 2]
    trainee.calibrate({SITE: x})
    sae = trainee.sae(SITE)
    assert abs((sae.encode(x) > 0).sum().item() - 2 * 400) <= 1
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))


def test_llama_scope_transcoders_draw_their_encoder_apart():
    config = LlamaScopeConfig(sites=["mlp_in.0"], targets=["mlp_out.0"])
    coder = config.trainees(Shape(32, 1), 0)[0]
    sae = LlamaScopeConfig(sites=["mlp_in.0"]).trainees(Shape(32, 1), 0)[0]
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert torch.equal(coder.W_dec, sae.W_dec)
    torch.testing.assert_close(coder.W_enc.norm(dim=0), torch.full((256,), 0.5))
    cosines = 4 * (coder.W_enc * coder.W_dec.T).sum(0)
    assert cosines.abs().mean() < 2 / 32**0.5


def test_feature_choice_with_the_whole_batch_as_budget_is_relu():
    acts = data().relu()
    assert torch.equal(feature_choice(acts, torch.full((8,), 64)), acts > 0)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_feature_choice_gives_every_latent_its_budget(seed: int):
    g = torch.Generator().manual_seed(seed)
    acts, budgets = torch.rand(20, 6, generator=g), torch.randint(1, 21, (6,), generator=g)
    kept = acts * feature_choice(acts, budgets)
    assert torch.equal((kept > 0).sum(0), budgets)
    for column, all_of_it, m in zip(kept.T, acts.T, budgets.tolist(), strict=True):
        torch.testing.assert_close(column[column > 0].sort().values, all_of_it.sort().values[-m:])


@given(st.integers(1, 64), st.integers(64, 600), st.integers(1, 300), st.floats(0.3, 2))
@settings(deadline=None, max_examples=50)
def test_feature_choice_divides_its_whole_budget_by_the_law(k: int, d_sae: int, batch: int, exponent: float):
    shares = Law(exponent, 2.7, 1.0, 1.0).shares(d_sae)
    budgets = divided(k * batch, shares, batch)
    assert budgets.sum() == max(k * batch, d_sae)
    assert budgets.min() >= 1
    assert budgets.max() <= batch
    assert (np.diff(budgets) <= 0).all(), "the more frequent, the more"
    free = (budgets > 1) & (budgets < batch)
    if free.any():  # one factor fits all of them within a token
        assert ((budgets[free] - 1) / shares[free]).max() <= ((budgets[free] + 1) / shares[free]).min()


@pytest.mark.parametrize("mode", ["zipf", "uniform"])
def test_feature_choice_keeps_k_on_average(mode: str):
    trainee = prepared(FeatureChoiceConfig(sites=HERE, k=24, mode=mode), data())
    assert isinstance(trainee, FeatureChoiceTrainee)
    trainee.densities.density.copy_(1 / (torch.arange(64).flip(0) + 3.7))
    trainee.settle()
    trainee.densities.rank.copy_(torch.arange(64).flip(0))
    assert trainee.budgets(100).sum() == 2400
    assert trainee.budgets(100)[-1] == {"zipf": 100, "uniform": 38}[mode]  # the most frequent one's: all, or 37.5
    assert trainee.select(1 + torch.rand(100, 64), LATE).sum(1).float().mean() == 24


def test_feature_choice_ends_with_a_threshold_for_each_latent():
    x = data(200)
    trainee = prepared(FeatureChoiceConfig(sites=HERE, k=3, first_phase=1e-9), x)
    trainee.losses({SITE: x}, LATE)
    rule = trainee.activation()
    u = trainee.weights().pre_acts(x * trainee.scale[0])
    smallest = torch.where(feature_choice(u.relu(), trainee.budgets(200)), u, torch.inf).amin(0)
    torch.testing.assert_close(rule.threshold[smallest < torch.inf], smallest[smallest < torch.inf])


@torch.no_grad()
def test_feature_choice_ends_with_the_thresholds_of_its_last_weights():
    x = data(3 * 4096 + 200)
    trainee = prepared(FeatureChoiceConfig(sites=HERE, k=3, first_phase=1e-9, scale="none"), x)
    for step in range(200):
        trainee.W_enc.mul_(1.01)  # what is kept grows sevenfold
        trainee.losses({SITE: x[64 * step % 4096 :][:64]}, Progress(step, 200))
    trainee.calibrate({SITE: x})
    sae, expected = trainee.sae(SITE), torch.zeros(4, 64)
    for row, part in zip(expected, x.split(4096), strict=True):
        u, budgets = trainee.weights().pre_acts(part).relu(), trainee.budgets(len(part))
        for j in range(64):
            row[j] = u[:, j].sort(descending=True).values[budgets[j] - 1]
    torch.testing.assert_close(sae.activation.threshold, expected.mean(0), rtol=1e-4, atol=1e-5)
    assert (sae.encode(x) > 0).sum(1).float().mean() == pytest.approx(3, rel=0.1)


def test_matryoshka_with_one_group_is_batch_topk():
    x = data()
    one = MatryoshkaConfig(sites=HERE, k=3, fractions=[1.0])
    assert_same(losses_and_grads(BatchTopKConfig(sites=HERE, k=3), x), losses_and_grads(one, x))


def test_matryoshka_levels_are_decoded_from_prefixes():
    x = data()
    trainee = prepared(MatryoshkaConfig(sites=HERE, k=3, fractions=[0.25, 0.75], level_weights=[3.0, 1.0], auxk=0), x)
    loss = trainee.losses({SITE: x}, LATE)[SITE]
    y, weights = x * trainee.scale[0], trainee.weights()
    u = weights.pre_acts(y).relu()
    f = u * batch_top_k(u, 3)
    errors = [(y - f[:, :end] @ weights.W_dec[:end] - weights.b_dec).square().sum(1).mean() for end in (16, 64)]
    expected = 3 * errors[0] + errors[1]
    torch.testing.assert_close(loss, expected)
    parameters = list(trainee.parameters())
    assert_same(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters))


@pytest.mark.parametrize("rows", [1, 40])
def test_sparse_gradients_are_those_of_the_dense_code(rows: int):
    """Also of a batch in which fewer latents are positive than may stay, or none."""
    trainee = prepared(BatchTopKConfig(sites=HERE, k=3, auxk=0), data())
    for bias in (0.0, -0.5, -100.0):
        torch.nn.init.constant_(trainee.b_enc, bias)
        x = data(rows, seed=1)
        loss = trainee.losses({SITE: x}, LATE)[SITE]
        y, weights = x * trainee.scale[0], trainee.weights()
        u = weights.pre_acts(y).relu()
        f = u * batch_top_k(u, 3)
        expected = (y - weights.decode(f)).square().sum(1).mean()
        parameters = list(trainee.parameters())
        ours, dense = (torch.autograd.grad(one, parameters) for one in (loss, expected))
        assert_same([loss.detach(), *ours], [expected.detach(), *dense])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": [float("nan"), 1.0]}, "fractions.0\n.*finite number"),
        ({"fractions": [-0.5, 1.5]}, "fractions.0\n.*greater than 0"),
        ({"fractions": [0.5, 0.4]}, "must add up to 1"),
        ({"level_weights": [-1.0] * 5}, "level_weights.0\n.*greater than or equal to 0"),
        ({"level_weights": [0.0] * 5}, "level_weights: all are 0"),
        ({"level_weights": [1.0] * 4}, "level_weights: 4 for 5 levels"),
        ({"expansion": 2}, "matryoshka: 16 latents at resid_mid.0 leave a group of fractions .* empty; give fewer"),
        ({"expansion": 3, "fractions": [0.5, 1e-9, 0.5 - 1e-9]}, "24 latents at resid_mid.0 leave a group"),
    ],
)
def test_matryoshka_levels_that_cannot_be_meant_are_refused(options: dict, message: str):
    with pytest.raises((ValueError, UserError), match=message):
        MatryoshkaConfig(sites=HERE, k=3, **options).trainees(Shape(8, 1), 0)


def test_multi_topk_adds_an_eighth_of_the_wider_loss():
    x = data()
    narrow, wide, both = (
        losses_and_grads(TopKConfig(sites=HERE, **options), x) for options in ({"k": 2}, {"k": 8}, {"k": 2, "multi": 4})
    )
    assert_same(both, [a + b / 8 for a, b in zip(narrow, wide, strict=True)])
