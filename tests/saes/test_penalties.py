"""Methods with a penalty in place of a k: identities, straight-through gradients, steering."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import TypeAdapter

from scalar_sae.errors import UserError
from scalar_sae.saes.components.sparsity_control import Sparsity, SparsityWeight
from scalar_sae.saes.methods.base import Progress
from scalar_sae.saes.methods.gated import GatedConfig
from scalar_sae.saes.methods.jumprelu import JumpReluConfig, jump_relu, step
from scalar_sae.saes.methods.registry import MethodConfig
from scalar_sae.saes.methods.relu import ReluConfig
from scalar_sae.saes.methods.unverified.atm import ATMConfig, ATMTrainee
from tests.helpers import Shape
from tests.saes.dictionaries import HERE, LATE, SITE, assert_same, data, losses_and_grads, prepared


def test_atm_masking_without_masks_is_relu():
    x = data()
    assert_same(
        losses_and_grads(ReluConfig(sites=HERE), x),
        losses_and_grads(ATMConfig(sites=HERE, rate=0.0), x),
    )


def test_atm_masks_hit_unimportant_latents_only():
    x = data()
    trainee = prepared(ATMConfig(sites=HERE, rate=50.0, threshold_stds=0.0, decay=0.0), x)
    assert isinstance(trainee, ATMTrainee)
    with torch.no_grad():
        trainee.b_enc[:10] = -100.0
    trainee.losses({SITE: x}, Progress(0, 100))
    probability = trainee.mask_probability()
    assert (probability[:10] > 0.99).all()
    assert (probability == 0).any()
    assert torch.equal(trainee.kept(LATE), trainee.kept(LATE))
    assert trainee.kept(LATE)[:10].sum() == 0


@torch.no_grad()
@pytest.mark.parametrize("statistic", [0, 1])
def test_atm_masks_do_not_remember_where_the_means_began(statistic: int):
    importance = tuple(float(i == statistic) for i in range(3))
    trainee = prepared(ATMConfig(sites=HERE, importance=importance, scale="none"), data())
    assert isinstance(trainee, ATMTrainee)
    assert not trainee.mask_probability().any(), "nothing is known yet"
    seen = list[torch.Tensor]()
    for i in range(5):
        x = data(seed=i)
        trainee.losses({SITE: x}, Progress(i, 100))
        f = trainee.weights().pre_acts(x).relu()
        seen.append((f, (f > 0).float())[statistic].mean(0))
    ages = 0.99 ** torch.arange(4, -1, -1.0)
    mean = (ages.unsqueeze(1) * torch.stack(seen)).sum(0) / ages.sum()
    mean /= mean.mean()
    theta = 1 - 0.5 * mean.std()
    expected = 1 - (-((theta - mean) / theta).clamp_min(0)).exp()
    assert expected.max() > 0.1
    torch.testing.assert_close(trainee.mask_probability(), expected)


@torch.no_grad()
def test_atm_contributions_do_not_depend_on_masks(monkeypatch: pytest.MonkeyPatch):
    x = data()
    trainee = prepared(ATMConfig(sites=HERE, decay=0.0, scale="none"), x)
    assert isinstance(trainee, ATMTrainee)
    weights = trainee.weights()
    f = weights.pre_acts(x).relu()
    without = [f.index_fill(1, torch.tensor(i), 0.0) for i in range(64)]
    error = (x - weights.decode(f)).square().sum(1).mean()
    growth = torch.stack([(x - weights.decode(each)).square().sum(1).mean() - error for each in without])
    for kept in (torch.ones(64), (torch.arange(64) % 2).float()):
        monkeypatch.setattr(trainee, "kept", lambda _, kept=kept: kept)
        trainee.losses({SITE: x}, LATE)
        torch.testing.assert_close(trainee.means[2], growth.clamp_min(0), atol=1e-5, rtol=1e-3)
    assert (growth > 0).any()


def test_atm_importance_weighs_its_three_statistics():
    g = torch.Generator().manual_seed(0)
    means = torch.rand(3, 64, generator=g) * torch.tensor([[1.0], [10.0], [0.1]])

    def probability(config: ATMConfig) -> torch.Tensor:
        trainee = prepared(config, data())
        assert isinstance(trainee, ATMTrainee)
        trainee.means.copy_(means)
        return trainee.mask_probability()

    def expected(importance: torch.Tensor) -> torch.Tensor:
        theta = importance.mean() - 0.5 * importance.std()
        return 1 - (-((theta - importance) / theta).clamp_min(0)).exp()

    size, often, contribution = means / means.mean(1, keepdim=True)
    equal = probability(ATMConfig(sites=HERE))
    assert torch.equal(equal, expected(torch.stack([size, often, contribution]).mean(0)))
    torch.testing.assert_close(probability(ATMConfig(sites=HERE, importance=(0.0, 0.5, 0.0))), expected(often))
    both = probability(ATMConfig(sites=HERE, importance=(3.0, 0.0, 1.0)))
    torch.testing.assert_close(both, expected((3 * size + contribution) / 4))
    with pytest.raises(ValueError, match="all three weights are 0"):
        ATMConfig(sites=HERE, importance=(0.0, 0.0, 0.0))


@torch.no_grad()
def test_atm_masks_the_unimportant_also_where_a_few_latents_have_all_the_importance():
    """Mean - std / 2 is below 0 then, and without a floor nothing would be masked."""
    trainee, pruned = (prepared(ATMConfig(sites=HERE, inference=rule), data()) for rule in ("all", "pruned"))
    assert isinstance(trainee, ATMTrainee)
    assert isinstance(pruned, ATMTrainee)
    for each in (trainee, pruned):
        each.means.fill_(0.05)
        each.means[:, :4] = 0.0
        each.means[:, 63] = 10.0
    importance = trainee.means[0] / trainee.means[0].mean()
    assert importance.mean() - 0.5 * importance.std() < 0
    theta = 0.1 * importance.mean()
    assert importance[4] > theta / 2
    expected = 1 - (-((theta - importance) / theta).clamp_min(0)).exp()
    torch.testing.assert_close(trainee.mask_probability(), expected)
    assert expected[0] == pytest.approx(1 - math.exp(-1))
    assert torch.equal(pruned.left(), importance >= theta)


@torch.no_grad()
def test_an_atm_energy_is_the_squared_size_of_what_a_latent_adds():
    x = data()
    trainee = prepared(ATMConfig(sites=HERE, decay=0.0, scale="none", contribution="energy"), x)
    assert isinstance(trainee, ATMTrainee)
    trainee.losses({SITE: x}, Progress(0, 100))
    weights = trainee.weights()
    f = weights.pre_acts(x).relu()
    added = f.unsqueeze(-1) * weights.W_dec
    torch.testing.assert_close(trainee.means[2], added.square().sum(-1).mean(0))


@torch.no_grad()
def test_a_pruned_atm_sae_lacks_the_unimportant_latents():
    x = data()
    config = ATMConfig(sites=HERE, threshold_stds=0.0, scale="none", sparsity=Sparsity(weight=1e-9))
    whole, pruned = (prepared(config.model_copy(update={"inference": rule}), x) for rule in ("all", "pruned"))
    for each in (whole, pruned):
        each.losses({SITE: x}, LATE)
    assert isinstance(pruned, ATMTrainee)
    gone = pruned.mask_probability() > 0
    assert 0 < gone.sum() < 64
    all_acts, acts = whole.sae(SITE).encode(x), pruned.sae(SITE).encode(x)
    assert all_acts[:, gone].any()
    assert torch.equal(acts, all_acts.masked_fill(gone, 0.0))
    pruned.eval()
    error = (x - pruned.sae(SITE).decode(acts)).square().sum(1).mean()
    torch.testing.assert_close(pruned.losses({SITE: x}, LATE)[SITE], error)


@torch.no_grad()
@pytest.mark.parametrize("inference", ["all", "pruned"])
def test_an_atm_target_is_the_l0_of_inference(inference: str):
    """Masks hide a part of the code in training: steered by that, the SAE would end above its target."""
    x = data()
    sparsity = Sparsity(weight=1e-9, target_l0=10.0)
    config = {"sites": HERE, "rate": 50.0, "threshold_stds": 0.5, "inference": inference, "sparsity": sparsity}
    trainee = prepared(ATMConfig.model_validate(config), x)
    assert isinstance(trainee, ATMTrainee)
    for _ in range(2):  # the first has no means to mask by
        trainee.sparsity.log_l0.fill_(math.inf)
        trainee.losses({SITE: x}, LATE)
    l0 = (trainee.sae(SITE).encode(x) > 0).float().sum(1).mean()
    torch.testing.assert_close(trainee.sparsity.log_l0, l0.log())


def test_atm_rescaling_keeps_the_mean_of_the_code():
    config = ATMConfig(sites=HERE, threshold_stds=0.5, rescale=True)
    trainee, plain = (prepared(each, data()) for each in (config, config.model_copy(update={"rescale": False})))
    assert isinstance(trainee, ATMTrainee)
    assert isinstance(plain, ATMTrainee)
    for each in (trainee, plain):
        each.means.copy_(torch.linspace(0.5, 1.5, 64).expand(3, 64))
    factors = torch.stack([trainee.kept(Progress(step, 4000)) for step in range(1000, 4000)])
    torch.testing.assert_close(factors.mean(0), torch.ones(64), atol=0.1, rtol=0)
    assert (factors == 0).any()
    assert torch.equal(trainee.kept(LATE) > 0, plain.kept(LATE) > 0)
    assert torch.equal(trainee.eval().kept(LATE), torch.ones(64))


@pytest.mark.parametrize("seed", [0, 20_240_101, 2**32 - 1])
def test_atm_masks_can_be_drawn_for_any_seed(seed: int):
    config = ATMConfig(sites=HERE, threshold_stds=0.5)
    draws = list[torch.Tensor]()
    for each in (seed, seed - 1 if seed else 1):
        trainee = config.trainees(Shape(8, 1), each)[0]
        assert isinstance(trainee, ATMTrainee)
        trainee.means.copy_(torch.linspace(0.5, 1.5, 64).expand(3, 64))
        draws.append(trainee.kept(LATE))
    assert not torch.equal(*draws)


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
    x = data()
    sparsity = Sparsity(weight=2.0, warmup=0.0, target_l0=5.0 if loss == "target_l0" else None)
    trainee = prepared(JumpReluConfig(sites=HERE, loss=loss, sparsity=sparsity, threshold=0.1, scale="none"), x)
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
    with pytest.raises(ValueError, match=r"bandwidth = 2.0 is too wide for scale unit"):
        JumpReluConfig(sites=HERE, bandwidth=2.0)
    with pytest.raises(ValueError, match=r"loss tanh belongs to scale sqrt_d"):
        JumpReluConfig(sites=HERE, loss="tanh", bandwidth=0.1)


def test_what_a_sparsity_leaves_out_is_the_methods_own():
    def resolved(**config: object) -> Sparsity:
        return TypeAdapter(MethodConfig).validate_python({"sites": HERE, **config}).sparsity

    assert resolved(method="jumprelu", sparsity={"weight": 0.5}) == Sparsity(weight=0.5, warmup=0.1)
    assert resolved(method="jumprelu", sparsity={"target_l0": 10}) == Sparsity(weight=1e-3, warmup=0.1, target_l0=10)
    target = {"method": "jumprelu", "loss": "target_l0", "sparsity": {"target_l0": 10}}
    assert resolved(**target) == Sparsity(weight=1.0, warmup=0.1, target_l0=10)
    tanh = {"method": "jumprelu", "loss": "tanh", "scale": "sqrt_d", "bandwidth": 2}
    assert resolved(**tanh) == resolved(**tanh, sparsity={}) == Sparsity(weight=10.0, warmup=1.0)
    for method, weight in (("relu", 5.0), ("atm", 5.0), ("gated", 1.0)):
        assert resolved(method=method, sparsity={"target_l0": 10}) == Sparsity(weight=weight, target_l0=10)


def test_the_documented_tanh_recipe_is_a_config():
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    found = re.search(r"`(\{method: jumprelu, loss: tanh.*?\})`", text, re.DOTALL)
    assert found is not None
    config = TypeAdapter(MethodConfig).validate_python(yaml.safe_load(found[1]))
    assert isinstance(config, JumpReluConfig)
    assert (config.bandwidth, config.sparsity.warmup, config.tanh_scale) == (2.0, 1.0, 4.0)


@pytest.mark.parametrize("loss", ["step", "tanh"])
def test_jumprelu_biases_from_data_give_the_first_l0(loss: str):
    x = data(400)
    trainee = prepared(JumpReluConfig(sites=HERE, loss=loss, scale="sqrt_d", bandwidth=2.0, first_l0=16.0), x)
    fires = (trainee.sae(SITE).encode(x) > 0).float()
    torch.testing.assert_close(fires.mean(0), torch.full((64,), 0.25), atol=0.01, rtol=0)
    with pytest.raises(UserError, match=r"jumprelu: first_l0 = 64.0 is not below d_sae = 64"):
        prepared(JumpReluConfig(sites=HERE, first_l0=64.0), x)


def test_a_gated_sae_is_a_jumprelu_sae():
    x = data()
    trainee = prepared(GatedConfig(sites=HERE), x)
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
    x = data()
    trainee = prepared(GatedConfig(sites=HERE), x)
    with torch.no_grad():
        trainee.b_enc.fill_(-1e3)  # nothing fires: only the auxiliary terms are left
    trainee.losses({SITE: x}, LATE)[SITE].backward()
    assert trainee.b_gate.grad.any()
    assert not trainee.W_dec.grad.any()


def test_the_sparsity_weight_warms_up_and_steers():
    fixed = SparsityWeight(Sparsity(weight=4.0, warmup=0.5))
    assert [fixed.at(Progress(i, 8), torch.tensor(9.0)).item() for i in (0, 1, 3, 7)] == [1.0, 2.0, 4.0, 4.0]
    steered = SparsityWeight(Sparsity(weight=1.0, warmup=0.0, target_l0=10.0, gain=0.1))
    above = steered.at(LATE, torch.tensor(1e4)).item()
    assert above == pytest.approx(torch.tensor(0.1).exp().item())
    assert steered.at(LATE, torch.tensor(0.0)).item() == pytest.approx(1.0)


@pytest.mark.parametrize("weight", [0.03, 1.0, 10.0])
@pytest.mark.parametrize(("elasticity", "lag"), [(0.5, 50), (1.0, 50), (1.0, 20), (1.0, 100)])
def test_steering_arrives_where_l0_follows_the_weight_slowly(weight: float, elasticity: float, lag: int):
    steered = SparsityWeight(Sparsity(weight=weight, warmup=0.05, target_l0=10.0))
    log_l0, n, seen = math.log(250), 1600, list[float]()
    for i in range(n):
        wanted = math.log(10) - elasticity * steered.at(Progress(i, n), torch.tensor(math.exp(log_l0))).log().item()
        log_l0 += (wanted - log_l0) / lag
        seen.append(math.exp(log_l0))
    assert all(9.5 < l0 < 10.5 for l0 in seen[-200:])
    assert min(seen) > 2
