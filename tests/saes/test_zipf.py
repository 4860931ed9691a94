"""Mutual Choice and Feature Choice: the fitted law, dying latents, and what is dead."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from scalar_sae.saes.components.zipf import Densities, Law, Zipf, fit
from scalar_sae.saes.methods.base import Progress
from scalar_sae.saes.methods.unverified.feature_choice import FeatureChoiceConfig, FeatureChoiceTrainee
from scalar_sae.saes.methods.unverified.mutual_choice import MutualChoiceConfig, MutualChoiceTrainee
from scalar_sae.saes.store import load_sae
from tests.saes.dictionaries import HERE, LATE, SITE, data, prepared
from tests.training.runs import trained, write_text

SELECTION = {"sites": ["resid_mid.0"], "k": 2, "expansion": 2, "dead_tokens": 300, "auxk": 1.0, "k_aux": 4}


def law_of(exponent: float, shift: float, amplitude: float, n: int = 200) -> np.ndarray:
    return amplitude / (np.arange(1, n + 1) + shift) ** exponent


@given(st.floats(0.3, 2), st.floats(0, 50), st.floats(0.01, 1), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_a_law_is_recovered_from_densities_that_follow_it(exponent: float, shift: float, amplitude: float, seed: int):
    densities = np.random.default_rng(seed).permutation(law_of(exponent, shift, amplitude))
    law = fit(densities, 1.0)
    assert law is not None
    np.testing.assert_allclose(law_of(*law[:3]), law_of(exponent, shift, amplitude), rtol=1e-3)
    assert law.r2 == pytest.approx(1, abs=1e-5)


def test_the_fit_is_least_squares_of_logarithms_over_the_most_frequent_latents():
    rng = np.random.default_rng(0)
    densities = np.sort(law_of(1.2, 4, 0.5) * np.exp(0.3 * rng.standard_normal(200)))[::-1]
    kept = densities[densities.cumsum() <= 0.9 * densities.sum()]
    ranks = np.arange(1, len(kept) + 1)
    peer = least_squares(lambda p: p[0] - p[1] * np.log(ranks + np.exp(p[2])) - np.log(kept), [0.0, 1.0, 1.0])
    law = fit(rng.permutation(densities), 0.9)
    assert law is not None
    expected = (peer.x[1], np.exp(peer.x[2]), np.exp(peer.x[0]))
    np.testing.assert_allclose(law[:3], expected, rtol=1e-3)
    assert law.r2 == pytest.approx(1 - 2 * peer.cost / np.square(np.log(kept) - np.log(kept).mean()).sum(), abs=1e-6)
    dead_tail = np.concatenate([densities, np.zeros(50)])
    with_tail = fit(dead_tail, 0.9)
    assert with_tail is not None
    np.testing.assert_allclose(with_tail, law, rtol=1e-3)


def test_too_few_densities_have_no_law():
    assert fit(np.array([0.5, 0.2, 0.0, 0.0]), 1.0) is None
    assert fit(np.zeros(10), 1.0) is None


def test_underused_latents_fall_short_of_the_law_by_more_than_tau():
    densities = Densities(Zipf(tau=0.5, decay=0.0, window=1), 5)
    densities.record(torch.tensor([0] * 40 + [1] * 4 + [2] * 20 + [3] * 2), 100)
    assert densities.rank.tolist() == [0, 2, 1, 3, 4]
    assert not densities.underused().any(), "there is no law yet"
    densities.set_law(Law(1.0, 0.0, 0.4, 1.0))  # 0.4, 0.2, 0.133, 0.1, 0.08 are wanted
    assert densities.underused().tolist() == [False, True, False, True, True]
    none = Densities(Zipf(tau=1.0), 5)
    none.set_law(Law(1.0, 0.0, 0.4, 1.0))
    assert not none.underused().any(), "not even those that never fired"


def test_the_law_is_fitted_when_the_first_phase_ends_and_then_kept():
    trainee = prepared(MutualChoiceConfig(sites=HERE, k=3, first_phase=0.3, zipf=Zipf(window=7)), data())
    assert isinstance(trainee, MutualChoiceTrainee)
    laws = list[Law | None]()
    for step in range(40):
        before = trainee.densities.density.numpy().copy()
        trainee.losses({SITE: data(seed=step)}, Progress(step, 40))
        laws.append(trainee.densities.law)
        if step == 12:
            assert laws[-1] == fit(before, 0.99)
            assert trainee.densities.rank[before.argmax()] == 0
    assert laws[:12] == [None] * 12
    assert set(laws[12:]) == {laws[12]}
    assert trainee.found() == {"zipf": laws[12]._asdict()}


def test_the_loss_on_dying_latents_is_auxk_to_the_bit_when_tau_is_one(tmp_path: Path):
    """The whole run is that of BatchTopK."""
    plain = {**SELECTION, "method": "batch_topk", "name": "plain"}
    saes = [
        plain,
        {**plain, "name": "without", "auxk": 0.0},
        {**SELECTION, "method": "mutual_choice", "name": "mutual", "zipf": {"tau": 1.0}},
        {**SELECTION, "method": "mutual_choice", "name": "half", "zipf": {"tau": 0.5}},
    ]
    found = {
        name: group[SITE]
        for name, group in trained(tmp_path, write_text(tmp_path / "text.txt"), "run", saes, tokens=4000).items()
    }
    assert not torch.equal(found["plain"].W_dec, found["without"].W_dec), "the loss on dead latents acts here"
    assert not torch.equal(found["plain"].W_dec, found["half"].W_dec), "so does that on underused ones"
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(found["plain"], name), getattr(found["mutual"], name))
    assert torch.equal(found["plain"].activation.threshold, found["mutual"].activation.threshold)


def test_the_fitted_law_is_kept_on_the_card(tmp_path: Path):
    saes = [{**SELECTION, "method": "mutual_choice", "name": "mutual"},
            {**SELECTION, "method": "feature_choice", "name": "feature"},
            {**SELECTION, "method": "feature_choice", "name": "uniform", "mode": "uniform"}]  # fmt: skip
    trained(tmp_path, write_text(tmp_path / "text.txt"), "run", saes)
    cards = {name: load_sae(tmp_path / "run" / "saes" / name / "resid_mid.0")[1] for name in
             ("mutual", "feature", "uniform")}  # fmt: skip
    assert set(cards["mutual"].recipe["zipf"]) == {"exponent", "shift", "amplitude", "r2"}
    assert cards["mutual"].recipe["zipf"] == cards["feature"].recipe["zipf"], "both fit the same first phase"
    assert "zipf" not in cards["uniform"].recipe


@pytest.mark.parametrize("mode", ["zipf", "uniform"])
def test_in_feature_choice_every_latent_that_is_positive_in_a_batch_fires_there(mode: str):
    trainee = prepared(FeatureChoiceConfig(sites=HERE, k=1, mode=mode), data())
    assert isinstance(trainee, FeatureChoiceTrainee)
    with torch.no_grad():
        trainee.b_enc.copy_(torch.linspace(-4, 1, 64))
    trainee.densities.density.copy_(torch.from_numpy(law_of(2, 0, 1, 64)))
    trainee.losses({SITE: data(seed=1)}, LATE)
    positive = (trainee.weights().pre_acts(data(seed=1) * trainee.scale[0]) > 0).any(0)
    assert 0 < positive.sum() < 64
    assert torch.equal(trainee.dead_latents.tokens_since_fired == 0, positive)


def test_no_gradient_reaches_a_latent_that_is_positive_nowhere():
    """So these can stay dead under Feature Choice, whatever their budget and the loss on dying latents."""
    trainee = prepared(FeatureChoiceConfig(sites=HERE, k=3, auxk=1.0), data())
    assert isinstance(trainee, FeatureChoiceTrainee)
    trainee.dead_latents.window = 10
    with torch.no_grad():
        trainee.b_enc[:20] = -20.0
    trainee.losses({SITE: data(seed=1)}, LATE)
    assert trainee.dying()[:20].all()
    trainee.losses({SITE: data(seed=1)}, LATE)[SITE].backward()
    for grad in (trainee.W_enc.grad.T, trainee.b_enc.grad, trainee.W_dec.grad):
        assert not grad[:20].any()
        assert grad[20:].any()
