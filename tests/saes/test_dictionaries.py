"""What all methods with one dictionary a site share: scale, form, norms, first bias."""

import pytest
import torch

from scalar_sae.activations.reading import Gradient
from scalar_sae.saes.methods.dictionary import DictionaryMethod
from scalar_sae.saes.methods.registry import CONFIGS
from scalar_sae.saes.methods.topk import TopKConfig, geometric_median
from scalar_sae.sites import Site
from tests.helpers import Shape
from tests.saes.dictionaries import HERE, LATE, SITE, data, prepared


def test_the_geometric_median_is_where_unit_pulls_cancel():
    x = data(200) ** 3
    pulls = x - geometric_median(x, 500)
    assert (pulls / pulls.norm(dim=1, keepdim=True)).sum(0).norm() < 0.05


SINGLE = {name: config for name, config in CONFIGS.items() if issubclass(config, DictionaryMethod)}


@pytest.mark.parametrize("method", SINGLE)
@pytest.mark.parametrize("scale", ["none", "unit", "sqrt_d"])
def test_folding_the_scale_leaves_the_sae_what_was_trained(method: str, scale: str):
    x = 7 * data(300)
    more = {"bandwidth": 0.1} if method == "jumprelu" else {}
    trainee = prepared(SINGLE[method](sites=HERE, scale=scale, **more), x)
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
    x = data()
    acts = {read: x, target: 5 * x @ torch.randn(8, 8), Gradient(target): data(seed=2)}
    trainee.prepare(acts)
    assert set(trainee.reads) <= set(acts)
    assert (trainee.target(read), config.blocks(1)) == (target, [])
    trainee.losses(acts, LATE)[read].backward()
    assert trainee.W_enc.grad is not None
    assert not torch.allclose(trainee.scale[0], trainee.scale[1])


def test_unit_norm_is_held_without_following_gradients_along_the_rows():
    x = data()
    trainee = prepared(TopKConfig(sites=HERE, k=3, unit_norm=True), x)
    trainee.losses({SITE: x}, LATE)[SITE].backward()
    trainee.after_backward()
    torch.testing.assert_close((trainee.W_dec.grad * trainee.W_dec).sum(1), torch.zeros(64), atol=1e-5, rtol=0)
    with torch.no_grad():
        trainee.W_dec -= 0.1 * trainee.W_dec.grad
    trainee.after_step()
    torch.testing.assert_close(trainee.W_dec.norm(dim=1), torch.ones(64))
