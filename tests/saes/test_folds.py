"""Every fold leaves the reconstruction alone, and changes activations by the factor it says."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalar_sae.saes.activation import Activation, GroupMax, JumpReLU, ReLU, TopK
from scalar_sae.saes.normalization import InputNorm
from scalar_sae.saes.reparam import (
    decoder_norms,
    gate_as_threshold,
    with_input_scaled,
    with_input_whitened,
    with_latents_scaled,
    without_pre_bias,
)
from scalar_sae.saes.sae import SAE

D, F = 5, 12
seeds = st.integers(0, 10**6)
scales = st.floats(0.2, 5)
rules = st.sampled_from(["relu", "topk", "jumprelu", "groupmax"])
close = {"atol": 1e-9, "rtol": 1e-9}


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random(seed: int, rule: str) -> SAE:
    rules: dict[str, Activation] = {
        "relu": ReLU(), "topk": TopK(3), "groupmax": GroupMax(4), "jumprelu": JumpReLU(normal(seed + 4, F)),
    }  # fmt: skip
    weights = [normal(seed + i, *shape) for i, shape in enumerate([(D, F), (F,), (F, D), (D,)])]
    return SAE(*weights, activation=rules[rule], W_skip=normal(seed + 5, D, D))


@given(seeds)
@settings(deadline=None)
def test_the_pre_bias(seed: int):
    W_enc, b_enc, b_pre, x = normal(seed, D, F), normal(seed + 1, F), normal(seed + 2, D), normal(seed + 3, 7, D)
    folded = without_pre_bias(b_enc, b_pre, W_enc)
    torch.testing.assert_close(x @ W_enc + folded, (x - b_pre) @ W_enc + b_enc, **close)


@given(seeds, rules, scales, scales)
@settings(deadline=None)
def test_an_input_scale(seed: int, rule: str, s_in: float, s_out: float):
    made_for_scaled, x = random(seed, rule), normal(seed + 9, 7, D)
    acts = made_for_scaled.encode(s_in * x)
    folded = with_input_scaled(made_for_scaled, s_in, s_out)
    torch.testing.assert_close(folded.encode(x), acts, **close)
    torch.testing.assert_close(folded.decode(acts, x), made_for_scaled.decode(acts, s_in * x) / s_out, **close)


@given(seeds, st.sampled_from(["relu", "jumprelu"]))
@settings(deadline=None)
def test_units_of_latents(seed: int, rule: str):
    sae, x, factor = random(seed, rule), normal(seed + 9, 7, D), normal(seed + 8, F).exp()
    scaled = with_latents_scaled(sae, factor)
    torch.testing.assert_close(scaled.encode(x), sae.encode(x) * factor, **close)
    torch.testing.assert_close(scaled.decode(scaled.encode(x), x), sae.decode(sae.encode(x), x), **close)


@given(seeds)
@settings(deadline=None)
def test_selection_by_decoder_norm(seed: int):
    sae, x = random(seed, "topk"), normal(seed + 9, 7, D)
    norms = decoder_norms(sae)
    chosen = sae.activation.select(sae.pre_acts(x) * norms)
    folded = with_latents_scaled(sae, norms)
    torch.testing.assert_close(folded.encode(x), chosen, **close)
    torch.testing.assert_close(folded.decode(chosen, x), sae.decode(chosen / norms, x), **close)
    torch.testing.assert_close(decoder_norms(folded), torch.ones(F, dtype=torch.float64), **close)


@given(seeds)
@settings(deadline=None)
def test_a_gate(seed: int):
    W, (b_gate, r, b_mag), x = normal(seed, D, F), normal(seed + 1, 3, F), normal(seed + 3, 7, D)
    W_enc, b_enc, rule = gate_as_threshold(W, b_gate, r, b_mag)
    two_paths = (x @ W + b_gate > 0) * (x @ (W * r.exp()) + b_mag).relu()
    torch.testing.assert_close(rule.select(x @ W_enc + b_enc), two_paths, **close)


@given(seeds, rules)
@settings(deadline=None)
def test_whitening(seed: int, rule: str):
    sae, x, mean, whiten = random(seed, rule), normal(seed + 9, 7, D), normal(seed + 7, D), normal(seed + 8, D, D)
    whiten += 4 * torch.eye(D)
    unwhiten = torch.linalg.inv(whiten)
    plain = SAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.activation)
    folded = with_input_whitened(plain, mean, whiten, unwhiten)
    acts = plain.encode((x - mean) @ whiten)
    torch.testing.assert_close(folded.encode(x), acts, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(folded.decode(acts), plain.decode(acts) @ unwhiten + mean, atol=1e-7, rtol=1e-7)


@given(seeds, st.sampled_from(["layer_norm", "constant_norm"]), scales)
@settings(deadline=None)
def test_run_time_normalisation_ignores_the_size_of_its_input(seed: int, kind: str, scale: float):
    sae = random(seed, "topk")
    normed = SAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.activation, norm=InputNorm(kind))
    x = normal(seed + 9, 7, D)
    torch.testing.assert_close(normed.encode(scale * x), normed.encode(x), **close)
    x_hat = normed.decode(normed.encode(x), x)
    torch.testing.assert_close(normed.decode(normed.encode(scale * x), scale * x), scale * x_hat, **close)


@given(seeds, st.sampled_from([1, 2, 3, 12]))
@settings(deadline=None)
def test_group_max_keeps_the_largest_of_each_group(seed: int, k: int):
    u, changed = normal(seed, 3, F), normal(seed + 1, 3, F)
    rule = GroupMax(k)
    for row, acts in zip(u, rule.select(u), strict=True):
        for group, kept in zip(row.split(F // k), acts.split(F // k), strict=True):
            expected = [value if value == max(group) and value > 0 else 0 for value in group.tolist()]
            assert kept.tolist() == expected
    expected = torch.zeros(3, F, dtype=torch.float64)
    for j in range(F):
        alone = u.clone()
        alone[:, j] = changed[:, j]
        expected[:, j] = rule.select(alone)[:, j]
    torch.testing.assert_close(rule.activate_independently(changed, rule.competing_threshold(u).to(u)), expected)
