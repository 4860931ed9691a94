"""What is measured while SAEs train, and which weights are kept."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scalar_sae.corpora import load_corpus, windows
from scalar_sae.io import Events
from scalar_sae.saes.methods.base import Progress, TrainableSAEs
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import load_sae
from scalar_sae.sites import Site
from scalar_sae.training.best import Best
from scalar_sae.training.config import TrainConfig
from scalar_sae.training.learner import learners
from scalar_sae.training.validation import Validation
from tests.helpers import tiny_lm
from tests.training.runs import SITES, SMALL, STAIRS, STATEFUL, TOPK, random_prompts, trained


def logged(path: Path) -> list[dict[str, Any]]:
    """The validations in a log."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["kind"] == "validate"]


def trainee_of(method: dict[str, Any]) -> TrainableSAEs:
    return learners(TrainConfig(saes=[method], **SMALL), tiny_lm())[0].trainee


def test_validation_is_logged(tmp_path: Path, text: Path):
    events = Events(tmp_path / "events.jsonl")
    saes = trained(tmp_path, text, "run", [TOPK], events, tokens=4000, validations=4)["topk"]
    found = logged(tmp_path / "events.jsonl")
    assert [line["step"] for line in found] == [10, 20, 30, 40]
    lm, corpus = tiny_lm(), load_corpus(str(text), tiny_lm())
    text_ids = windows(corpus.halves[0], 16)
    for site, sae in saes.items():
        measures = found[-1]["saes"][str(site)]
        x = lm.activations(text_ids, [site])[site]
        x_hat = sae.decode(sae.encode(x))
        both = [logits.log_softmax(-1) for logits in (lm.logits(text_ids), lm.logits_from(site, x_hat))]
        clean, spliced = (
            torch.nn.functional.nll_loss(log_p[:, :-1].flatten(0, 1), text_ids[:, 1:].flatten().long())
            for log_p in both
        )
        expected = {
            "l0": (sae.encode(x) > 0).sum(-1).float().mean(),
            "fvu": (x - x_hat).square().sum() / (x - x.mean((0, 1))).square().sum(),
            "cosine": torch.nn.functional.cosine_similarity(x, x_hat, dim=-1).mean(),
            "ce_increase": spliced - clean,
            "kl": torch.nn.functional.kl_div(both[1], both[0], log_target=True, reduction="none").sum(-1).mean(),
            "dead": ((sae.encode(x) > 0).sum((0, 1)) == 0).float().mean(),
        }
        for name, value in expected.items():
            assert measures[name] == pytest.approx(value.item(), rel=1e-3, abs=1e-4), name
    first, second = (saes[site] for site in SITES)
    x = lm.activations(text_ids, SITES[:1])[SITES[0]]
    x = lm.run(*SITES, first.decode(first.encode(x)))
    logits = lm.logits_from(SITES[1], second.decode(second.encode(x)))
    together = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), text_ids[:, 1:].flatten().long())
    assert found[-1]["ce_increase_all"] == pytest.approx((together - clean).item(), rel=1e-3, abs=1e-4)
    log_p = [logits.log_softmax(-1) for logits in (logits, lm.logits(text_ids))]
    kl = torch.nn.functional.kl_div(*log_p, log_target=True, reduction="none").sum(-1).mean()
    assert found[-1]["kl_all"] == pytest.approx(kl.item(), rel=1e-3, abs=1e-4)


def test_validation_measures_a_gradient_sae_with_and_without_gradients(tmp_path: Path, text: Path):
    saes = [{**TOPK, "method": "g_sae", "name": name, "beta": beta} for name, beta in (("none", 0.0), ("much", 100.0))]
    trained(tmp_path, text, "run", [*saes, TOPK], Events(tmp_path / "events.jsonl"), validations=1)
    found = {line["name"]: line["saes"]["resid_mid.0"] for line in logged(tmp_path / "events.jsonl")}
    assert "as_trained" not in found["topk"]
    scores = {"l0", "loss", "fvu", "cosine", "ce_increase", "kl", "dead"}
    assert set(found["much"]["as_trained"]) == scores
    for name in scores:
        assert found["none"]["as_trained"][name] == pytest.approx(found["none"][name], rel=1e-3, abs=1e-5)
    assert found["much"]["as_trained"]["fvu"] != pytest.approx(found["much"]["fvu"], rel=1e-3)


def test_saes_beside_the_residual_stream_are_spliced_in_at_once(tmp_path: Path, text: Path):
    """Before the first MLP and behind the second, by hooks of torch."""
    events = Events(tmp_path / "events.jsonl")
    sites = ["mlp_in.0", "mlp_out.1"]
    saes = trained(tmp_path, text, "run", [{**TOPK, "sites": sites}], events, validations=1)["topk"]
    before, behind = (saes[Site.parse(site)] for site in sites)
    lm, text_ids = tiny_lm(), windows(load_corpus(str(text), tiny_lm()).halves[0], 16)
    clean = lm.logits(text_ids).log_softmax(-1)
    first, second = (block.mlp for block in lm.hf.transformer.h)
    first.register_forward_pre_hook(lambda _, args: (before.decode(before.encode(args[0])),))
    second.register_forward_hook(lambda _, args, out: behind.decode(behind.encode(out)))
    spliced = lm.hf(text_ids).logits.log_softmax(-1)
    kl = torch.nn.functional.kl_div(spliced, clean, log_target=True, reduction="none").sum(-1).mean().item()
    found = logged(tmp_path / "events.jsonl")[-1]
    assert found["kl_all"] == pytest.approx(kl, rel=1e-3, abs=1e-4)
    assert found["kl_all"] > max(measures["kl"] for measures in found["saes"].values())


@pytest.mark.parametrize("first", [False, True])
def test_special_tokens_keep_the_models_own_activation_where_saes_are_spliced_in(
    first: bool, tmp_path: Path, text: Path
):
    """Two SAEs at once, by hooks of torch, with tokens left out in the middle of the prompts."""
    events, special = Events(tmp_path / "events.jsonl"), [3, 11, 20]
    rule = ["first", *special] if first else special
    saes = trained(tmp_path, text, "run", [TOPK], events, validations=1, special=rule)["topk"]
    lm, text_ids = tiny_lm(), windows(load_corpus(str(text), tiny_lm()).halves[0], 16)
    kept = ~torch.isin(text_ids, torch.tensor(special))
    kept[:, 0] &= not first
    assert 0.5 < kept.float().mean() < 0.98
    clean, own = lm.logits(text_ids).log_softmax(-1), lm.activations(text_ids, SITES)
    mid, post = (saes[site] for site in SITES)
    before, last = lm.hf.transformer.h[0].ln_2, lm.hf.transformer.h[1]

    def put(sae: SAE, site: Site, x: torch.Tensor) -> torch.Tensor:
        return torch.where(kept.unsqueeze(-1), sae.decode(sae.encode(x)), own[site])

    # the skip past the first MLP keeps the model's own activation, so what the SAE changed is added behind it
    changed: list[torch.Tensor] = []
    before.register_forward_pre_hook(lambda _, args: changed.append(put(mid, SITES[0], args[0]) - args[0]))
    before.register_forward_pre_hook(lambda _, args: (args[0] + changed[-1],))
    lm.hf.transformer.h[0].register_forward_hook(lambda _, args, out: out + changed[-1])
    last.register_forward_hook(lambda _, args, out: put(post, SITES[1], out))
    spliced = lm.hf(text_ids).logits.log_softmax(-1)
    kl = torch.nn.functional.kl_div(spliced, clean, log_target=True, reduction="none").sum(-1)[kept].mean()
    target = text_ids[:, 1:, None].long()
    rise = (clean - spliced)[:, :-1].gather(2, target)[kept[:, 1:]].mean()
    found = logged(tmp_path / "events.jsonl")[-1]
    assert found["kl_all"] == pytest.approx(kl.item(), rel=1e-3, abs=1e-4)
    assert found["ce_increase_all"] == pytest.approx(rise.item(), rel=1e-3, abs=1e-4)


def test_a_staircase_has_its_chunks_and_its_jacobian_measured(tmp_path: Path, text: Path):
    events = Events(tmp_path / "events.jsonl")
    saes = trained(tmp_path, text, "run", [STAIRS], events, validations=1)["staircase"]
    found = logged(tmp_path / "events.jsonl")[-1]
    for site, sae in saes.items():
        measures = found["saes"][str(site)]
        assert len(measures.get("l0_per_chunk", [0])) == len(sae.chunks)
        assert sum(measures["l0_per_chunk"]) == pytest.approx(measures["l0"], rel=1e-3)
    lm = tiny_lm()
    ends = Site("resid_mid", 1), Site("resid_post", 1)
    up, down = (saes[site] for site in ends)
    acts = lm.activations(windows(load_corpus(str(text), tiny_lm()).halves[0], 16), list(ends))
    x, y = (acts[site].flatten(0, 1)[:256] for site in ends)
    total = 0.0
    for x_t, z, u in zip(x, up.encode(x), down.encode(y), strict=True):
        block = torch.autograd.functional.jacobian(lambda v: lm.run(*ends, v.view(1, 1, -1)).flatten(), x_t)
        total += (up.W_dec[z > 0] @ block.T @ down.W_enc[:, u > 0]).abs().sum().item()
    assert found["jacobian"].keys() == {"ff_block.0", "ff_block.1"}
    assert found["jacobian"]["ff_block.1"] == pytest.approx(total / len(x) / 2**2, rel=1e-3)


@pytest.mark.parametrize("method", [TOPK, STAIRS, *STATEFUL], ids=lambda method: method["method"])
def test_a_validation_changes_nothing(method: dict[str, Any]):
    trainee = trainee_of(method)
    before = {name: tensor.clone() for name, tensor in trainee.state_dict().items()}
    validation = Validation(tiny_lm(), random_prompts(), trainee.reads, ())
    first = validation.loss(trainee)
    assert first == validation.loss(trainee) > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in trainee.state_dict().items())
    assert all(parameter.grad is None for parameter in trainee.parameters())


def test_the_validation_loss_is_the_training_loss_on_that_text():
    trainee, lm = trainee_of(STAIRS), tiny_lm()
    acts = {site: lm.activations(random_prompts(), [site])[site].flatten(0, 1) for site in trainee.sites}
    expected = sum(trainee.losses(acts, Progress(1, 1)).values()).detach()
    assert Validation(lm, random_prompts(), trainee.reads, ()).loss(trainee) == pytest.approx(float(expected), rel=1e-5)


def test_what_is_kept_existed_together():
    trainee, best = trainee_of(STAIRS), Best()
    states: dict[int, dict[str, torch.Tensor]] = {}
    for step, height in enumerate((3.0, 1.0, 2.0)):
        with torch.no_grad():
            for parameter in trainee.parameters():
                parameter.fill_(height)
        states[step] = {name: tensor.clone() for name, tensor in trainee.state_dict().items()}
        best.judge(trainee, step, lambda t: next(t.parameters()).detach().mean().item())
        assert all(p.detach().mean().item() == height for p in trainee.parameters()), "the weights in training stay"
    assert (best.step, best.loss) == (1, 1.0)
    best.restore(trainee)
    assert all(torch.equal(states[1][name], tensor) for name, tensor in trainee.state_dict().items())


def test_kept_and_present_weights_are_judged_alike():
    trainee, best = trainee_of(TOPK), Best()
    best.judge(trainee, 1, lambda _: 1.0)
    best.judge(trainee, 2, lambda _: 5.0)  # the penalty has grown for both, and later weights win a tie
    assert (best.step, best.loss) == (2, 5.0)


def test_the_best_weights_are_written_and_the_card_says_which(tmp_path: Path, text: Path):
    events = Events(tmp_path / "events.jsonl")
    one_site = {**TOPK, "sites": ["resid_mid.0"]}
    saes = trained(tmp_path, text, "run", [one_site], events, validations=10, lr=3.0, warmup_steps=20)["topk"]
    (site, sae), found = next(iter(saes.items())), logged(tmp_path / "events.jsonl")
    losses = {line["step"]: line["saes"][str(site)]["val_loss"] for line in found}
    step = min(losses, key=lambda step: losses[step])
    _, card = load_sae(tmp_path / "run" / "saes" / "topk" / str(site))
    assert card.recipe["kept"]["step"] == step < 20, "a learning rate that grows to 3 does harm"
    assert found[-1]["saes"][str(site)]["kept_step"] == step
    x = tiny_lm().activations(windows(load_corpus(str(text), tiny_lm()).halves[0], 16), [site])[site]
    error = (x - sae.decode(sae.encode(x))).square().sum(-1).mean().item()
    assert error == pytest.approx(card.recipe["kept"]["val_loss"], rel=1e-4)
