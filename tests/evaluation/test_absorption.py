"""Absorption on dictionaries built by hand, probes on data whose features are known."""

import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.evaluation.labels.absorption import SAEBENCH_CODE, SAEBENCH_PAPER, absorption
from scalar_sae.evaluation.labels.probes import balanced_accuracy, f1, fit, scr, sparse_probe, tpp
from scalar_sae.evaluation.seeds.consistency import mcc
from scalar_sae.evaluation.seeds.matching import Dictionary
from scalar_sae.evaluation.seeds.organism import Organism, Sample, hierarchy
from scalar_sae.saes.activation import ReLU
from scalar_sae.saes.components.sparsity_control import Sparsity
from scalar_sae.saes.methods.relu import ReluConfig
from scalar_sae.saes.methods.topk import TopKConfig
from scalar_sae.saes.sae import SAE
from scalar_sae.training.config import TrainConfig
from scalar_sae.training.learner import learners
from tests.helpers import Shape

D = 50


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data() -> Sample:
    return hierarchy(8000, generator())


def orthogonal(d_model: int = D, n: int = 4) -> SAE:
    """One latent a feature."""
    eye = torch.eye(n, d_model)
    return SAE(eye.T.contiguous(), torch.zeros(n), eye, torch.zeros(d_model), ReLU())


def absorbed(share: float = 1.0) -> SAE:
    """The parent's latent is silenced by the child, whose latent writes that much of the parent as well."""
    sae = orthogonal()
    W_enc, W_dec = sae.W_enc.clone(), sae.W_dec.clone()
    W_enc[1, 0] = -share
    W_dec[1, 0] = share
    return SAE(W_enc, sae.b_enc, W_dec, sae.b_dec, ReLU())


def test_the_hand_built_dictionaries_reconstruct(data: Sample):
    for sae in (orthogonal(), absorbed(), absorbed(0.5)):
        assert torch.allclose(sae.decode(sae.encode(data.x)), data.x, atol=1e-6)


@pytest.mark.parametrize("thresholds", [SAEBENCH_CODE, SAEBENCH_PAPER])
def test_absorbed_scores_one_and_orthogonal_nothing(data: Sample, thresholds):
    parent, child = data.active[:, 0], data.active[:, 1]
    bad = absorption(absorbed(), data.x, parent, child, thresholds=thresholds)
    assert (bad.fraction, bad.full) == pytest.approx((1, 1))
    assert bad.main == [0]
    assert bad.thresholds == thresholds.name
    good = absorption(orthogonal(), data.x, parent, child, torch.eye(D)[0], thresholds)
    assert (good.fraction, good.full) == (0, 0)
    assert good.n == (parent & child)[1::2].sum()


def test_half_absorbed_scores_a_half(data: Sample):
    parent, child = data.active[:, 0], data.active[:, 1]
    found = absorption(absorbed(0.5), data.x, parent, child, torch.eye(D)[0])
    assert found.fraction == pytest.approx(0.5)
    assert found.full == 0


def test_without_a_child_every_activation_of_the_parent_counts(data: Sample):
    parent, child = data.active[:, 0], data.active[:, 1]
    found = absorption(absorbed(), data.x, parent, direction=torch.eye(D)[0])
    assert found.fraction == pytest.approx((child & parent)[1::2].sum().item() / parent[1::2].sum().item())


def test_both_settings_of_the_thresholds_can_disagree(data: Sample):
    """A third of the direction is absorbed: more than nothing (paper), less than 0.4 (code)."""
    parent, child = data.active[:, 0], data.active[:, 1]
    paper, code = (absorption(absorbed(1 / 3), data.x, parent, child, torch.eye(D)[0], t)
                   for t in (SAEBENCH_PAPER, SAEBENCH_CODE))  # fmt: skip
    assert paper.fraction == pytest.approx(1 / 3, abs=1e-5)
    assert code.fraction == 0


def test_a_frequent_child_is_a_split_feature_and_no_absorption():
    data = hierarchy(4000, generator(), child_rate=0.5)
    found = absorption(absorbed(), data.x, data.active[:, 0], data.active[:, 1])
    assert sorted(found.main) == [0, 1]
    assert found.full == 0


def trained_on_hierarchy(penalty: float) -> SAE:
    """600 steps from the dictionary that has not absorbed anything, under an L1 penalty that counts decoder norms."""
    g, start = generator(), orthogonal()
    parameters = [torch.nn.Parameter(W.clone()) for W in (start.W_enc, start.b_enc, start.W_dec, start.b_dec)]
    W_enc, b_enc, W_dec, b_dec = parameters
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    for _ in range(600):
        x = hierarchy(512, g).x
        acts = (x @ W_enc + b_enc).relu()
        loss = (x - acts @ W_dec - b_dec).square().sum(1).mean() + penalty * (acts @ W_dec.norm(dim=1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return SAE(*(parameter.detach() for parameter in parameters), ReLU())


@pytest.mark.parametrize(("penalty", "share"), [(0.0, 0), (0.1, 1)])
def test_sparsity_drives_the_toy_hierarchy_into_absorption(data: Sample, penalty: float, share: int):
    """The claim of arXiv 2409.14507: parent and child in one latent cost less L1 than the two of them."""
    sae = trained_on_hierarchy(penalty)
    found = absorption(sae, data.x, data.active[:, 0], data.active[:, 1])
    assert (found.fraction, found.full) == pytest.approx((share, share), abs=0.01)
    child = torch.nn.functional.normalize(sae.W_dec[1], dim=0)
    assert child[0].item() == pytest.approx(share * 0.5**0.5, abs=0.05)


def test_bad_labels(data: Sample):
    never = torch.zeros(len(data.x), dtype=torch.bool)
    with pytest.raises(UserError, match="never occurs"):
        absorption(orthogonal(), data.x, never)
    with pytest.raises(UserError, match="never occurs"):
        absorption(orthogonal(), data.x, data.active[:, 0], never)
    with pytest.raises(UserError, match="true everywhere"):
        fit(data.x, ~never)
    noise = torch.rand(len(data.x), generator=generator(1)) < 0.05
    with pytest.raises(UserError, match="linear probe finds the parent"):
        absorption(orthogonal(), data.x, noise)


def test_a_probe_finds_a_separable_label_and_not_noise(data: Sample):
    label = data.active[:, 2]
    probe = fit(data.x[::2], label[::2])
    assert f1(probe.says(data.x[1::2]), label[1::2]) == 1
    assert torch.cosine_similarity(probe.w, torch.eye(D)[2], dim=0) > 0.99
    noise = torch.rand(len(label), generator=generator(1)) < 0.5
    assert abs(balanced_accuracy(fit(data.x[::2], noise[::2]).says(data.x[1::2]), noise[1::2]) - 0.5) < 0.05


def test_f1_by_hand():
    said, label = torch.tensor([1, 1, 1, 0, 0]).bool(), torch.tensor([1, 0, 1, 1, 0]).bool()
    precision, recall = 2 / 3, 2 / 3
    assert f1(said, label) == pytest.approx(2 * precision * recall / (precision + recall))
    assert balanced_accuracy(said, label) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_one_latent_a_feature_is_a_perfect_sparse_probe(data: Sample):
    assert sparse_probe(orthogonal().encode(data.x), data.active[:, 2], (1, 2)) == {1: 1.0, 2: 1.0}
    mixed = torch.eye(4, D)[[2, 2]] + torch.eye(4, D)[[3, 0]]
    sae = SAE(mixed.T.contiguous(), torch.zeros(2), mixed, torch.zeros(D), ReLU())
    assert sparse_probe(sae.encode(data.x), data.active[:, 2], (1,))[1] < 0.95
    with pytest.raises(UserError, match="there are 4 latents"):
        sparse_probe(orthogonal().encode(data.x), data.active[:, 2], (9,))


def test_cutting_a_features_own_latent_affects_that_feature_alone(data: Sample):
    labels = [data.active[:, 2], data.active[:, 3]]
    assert tpp(orthogonal(), data.x, labels, (1,))[1] == pytest.approx(0.5, abs=0.01)
    both = orthogonal()
    entangled = SAE(both.W_enc[:, 2:3] + both.W_enc[:, 3:4], torch.zeros(1), both.W_dec[2:3] + both.W_dec[3:4],
                    both.b_dec, ReLU())  # fmt: skip
    assert tpp(entangled, data.x, labels, (1,))[1] < 0.1
    with pytest.raises(UserError, match="two or more"):
        tpp(orthogonal(), data.x, labels[:1])


def test_a_bias_is_cut_out_by_its_own_latent(data: Sample):
    """Each label has a latent for yes and one for no: the biased probe reads all four equally."""
    wanted, spurious = data.active[:, 2], data.active[:, 3]
    x = torch.stack([wanted, ~wanted, spurious, ~spurious], 1).float()
    assert scr(orthogonal(4), x, wanted, spurious, (2,)) == {2: pytest.approx(1, abs=0.01)}
    with pytest.raises(UserError, match="disagree"):
        scr(orthogonal(), data.x, wanted, wanted)


def test_the_organism_is_what_it_says():
    organism = Organism.random()
    sample = organism.sample(20_000, generator())
    assert organism.atoms.shape == (32, 16)
    assert organism.atoms.norm(dim=1) == pytest.approx(torch.ones(32), abs=1e-6)
    assert (sample.active.sum(1) == 3).all()
    assert torch.allclose(sample.code @ organism.atoms, sample.x)
    assert sample.active.float().mean(0) == pytest.approx(torch.full((32,), 3 / 32), abs=0.01)
    assert sample.code[sample.active].mean() == pytest.approx((2 / torch.pi) ** 0.5, abs=0.01)
    with pytest.raises(UserError, match="k = 40"):
        Organism.random(k=40)


def trained(organism: Organism, method: TopKConfig | ReluConfig, seed: int) -> SAE:
    """An SAE as the package trains it, on fresh data of the organism every one of 900 steps."""
    config = TrainConfig(
        saes=[method], tokens=512 * 900, batch_tokens=512, buffer_tokens=512, lr=1e-2, min_lr=0, warmup_steps=0,
        seed=seed,
    )  # fmt: skip
    (learner,), g = learners(config, Shape(16, 1)), generator(seed)
    (site,) = learner.trainee.sites
    learner.trainee.prepare({site: organism.sample(512, g).x})
    for step in range(900):
        learner.step({site: organism.sample(512, g).x}, step)
    return learner.trainee.sae(site)


@pytest.fixture(scope="module")
def organism() -> Organism:
    return Organism.random(seed=1)


def test_topk_finds_the_organisms_dictionary_and_a_random_one_does_not(organism: Organism):
    """Multi-TopK, as in Gao et al.: without it now and then an atom is missed (docs/consistency.md)."""
    truth = Dictionary(organism.atoms, organism.atoms)
    method = TopKConfig(sites=["resid_mid.0"], k=3, expansion=2, multi=4)
    seeds = [Dictionary.of(trained(organism, method, seed)) for seed in (0, 1)]
    found = [mcc(seed, truth).mcc for seed in seeds]
    assert min(found) >= 0.95, found
    assert mcc(*seeds).mcc > 0.9
    assert mcc(Dictionary.random(32, 16, generator()), truth).rescaled < 0.1


def test_relu_at_the_l0_of_the_released_ones_finds_no_more_than_they_did(organism: Organism):
    """arXiv 2505.20254 has a GT-MCC of 0.63, at an L0 of 15.7 where 3 atoms are active."""
    sparsity = Sparsity(weight=0.05, target_l0=15.7)
    sae = trained(organism, ReluConfig(sites=["resid_mid.0"], expansion=2, sparsity=sparsity), 0)
    assert (sae.encode(organism.sample(4000, generator(1)).x) > 0).sum(1).float().mean() == pytest.approx(15.7, abs=1)
    assert 0.55 < mcc(Dictionary.of(sae), Dictionary(organism.atoms, organism.atoms)).mcc < 0.8
