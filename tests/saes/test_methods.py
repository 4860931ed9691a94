"""Every method: the identities that tie it to another one, its gradients, and the SAE that it ends as."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalar_sae.activations.reading import Gradient
from scalar_sae.saes.batch_topk import BatchTopKConfig, batch_top_k
from scalar_sae.saes.dictionary import Dictionary, DictionaryMethod
from scalar_sae.saes.feature_choice import FeatureChoiceConfig, feature_choice
from scalar_sae.saes.firing import Firing, revival_loss
from scalar_sae.saes.gated import GatedConfig
from scalar_sae.saes.gradient import GradientConfig
from scalar_sae.saes.jumprelu import JumpReluConfig, jump_relu, step
from scalar_sae.saes.llama_scope import LlamaScopeConfig
from scalar_sae.saes.matryoshka import MatryoshkaConfig
from scalar_sae.saes.methods import CONFIGS
from scalar_sae.saes.mutual_choice import MutualChoiceConfig
from scalar_sae.saes.relu import ReluConfig
from scalar_sae.saes.sparsity import Sparsity, SparsityWeight
from scalar_sae.saes.temporal import TemporalConfig, TemporalTrainee
from scalar_sae.saes.topk import TopKConfig, geometric_median
from scalar_sae.saes.trainee import Progress
from scalar_sae.saes.zipf import Densities, Zipf
from scalar_sae.sites import Site
from tests.helpers import Shape

SITE = Site("resid_mid", 0)
HERE = ["resid_mid.0"]
LATE = Progress(99, 100)


def _data(n: int = 64, seed: int = 0, d_model: int = 8) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_model, generator=g) * torch.linspace(0.5, 2, d_model) + 0.3


def _trainee(config: DictionaryMethod, x: torch.Tensor) -> Dictionary:
    trainee = config.trainees(Shape(x.shape[1], 1), 0)[0]
    assert isinstance(trainee, Dictionary)
    trainee.prepare({SITE: x})
    return trainee


def _losses_and_grads(
    config: DictionaryMethod, x: torch.Tensor, weights: Dictionary | None = None
) -> list[torch.Tensor]:
    """Loss and gradients of W_enc, b_enc, W_dec, b_dec; the same first weights for whoever is compared."""
    trainee = _trainee(config, x)
    if weights is not None:
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(trainee, name).data.copy_(getattr(weights, name).data)
    loss = trainee.losses({SITE: x}, LATE)[SITE]
    loss.backward()
    return [loss.detach(), *(getattr(trainee, name).grad for name in ("W_enc", "b_enc", "W_dec", "b_dec"))]


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def test_batch_topk_of_one_token_is_topk():
    x = _data(1)
    plain = _trainee(TopKConfig(sites=HERE, k=3, unit_norm=True, expansion=4), x)
    one = TopKConfig(sites=HERE, k=3, unit_norm=True, expansion=4)
    batch = BatchTopKConfig(sites=HERE, k=3, scale="none", expansion=4)
    _same(_losses_and_grads(one, x, plain), _losses_and_grads(batch, x, plain))


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_batch_selection_keeps_the_largest_of_the_batch(seed: int, k: int, batch: int):
    acts = torch.rand(batch, 6, generator=torch.Generator().manual_seed(seed))
    kept = batch_top_k(acts, k)
    expected = acts.flatten().sort(descending=True).values[: batch * k]
    torch.testing.assert_close(kept.flatten().sort(descending=True).values[: len(expected)], expected)
    assert int((kept > 0).sum()) == len(expected)


def test_mutual_choice_selects_as_batch_topk():
    x = _data()
    _same(
        _losses_and_grads(BatchTopKConfig(sites=HERE, k=3, auxk=0), x),
        _losses_and_grads(MutualChoiceConfig(sites=HERE, k=3, auxk=0), x),
    )


def test_gradient_sae_with_beta_zero_is_topk_to_the_bit():
    x, g = _data(), _data(seed=1)
    plain = _losses_and_grads(TopKConfig(sites=HERE, k=3), x)
    trainee = _trainee(GradientConfig(sites=HERE, k=3, beta=0.0), x)
    loss = trainee.losses({SITE: x, Gradient(SITE): g}, LATE)[SITE]
    loss.backward()
    ours = [loss.detach(), *(getattr(trainee, name).grad for name in ("W_enc", "b_enc", "W_dec", "b_dec"))]
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))


def test_gradient_sae_prefers_what_the_loss_depends_on():
    x = _data()
    trainee = _trainee(GradientConfig(sites=HERE, k=1, beta=1e6), x)
    with torch.no_grad():
        trainee.W_dec.zero_()
        trainee.W_dec[5, 0] = 1.0
    trainee.losses({SITE: x, Gradient(SITE): torch.eye(8)[0].expand(64, 8)}, LATE)
    positive = (trainee.weights().pre_acts(x)[:, 5] > 0).any()
    assert positive
    assert trainee.firing.idle[5] == 0


def test_llama_scope_with_unit_columns_selects_as_topk():
    x = _data()
    config = LlamaScopeConfig(sites=HERE, k=3, annealing=0.0, scale="none", decoder_norm=1.0)
    trainee, plain = _trainee(config, x), _trainee(TopKConfig(sites=HERE, k=3), x)
    with torch.no_grad():
        plain.W_enc.copy_(trainee.W_enc)
        plain.W_dec.copy_(trainee.W_dec)
    torch.testing.assert_close(trainee.sae(SITE).encode(x), plain.sae(SITE).encode(x))


def test_llama_scope_anneals_k_and_ends_with_a_threshold_at_k():
    x = _data(400)
    trainee = _trainee(LlamaScopeConfig(sites=HERE, k=2, annealing=0.1), x)
    assert [trainee.k_at(Progress(step, 100)) for step in (0, 5, 10, 99)] == [4, 3, 2, 2]
    trainee.calibrate({SITE: x})
    sae = trainee.sae(SITE)
    assert abs((sae.encode(x) > 0).sum().item() - 2 * 400) <= 1
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))


def test_feature_choice_with_the_whole_batch_as_budget_is_relu():
    acts = _data().relu()
    assert torch.equal(feature_choice(acts, torch.full((8,), 64)), acts)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_feature_choice_gives_every_latent_its_budget(seed: int):
    g = torch.Generator().manual_seed(seed)
    acts, budgets = torch.rand(20, 6, generator=g), torch.randint(1, 21, (6,), generator=g)
    kept = feature_choice(acts, budgets)
    assert torch.equal((kept > 0).sum(0), budgets)
    for column, all_of_it, m in zip(kept.T, acts.T, budgets.tolist(), strict=True):
        torch.testing.assert_close(column[column > 0].sort().values, all_of_it.sort().values[-m:])


def test_feature_choice_ends_with_a_threshold_for_each_latent():
    x = _data(200)
    trainee = _trainee(FeatureChoiceConfig(sites=HERE, k=3, mutual=0.0), x)
    trainee.losses({SITE: x}, LATE)
    rule = trainee.activation()
    u = trainee.weights().pre_acts(x * trainee.scale[0])
    kept = feature_choice(u.relu(), trainee.budgets(200))
    smallest = torch.where(kept > 0, kept, torch.inf).amin(0)
    torch.testing.assert_close(rule.threshold[smallest < torch.inf], smallest[smallest < torch.inf])


def test_matryoshka_with_one_group_is_batch_topk():
    x = _data()
    one = MatryoshkaConfig(sites=HERE, k=3, fractions=[1.0])
    _same(_losses_and_grads(BatchTopKConfig(sites=HERE, k=3), x), _losses_and_grads(one, x))


def test_matryoshka_levels_are_decoded_from_prefixes():
    x = _data()
    trainee = _trainee(MatryoshkaConfig(sites=HERE, k=3, fractions=[0.25, 0.75], level_weights=[3.0, 1.0], auxk=0), x)
    loss = trainee.losses({SITE: x}, LATE)[SITE]
    y, weights = x * trainee.scale[0], trainee.weights()
    f = batch_top_k(weights.pre_acts(y).relu(), 3)
    errors = [(y - f[:, :end] @ weights.W_dec[:end] - weights.b_dec).square().sum(1).mean() for end in (16, 64)]
    torch.testing.assert_close(loss, 3 * errors[0] + errors[1])


def test_temporal_masking_without_masks_is_relu():
    x = _data()
    _same(
        _losses_and_grads(ReluConfig(sites=HERE), x),
        _losses_and_grads(TemporalConfig(sites=HERE, rate=0.0), x),
    )


def test_temporal_masks_hit_unimportant_latents_only():
    x = _data()
    trainee = _trainee(TemporalConfig(sites=HERE, rate=50.0, threshold_stds=0.0, decay=0.0), x)
    assert isinstance(trainee, TemporalTrainee)
    with torch.no_grad():
        trainee.b_enc[:10] = -100.0
    trainee.losses({SITE: x}, Progress(0, 100))
    probability = trainee.mask_probability()
    assert (probability[:10] > 0.99).all()
    assert (probability == 0).any()
    assert torch.equal(trainee.kept(LATE), trainee.kept(LATE))
    assert trainee.kept(LATE)[:10].sum() == 0


def test_jumprelu_with_a_vanishing_threshold_is_relu():
    u = torch.randn(50, 6)
    assert torch.equal(jump_relu(u, torch.full((6,), 1e-9), 1e-3), u.relu())


@pytest.mark.parametrize("bandwidth", [0.05, 0.3])
def test_straight_through_gradients_are_those_of_the_smoothed_jumps(bandwidth: float):
    """The rectangle kernel belongs to a linear ramp of width eps around the threshold: differentiate that one."""
    g = torch.Generator().manual_seed(0)
    u = torch.randn(200_000, 1, generator=g, dtype=torch.float64)
    weight = 1 + u.square()
    threshold = torch.tensor([0.4], dtype=torch.float64)

    def smooth(theta: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
        return (weight * height * ((u - theta) / bandwidth + 0.5).clamp(0, 1)).sum()

    for ours, height in ((step, torch.ones_like(u)), (jump_relu, threshold.expand_as(u))):
        theta = threshold.clone().requires_grad_()
        (weight * ours(u, theta, bandwidth)).sum().backward()
        h = 1e-4
        slope = (smooth(threshold + h, height) - smooth(threshold - h, height)) / (2 * h)
        torch.testing.assert_close(theta.grad, slope.reshape(1), rtol=2e-3, atol=0)


def test_jumprelu_passes_values_and_no_gradient_through_its_jump():
    u = torch.tensor([[0.2, 0.6]], requires_grad=True)
    jump_relu(u, torch.tensor([0.4, 0.4]), 0.5).sum().backward()
    assert u.grad.tolist() == [[0.0, 1.0]]
    again = torch.tensor([[0.2, 0.6]], requires_grad=True)
    threshold = torch.tensor([0.4, 0.4], requires_grad=True)
    step(again, threshold, 0.5).sum().backward()
    assert again.grad is None
    assert threshold.grad.tolist() == [-2.0, -2.0]


@pytest.mark.parametrize("loss", ["step", "target_l0", "tanh"])
def test_jumprelu_losses_add_what_they_say(loss: str):
    x = _data()
    sparsity = Sparsity(weight=2.0, warmup=0.0, target_l0=5.0 if loss == "target_l0" else None)
    trainee = _trainee(JumpReluConfig(sites=HERE, loss=loss, sparsity=sparsity, threshold=0.1), x)
    total = trainee.losses({SITE: x}, LATE)[SITE]
    y, weights, norms = x * trainee.scale[0], trainee.weights(), trainee.W_dec.norm(dim=1)
    u = weights.pre_acts(y)
    f = torch.where(u > 0.1, u, 0.0)
    l0 = (f > 0).sum(1).float().mean()
    added = {
        "step": 2 * l0,
        "target_l0": 2 * (l0 / 5 - 1) ** 2,
        "tanh": 2 * torch.tanh(4 * f * norms).sum(1).mean() + 3e-6 * ((0.1 - u).relu() * norms).sum(1).mean(),
    }[loss]
    torch.testing.assert_close(total, (y - weights.decode(f)).square().sum(1).mean() + added)


def test_a_narrow_kernel_in_a_large_scale_is_refused():
    with pytest.raises(ValueError, match=r"bandwidth = 0.001 is too narrow for scale sqrt_d"):
        JumpReluConfig(sites=HERE, scale="sqrt_d")


def test_a_gated_sae_is_a_jumprelu_sae():
    x = _data()
    trainee = _trainee(GatedConfig(sites=HERE), x)
    with torch.no_grad():
        for parameter, spread in (
            (trainee.r_mag, 0.5),
            (trainee.b_gate, 0.5),
            (trainee.b_enc, 0.5),
            (trainee.b_dec, 1),
        ):
            parameter.copy_(spread * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    y = (x * trainee.scale[0] - trainee.b_dec) @ trainee.W_enc
    f = ((y + trainee.b_gate > 0) * (y * trainee.r_mag.exp() + trainee.b_enc).relu()).detach()
    torch.testing.assert_close(trainee.sae(SITE).encode(x) * trainee.scale[0], f, atol=1e-5, rtol=1e-4)


def test_the_gated_auxiliary_term_leaves_the_decoder_alone():
    x = _data()
    trainee = _trainee(GatedConfig(sites=HERE), x)
    with torch.no_grad():
        trainee.b_enc.fill_(-1e3)  # nothing fires: only the auxiliary terms are left
    trainee.losses({SITE: x}, LATE)[SITE].backward()
    assert trainee.b_gate.grad.any()
    assert not trainee.W_dec.grad.any()


def test_the_auxiliary_loss_reaches_dead_latents_and_no_others():
    x = _data()
    trainee = _trainee(TopKConfig(sites=HERE, k=3), x)
    dead = torch.zeros(64, dtype=torch.bool)
    dead[5:15] = True
    residual = _data(seed=4).requires_grad_()
    revival_loss(trainee.weights(), x, residual, dead, 4).backward()
    assert residual.grad is None
    for grad in (trainee.W_enc.grad.T, trainee.W_dec.grad):
        assert grad[dead].any()
        assert not grad[~dead].any()
    none = torch.zeros(64, dtype=torch.bool)
    assert revival_loss(trainee.weights(), x, residual, none, 4) == 0


def test_the_auxiliary_loss_is_its_equation():
    x, residual = _data(), _data(seed=4)
    weights = _trainee(TopKConfig(sites=HERE, k=3), x).weights()
    dead = torch.arange(64) % 3 == 0
    u = torch.where(dead, weights.pre_acts(x), -torch.inf)
    z = torch.where(u >= u.topk(4).values[:, -1:], u, 0.0).relu()
    expected = (residual - z @ weights.W_dec).square().mean() / residual.var(0, correction=0).mean()
    torch.testing.assert_close(revival_loss(weights, x, residual, dead, 4), expected)


def test_dead_is_counted_in_tokens():
    firing = Firing(3)
    firing.record(torch.tensor([[1.0, 0.0, 0.0]] * 5))
    firing.record(torch.tensor([[0.0], [2.0]]), torch.tensor([[2], [1]]))
    assert firing.idle.tolist() == [2, 0, 7]
    assert firing.dead(7).tolist() == [False, False, True]


def test_zipf_dying_latents_are_the_dead_ones_when_tau_is_one():
    densities = Densities(Zipf(tau=0.999), 4)
    densities.record(torch.tensor([[1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]]))
    assert densities.rank.tolist() == [0, 3, 2, 1]
    assert densities.dying(2).tolist() == [False, True, False, False]
    torch.testing.assert_close(Zipf().shares(100).sum(), torch.tensor(1.0))


def test_the_sparsity_weight_warms_up_and_steers():
    fixed = SparsityWeight(Sparsity(weight=4.0, warmup=0.5))
    assert [fixed.at(Progress(i, 8), torch.tensor(9.0)).item() for i in (0, 1, 3, 7)] == [1.0, 2.0, 4.0, 4.0]
    steered = SparsityWeight(Sparsity(weight=1.0, warmup=0.0, target_l0=10.0, gain=0.1))
    above = steered.at(LATE, torch.tensor(1e4)).item()
    assert above == pytest.approx(torch.tensor(0.1).exp().item())
    assert steered.at(LATE, torch.tensor(0.0)).item() == pytest.approx(1.0)


def test_multi_topk_adds_an_eighth_of_the_wider_loss():
    x = _data()
    narrow, wide, both = (
        _losses_and_grads(TopKConfig(sites=HERE, **options), x)
        for options in ({"k": 2}, {"k": 8}, {"k": 2, "multi": 4})
    )
    _same(both, [a + b / 8 for a, b in zip(narrow, wide, strict=True)])


def test_the_geometric_median_is_where_unit_pulls_cancel():
    x = _data(200) ** 3
    pulls = x - geometric_median(x, 500)
    assert (pulls / pulls.norm(dim=1, keepdim=True)).sum(0).norm() < 0.05


SINGLE = {name: config for name, config in CONFIGS.items() if issubclass(config, DictionaryMethod)}


@pytest.mark.parametrize("method", SINGLE)
@pytest.mark.parametrize("scale", ["none", "unit", "sqrt_d"])
def test_folding_the_scale_leaves_the_sae_what_was_trained(method: str, scale: str):
    x = 7 * _data(300)
    more = {"bandwidth": 0.1} if method == "jumprelu" else {}
    trainee = _trainee(SINGLE[method](sites=HERE, scale=scale, **more), x)
    if scale == "unit":
        torch.testing.assert_close((x * trainee.scale[0]).square().sum(1).mean(), torch.tensor(1.0))
    trainee.calibrate({SITE: x})
    inside = trainee.weights().sae(trainee.activation()) if method != "llama_scope" else None
    sae = trainee.sae(SITE)
    if inside is not None:
        expected = inside.decode(inside.encode(x * trainee.scale[0])) / trainee.scale[1]
        torch.testing.assert_close(sae.decode(sae.encode(x)), expected, atol=1e-4, rtol=1e-4)
    assert not sae.W_enc.requires_grad


@pytest.mark.parametrize("method", SINGLE)
def test_a_transcoder_reconstructs_its_target(method: str):
    more = {"bandwidth": 0.1} if method == "jumprelu" else {}
    config = SINGLE[method](sites=["mlp_in.0"], targets=["mlp_out.0"], scale="unit", **more)
    trainee = config.trainees(Shape(8, 1), 0)[0]
    read, target = Site("mlp_in", 0), Site("mlp_out", 0)
    x = _data()
    acts = {read: x, target: 5 * x @ torch.randn(8, 8), Gradient(target): _data(seed=2)}
    trainee.prepare(acts)
    assert set(trainee.reads) <= set(acts)
    assert (trainee.target(read), config.blocks(1)) == (target, [])
    trainee.losses(acts, LATE)[read].backward()
    assert trainee.W_enc.grad is not None
    assert not torch.allclose(trainee.scale[0], trainee.scale[1])


def test_unit_norm_is_held_without_following_gradients_along_the_rows():
    x = _data()
    trainee = _trainee(TopKConfig(sites=HERE, k=3, unit_norm=True), x)
    trainee.losses({SITE: x}, LATE)[SITE].backward()
    trainee.after_backward()
    torch.testing.assert_close((trainee.W_dec.grad * trainee.W_dec).sum(1), torch.zeros(64), atol=1e-5, rtol=0)
    with torch.no_grad():
        trainee.W_dec -= 0.1 * trainee.W_dec.grad
    trainee.after_step()
    torch.testing.assert_close(trainee.W_dec.norm(dim=1), torch.ones(64))
