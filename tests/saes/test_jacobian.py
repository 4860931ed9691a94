"""Jacobian SAEs: the closed form against autograd for every norm and MLP, and against the authors' own values."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import gelu, silu

from scalar_sae.lm.feedforward import FeedForward
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.norms import AnyNorm, DyT, NoNorm, Norm
from scalar_sae.saes.components.ff_jacobian import ff_jacobian, jacobian_penalty
from scalar_sae.saes.components.sparse import top_k
from scalar_sae.saes.methods.base import Progress, Weights
from scalar_sae.saes.methods.jacobian import JacobianConfig, JacobianTrainee
from scalar_sae.saes.methods.staircase_jacobian import StaircaseJacobianConfig
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.score import score
from scalar_sae.scoring.texts import Texts
from scalar_sae.sites import Block, Site
from tests.golden.make import ROWS
from tests.helpers import GOLDEN, Shape, golden_lm, golden_sae, random_sae, shared, tiny_lm

D, MLP, SAE, K = 6, 10, 12, 4


def _ff(kind: str, gated: bool, post: str = "") -> FeedForward:
    g = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    norm: AnyNorm = Norm(normal(D), normal(D), 0.1, kind == "layer_norm")
    if kind.startswith("dyt"):
        norm = DyT(norm.weight, norm.bias, normal(D) if kind == "dyt_each" else torch.tensor(0.7))
    if kind == "none":
        norm = NoNorm()
    return FeedForward(
        norm, normal(D, MLP), normal(MLP), normal(D, MLP) if gated else None, normal(MLP) if gated else None,
        silu if gated else gelu, normal(MLP, D), normal(D),
        Norm(normal(D), normal(D), 0.1, post == "layer_norm") if post else None,
    )  # fmt: skip


def _weights(seed: int) -> Weights:
    g = torch.Generator().manual_seed(seed)
    shapes = ((D, SAE), (SAE,), (SAE, D), (D,))
    return Weights(*(torch.randn(shape, generator=g) for shape in shapes))


@pytest.mark.parametrize("block", [False, True], ids=["ff_layer", "ff_block"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize(
    ("norm", "post"),
    [
        ("rms_norm", ""), ("layer_norm", ""), ("none", ""), ("dyt", ""), ("dyt_each", ""),
        ("rms_norm", "rms_norm"), ("layer_norm", "layer_norm"), ("rms_norm", "layer_norm"), ("none", "rms_norm"),
    ],
)  # fmt: skip
def test_the_closed_form_is_autograds(norm: str, post: str, gated: bool, block: bool):
    ff, before, after = _ff(norm, gated, post), _weights(2), _weights(3)
    x = torch.randn(5, D, generator=torch.Generator().manual_seed(4))

    def through(x: torch.Tensor) -> torch.Tensor:
        return x + ff.mlp(ff.norm(x)) if block else ff.mlp(x)

    up, down = top_k(before, x, K), top_k(after, through(x), K)
    ours = ff_jacobian(ff, x, up, down, block=block)
    for t in range(5):
        full = before.W_dec @ torch.autograd.functional.jacobian(through, x[t]).T @ after.W_enc
        for i in range(K):
            for j in range(K):
                alive = bool(up.acts[t, i] > 0) and bool(down.acts[t, j] > 0)
                expected = full[up.latents[t, i], down.latents[t, j]] if alive else torch.tensor(0.0)
                torch.testing.assert_close(ours[t, i, j], expected, atol=1e-5 * float(full.abs().max()), rtol=1e-5)


class DynamicTanh(torch.nn.Module):
    """As in the SCALAR authors' fine-tuned models: in the place of the norm in front of the MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = torch.nn.Parameter(torch.tensor(0.7))
        self.weight = torch.nn.Parameter(torch.rand(16) + 0.5)
        self.bias = torch.nn.Parameter(torch.rand(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * torch.tanh(self.alpha * x) + self.bias


def test_a_model_with_dynamic_tanh_is_understood():
    torch.manual_seed(0)
    hf = tiny_lm().hf
    hf.transformer.h[0].ln_2 = DynamicTanh()
    lm = LanguageModel(hf, "dyt")
    ff, ends = lm.feed_forward(0), (Site("resid_mid", 0), Site("resid_post", 0))
    assert isinstance(ff.norm, DyT)
    x = torch.randn(1, 6, 16)
    torch.testing.assert_close(x + ff.mlp(ff.norm(x)), lm.run(*ends, x), atol=1e-5, rtol=1e-5)
    pair = Pair(lm, Block(*ends), *(random_sae(16, 24, 4, seed) for seed in (1, 2)))
    tokens = torch.arange(20).view(2, 10)
    config = ScoreConfig(ranking="leave_one_out", rank_prompts=2, prompts=2, context=10)
    record = score(pair, Texts(tokens, tokens + 5, {"fingerprint": "f"}), config)
    assert record.kl_circuit[-1] == pytest.approx(0, abs=1e-5), "the whole circuit is what is scored against"


GOLDEN_CASES = {
    "topk.mlpblock": {"residmid": "resid_mid", "residpost": "resid_post"},
    "topk.mlplayer": {"mlpin": "mlp_in", "mlpout": "mlp_out"},
    "jsae.mlp_layer": {"mlpin": "mlp_in", "mlpout": "mlp_out"},
}
"""The sites of a variant's two SAEs: the authors' word and ours."""


def golden_jacobian(variant: str, layer: int, loss: float) -> tuple[Weights, Weights]:
    """Compare the Jacobian loss of a layer on the first four prompts; returns the SAEs with gradients of the loss."""
    lm, sites = golden_lm(), GOLDEN_CASES[variant]
    ids = load_file(GOLDEN / "prompts.safetensors")["ids"].long()[:4]
    acts = lm.activations(ids, [Site(kind, layer) for kind in sites.values()]).values()
    before, after = (
        Weights(*(getattr(sae, name).clone().requires_grad_() for name in ("W_enc", "b_enc", "W_dec", "b_dec")))
        for sae in (golden_sae(variant, f"{layer}_{site}") for site in sites)
    )
    x, y = (x.flatten(0, 1) for x in acts)
    block = variant == "topk.mlpblock"
    J = ff_jacobian(lm.feed_forward(layer), x, top_k(before, x, 10), top_k(after, y, 10), block=block)
    theirs = J.abs().sum() / 100
    assert theirs.item() == pytest.approx(loss, rel=1e-4)
    assert jacobian_penalty(J, 64).item() == pytest.approx(loss * 64 / len(x), rel=1e-4)
    theirs.backward()
    return before, after


@pytest.mark.parametrize("variant", ["topk.mlpblock", "topk.mlplayer"])
def test_golden_jacobian_loss_and_gradients(variant: str):
    loss = json.loads((GOLDEN / "index.json").read_text())["jacobian_loss_of_layer_0"][variant]
    before, after = golden_jacobian(variant, 0, loss)
    grads = load_file(GOLDEN / "jacobian.safetensors")
    up, down = GOLDEN_CASES[variant]
    theirs = (grads[f"{variant}.0_{up}.W_dec.grad"], grads[f"{variant}.0_{down}.W_enc.grad"])
    assert before.W_dec.grad is not None
    assert after.W_enc.grad is not None
    for ours, golden in zip((before.W_dec.grad[ROWS], after.W_enc.grad[:, ROWS]), theirs, strict=True):
        torch.testing.assert_close(ours, golden, atol=1e-4, rtol=1e-3)


@pytest.mark.golden
@pytest.mark.parametrize("variant", GOLDEN_CASES)
def test_golden_jacobian_losses_of_every_layer(variant: str):
    index = json.loads(shared("golden", "index.json").read_text())
    for layer, loss in enumerate(index["jacobian_golden"][variant]["jacobian_loss_per_layer"]):
        golden_jacobian(variant, layer, loss)


@pytest.mark.parametrize("config", [JacobianConfig(along="ff_blocks"), JacobianConfig(), StaircaseJacobianConfig()])
def test_the_term_is_added_after_a_warm_up_and_reaches_both_saes(config: JacobianConfig | StaircaseJacobianConfig):
    changes = {"k": 3, "expansion": 2, "warmup": 0.5}
    trainee, without = (
        config.model_copy(update={**changes, "weight": weight}).trainees(Shape(8, 1), 0)[0] for weight in (2.0, 0.0)
    )
    x = torch.randn(20, 8)
    acts = dict.fromkeys(trainee.sites, x)
    plain = sum(without.losses(acts, Progress(0, 10)).values()).item()
    early, half, late = (sum(trainee.losses(acts, Progress(i, 10)).values()).item() - plain for i in (0, 4, 9))
    assert 0 < early == pytest.approx(half / 5, rel=1e-3)
    assert late == pytest.approx(half, rel=1e-3)


@pytest.mark.parametrize("along", ["ff_layers", "ff_blocks"])
def test_shares_of_a_batch_have_the_mean_of_the_whole(along: str):
    torch.manual_seed(0)
    x = torch.randn(20, 8)
    whole, quarter = (
        JacobianConfig(along=along, k=3, expansion=2, share=share).trainees(Shape(8, 1), 0)[0] for share in (1.0, 0.25)
    )
    without = JacobianConfig(along=along, k=3, expansion=2, weight=0.0).trainees(Shape(8, 1), 0)[0]
    before, after = whole.sites

    def penalty(trainee: JacobianTrainee, x: torch.Tensor) -> float:
        acts = {before: x, after: x.flip(1)}
        return (trainee.losses(acts, Progress(9, 10))[after] - without.losses(acts, Progress(9, 10))[after]).item()

    parts = [penalty(quarter, x.roll(-5 * part, 0)) for part in range(4)]
    assert sum(parts) / 4 == pytest.approx(penalty(whole, x), rel=1e-4)
    assert len({round(part, 3) for part in parts}) == 4


@pytest.mark.parametrize("method", [JacobianConfig(along="ff_blocks"), StaircaseJacobianConfig()])
def test_validation_takes_every_token(method: JacobianConfig | StaircaseJacobianConfig):
    torch.manual_seed(0)
    whole, quarter = (
        method.model_copy(update={"k": 3, "expansion": 2, "share": share}).trainees(Shape(8, 1), 0)[0].eval()
        for share in (1.0, 0.25)
    )
    acts = {site: torch.randn(20, 8) for site in whole.sites}
    expected, found = (trainee.losses(acts, Progress(9, 10)) for trainee in (whole, quarter))
    assert all(torch.equal(found[site], expected[site]) for site in whole.sites)


@pytest.mark.parametrize("unit_norm", [False, True])
def test_a_large_weight_makes_the_jacobian_small(unit_norm: bool):
    torch.manual_seed(0)
    found: dict[float, float] = {}
    lm = Shape(8, 1)
    x = torch.randn(256, 8)
    y = lm.feed_forward(0).mlp(x)
    for weight in (0.0, 3.0):
        config = JacobianConfig(k=3, expansion=4, weight=weight, warmup=0.0, unit_norm=unit_norm)
        trainee = config.trainees(lm, 0)[0]
        optimizer = torch.optim.Adam(trainee.parameters(), lr=1e-2)
        for step in range(60):
            optimizer.zero_grad()
            sum(trainee.losses(dict(zip(trainee.sites, (x, y), strict=True)), Progress(step, 60)).values()).backward()
            trainee.after_backward()
            optimizer.step()
            trainee.after_step()
        norms = torch.cat([trainee.sae(site).W_dec.norm(dim=1) for site in trainee.sites])
        assert torch.allclose(norms, torch.ones(()), atol=1e-5) == unit_norm
        weights = [
            Weights(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
            for sae in (trainee.sae(Site("mlp_in", 0)), trainee.sae(Site("mlp_out", 0)))
        ]
        J = ff_jacobian(lm.feed_forward(0), x, top_k(weights[0], x, 3), top_k(weights[1], y, 3), block=False)
        found[weight] = J.abs().mean().item()
    assert found[3.0] < 0.5 * found[0.0]
