"""The stream, the loop, and going on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml

from scalar_sae.activations.cache import CachedStream
from scalar_sae.activations.reading import Gradient
from scalar_sae.activations.stream import ActivationStream
from scalar_sae.corpora import load_corpus, windows
from scalar_sae.errors import UserError
from scalar_sae.runs import Events
from scalar_sae.saes.store import load_sae, load_saes
from scalar_sae.sites import Site
from scalar_sae.training.config import TrainConfig, presets, read_preset, validated
from scalar_sae.training.learner import learning_rate
from scalar_sae.training.loop import train
from tests.helpers import tiny_lm

SITES = [Site("resid_mid", 0), Site("resid_post", 1)]
TOPK = {"method": "topk", "sites": ["resid_mid.0", "resid_post.1"], "k": 2, "expansion": 2}
STAIRS = {"method": "staircase", "along": "ff_blocks", "k": 2, "expansion": 2}
STATEFUL = [
    {"method": "batch_topk", "sites": ["resid_mid.0"], "k": 2, "expansion": 2, "dead_tokens": 300},
    {"method": "temporal", "sites": ["resid_mid.0"], "expansion": 2, "sparsity": {"weight": 1, "target_l0": 4}},
    {"method": "feature_choice", "sites": ["resid_mid.0"], "k": 2, "expansion": 2, "mutual": 0.5},
    {"method": "gradient", "sites": ["resid_mid.0"], "k": 2, "expansion": 2},
]
SMALL = {"tokens": 2000, "batch_tokens": 100, "buffer_tokens": 400, "context": 16, "warmup_steps": 3}


def _prompts(n: int = 12) -> torch.Tensor:
    return torch.randint(0, 32, (n, 16), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(1 + (7 * i * i + i) % 31) for i in range(3000)))
    return path


def test_an_epoch_of_buffers_holds_every_token_once_and_shuffled():
    lm = tiny_lm()
    stream = ActivationStream(lm, _prompts(), SITES, buffer_tokens=64, seed=0)
    clean = lm.activations(_prompts(), SITES)
    buffers = list(islice(stream.buffers(), 3))
    for site in SITES:
        ours = torch.cat([buffer[site] for buffer in buffers])
        assert ours.shape == (192, 16)
        assert not torch.equal(ours, clean[site].flatten(0, 1))
        key = torch.linspace(1, 2, 16)
        torch.testing.assert_close((ours @ key).sort().values, (clean[site].flatten(0, 1) @ key).sort().values)


def test_sites_stay_aligned_through_the_shuffle():
    lm = tiny_lm()
    buffer = next(ActivationStream(lm, _prompts(), SITES, buffer_tokens=192, seed=0).buffers())
    clean = lm.activations(_prompts(), SITES)
    weights = torch.randn(32, generator=torch.Generator().manual_seed(0))
    both = [torch.cat([acts[site].flatten(0, -2) for site in SITES], -1) @ weights for acts in (buffer, clean)]
    torch.testing.assert_close(both[0].sort().values, both[1].sort().values)


def test_a_buffer_depends_on_its_number_alone():
    stream = ActivationStream(tiny_lm(), _prompts(), SITES, buffer_tokens=64, seed=5)
    fourth = next(islice(stream.buffers(), 4, None))
    again = next(stream.buffers(start=4))
    assert all(torch.equal(fourth[site], again[site]) for site in SITES)


def test_gradients_are_read_where_the_loss_is_taken():
    lm, prompts = tiny_lm(), _prompts(4)
    for site in (Site("resid_mid", 0), Site("mlp_out", 1)):
        buffer = next(ActivationStream(lm, prompts, [site, Gradient(site)], 64, seed=0).buffers())
        state = lm.states(prompts, [site])[site]
        nudge = 1e-2 * torch.randn(state.x.shape, generator=torch.Generator().manual_seed(1))

        def loss(x: torch.Tensor, site: Site = site, skip: torch.Tensor | None = state.skip) -> torch.Tensor:
            log_p = lm.logits_from(site, x, skip)[:, :-1].log_softmax(-1)
            return -log_p.gather(2, prompts[:, 1:, None]).sum()

        change = loss(state.x + nudge) - loss(state.x - nudge)
        flat = state.x.flatten(0, 1)
        order = [int((flat - row).abs().sum(1).argmin()) for row in buffer[site]]
        predicted = 2 * (buffer[Gradient(site)] * nudge.flatten(0, 1)[order]).sum()
        torch.testing.assert_close(change, predicted, rtol=1e-2, atol=1e-3)


def test_special_tokens_are_left_out():
    lm, prompts = tiny_lm(), _prompts(4)
    stream = ActivationStream(lm, prompts, SITES, 64, seed=0, exclude=(3, 5))
    buffer = next(stream.buffers())
    kept = ~((prompts == 3) | (prompts == 5))
    assert 0 < int(kept.sum()) < 64
    for site in SITES:
        expected = lm.activations(prompts, [site])[site][kept]
        key = torch.linspace(1, 2, 16)
        torch.testing.assert_close((buffer[site] @ key).sort().values, (expected @ key).sort().values)


def test_a_cache_yields_the_same_buffers_without_the_model(tmp_path: Path):
    lm = tiny_lm()
    stream = ActivationStream(lm, _prompts(), SITES, buffer_tokens=64, seed=0)
    plain = list(islice(stream.buffers(), 4))
    first = list(islice(CachedStream(stream, tmp_path / "cache").buffers(), 4))
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4
    fewer = ActivationStream(lm, _prompts(), SITES[:1], buffer_tokens=64, seed=0)
    second = CachedStream(fewer, tmp_path / "cache")
    lm.states = None  # the model must not be asked again
    for a, b, c in zip(plain, first, islice(second.buffers(), 4), strict=True):
        assert all(torch.equal(a[site], b[site]) for site in SITES)
        assert torch.equal(a[SITES[0]], c[SITES[0]])


def test_a_cache_of_another_recipe_is_refused(tmp_path: Path):
    lm = tiny_lm()
    CachedStream(ActivationStream(lm, _prompts(), SITES[:1], 64, seed=0), tmp_path)
    with pytest.raises(UserError, match=r"seed differs; lacks resid_post.1.*another --cache"):
        CachedStream(ActivationStream(lm, _prompts(), SITES, 64, seed=1), tmp_path)
    with pytest.raises(UserError, match="lm differs"):
        CachedStream(ActivationStream(tiny_lm(1), _prompts(), SITES[:1], 64, seed=0), tmp_path)


def _train(
    tmp_path: Path, text: Path, name: str, saes: list[dict], events: Events | None = None, cache: Path | None = None,
    **changes,
) -> dict:  # fmt: skip
    config = validated(TrainConfig, {**SMALL, "corpus": str(text), "saes": saes, **changes}, "train")
    train(config, tiny_lm(), load_corpus(str(text)), tmp_path / name, events or Events(None), cache)
    return load_saes(tmp_path / name)


class Stop(Events):
    """Sends a signal to this process when the log hears of a step."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(None)
        self._step, self._number = step, number

    def __call__(self, kind: str, **fields: object) -> None:
        if fields.get("step") == self._step:
            os.kill(os.getpid(), self._number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint(tmp_path: Path, text: Path, number: int):
    saes, at = [TOPK, *STATEFUL[:2]], {"tokens": 5_200, "validations": 26}
    whole = _train(tmp_path, text, "whole", saes, **at)
    with pytest.raises(SystemExit) as end:
        _train(tmp_path, text, "cut", saes, Stop(50, number), **at)
    assert end.value.code == 128 + number
    assert not list((tmp_path / "cut").rglob("sae.json"))
    position = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["position"]
    assert position[0] == 50
    assert position[2] == 2, "in the middle of a buffer of three batches"
    cut = _train(tmp_path, text, "cut", saes, **at)
    for name, group in whole.items():
        for site, sae in group.items():
            assert torch.equal(sae.W_enc, cut[name][site].W_enc)
            if hasattr(sae.activation, "threshold"):
                assert torch.equal(sae.activation.threshold, cut[name][site].activation.threshold)


def test_a_cached_run_is_the_same_run(tmp_path: Path, text: Path):
    plain = _train(tmp_path, text, "plain", [TOPK])["topk"]
    for name in ("writes", "reads"):
        cached = _train(tmp_path, text, name, [TOPK], cache=tmp_path / "cache")["topk"]
        assert all(torch.equal(plain[site].W_enc, cached[site].W_enc) for site in plain)


def test_validation_is_logged(tmp_path: Path, text: Path):
    events = Events(tmp_path / "events.jsonl")
    saes = _train(tmp_path, text, "run", [TOPK], events, tokens=4000, validations=4)["topk"]
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["kind"] == "validate"]
    assert [line["step"] for line in found] == [10, 20, 30, 40]
    lm, corpus = tiny_lm(), load_corpus(str(text))
    prompts = windows(corpus.val, 16)[:64]
    for site, sae in saes.items():
        measures = found[-1]["saes"][str(site)]
        x = lm.activations(prompts, [site])[site]
        x_hat = sae.decode(sae.encode(x))
        clean, spliced = (
            torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), prompts[:, 1:].flatten().long())
            for logits in (lm.logits(prompts), lm.logits_from(site, x_hat))
        )
        expected = {
            "l0": (sae.encode(x) > 0).sum(-1).float().mean(),
            "fvu": (x - x_hat).square().sum() / (x - x.mean((0, 1))).square().sum(),
            "cosine": torch.nn.functional.cosine_similarity(x, x_hat, dim=-1).mean(),
            "ce_increase": spliced - clean,
        }
        for name, value in expected.items():
            assert measures[name] == pytest.approx(value.item(), rel=1e-3, abs=1e-4), name
    first, second = (saes[site] for site in SITES)
    x = lm.activations(prompts, SITES[:1])[SITES[0]]
    x = lm.run(*SITES, first.decode(first.encode(x)))
    logits = lm.logits_from(SITES[1], second.decode(second.encode(x)))
    together = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), prompts[:, 1:].flatten().long())
    assert found[-1]["ce_increase_all"] == pytest.approx((together - clean).item(), rel=1e-3, abs=1e-4)


def test_a_damaged_checkpoint_is_named(tmp_path: Path, text: Path):
    (tmp_path / "run").mkdir()
    torch.save({"learners": []}, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(UserError, match=r"checkpoint.pt: not a checkpoint of these SAEs"):
        _train(tmp_path, text, "run", [TOPK])


def test_transcoders_are_stored_with_their_target(tmp_path: Path, text: Path):
    coder = {**TOPK, "name": "coder", "sites": ["mlp_in.0"], "targets": ["mlp_out.0"]}
    saes = _train(tmp_path, text, "run", [TOPK, coder])
    assert saes["coder"][Site("mlp_in", 0)].writes == Site("mlp_out", 0)
    _, card = load_sae(tmp_path / "run" / "saes" / "coder" / "mlp_in.0")
    assert (card.site, card.writes) == ("mlp_in.0", "mlp_out.0")


def test_what_one_trainee_does_never_changes_another(tmp_path: Path, text: Path):
    alone = _train(tmp_path, text, "alone", [TOPK])["topk"]
    wild = {**TOPK, "name": "wild", "k": 8, "expansion": 4}
    together = _train(tmp_path, text, "together", [TOPK, STAIRS, wild])["topk"]
    for site, sae in alone.items():
        assert torch.equal(sae.W_enc, together[site].W_enc)
        assert torch.equal(sae.b_dec, together[site].b_dec)


def test_training_lowers_the_error(tmp_path: Path, text: Path):
    lm = tiny_lm()
    short = _train(tmp_path, text, "short", [TOPK, STAIRS], tokens=100, lr=1e-2)
    long = _train(tmp_path, text, "long", [TOPK, STAIRS], tokens=40_000, lr=1e-2)
    for name, group in long.items():
        for site, sae in group.items():
            acts = lm.activations(_prompts(), [site])[site]
            before, after = ((acts - s.decode(s.encode(acts))).square().mean() for s in (short[name][site], sae))
            assert after < 0.8 * before, (name, site)


def test_the_schedule():
    config = TrainConfig(saes=[TOPK], **{**SMALL, "tokens": 10_000})
    rates = [learning_rate(config, step) for step in range(101)]
    assert max(rates) == rates[3] == pytest.approx(config.lr)
    assert rates[-1] == pytest.approx(config.min_lr)


RUN = """
import sys; from pathlib import Path; import torch; torch.set_num_threads(1)
from scalar_sae.training import loop; loop.CHECKPOINT_SECONDS = 0.0
import tests.training.test_training as t
t._train(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], [t.TOPK, t.STAIRS, *t.STATEFUL], tokens=5_000)
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, text: Path):
    command = [sys.executable, "-c", RUN, str(tmp_path), str(text)]
    subprocess.run([*command, "whole"], check=True, capture_output=True)
    killed = subprocess.Popen([*command, "killed"], stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed" / "checkpoint.pt").exists():
        assert killed.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not list((tmp_path / "killed").rglob("sae.json"))
    subprocess.run([*command, "killed"], check=True, capture_output=True)
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors"))
    assert len(files) == 10
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()
    assert not (tmp_path / "killed" / "checkpoint.pt").exists()


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid(name: str):
    validated(TrainConfig, read_preset(name)["train"], "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokns": 5}, "unknown train field 'tokns'.*did you mean 'tokens'"),
        ({"saes": [{**TOPK, "method": "topkk"}]}, "unknown method 'topkk'.*did you mean 'topk'"),
        ({"saes": [{**TOPK, "kk": 3}]}, r"unknown train field 'saes.0.topk.kk'.*did you mean 'saes.0.topk.k'"),
        (
            {"saes": [{"method": "relu", "sites": ["resid_mid.0"], "sparsity": {"weight": 1, "warmpu": 0}}]},
            r"unknown train field 'saes.0.relu.sparsity.warmpu'.*did you mean 'saes.0.relu.sparsity.warmup'",
        ),
        ({"saes": [TOPK, TOPK]}, "not all different"),
        ({"tokens": 50}, "less than one batch"),
        ({"lr": -1}, "lr: Input should be greater than 0"),
    ],
)
def test_a_bad_config_is_one_line_that_names_the_field(change: dict, message: str):
    with pytest.raises(UserError, match=message) as error:
        validated(TrainConfig, {**SMALL, "saes": [TOPK], **change}, "train")
    assert "\n" not in str(error.value)


def test_presets_that_are_not_there(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        read_preset("quikstart")
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"trian": {}}))
    with pytest.raises(UserError, match="expected the sections train: and score:"):
        read_preset(str(tmp_path / "bad.yaml"))


def test_bad_activations_stop_the_run(tmp_path: Path, text: Path):
    config = TrainConfig(corpus=str(text), saes=[TOPK], **SMALL)
    lm = tiny_lm()
    lm.hf.transformer.h[1].mlp.c_proj.bias.fill_(float("nan"))
    with pytest.raises(UserError, match=r"resid_post.1: activations are not finite at step 0"):
        train(config, lm, load_corpus(str(text)), tmp_path / "run", Events(None))
    assert not list(tmp_path.rglob("sae.json"))
