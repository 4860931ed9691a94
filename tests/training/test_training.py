"""The stream, the loop, and going on after a kill."""

import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml

from scalar_sae.activations.stream import ActivationStream
from scalar_sae.corpora import load_corpus
from scalar_sae.errors import UserError
from scalar_sae.runs import Events
from scalar_sae.saes.store import load_saes
from scalar_sae.sites import Site
from scalar_sae.training.config import TrainConfig, presets, read_preset, validated
from scalar_sae.training.loop import learning_rate, train
from tests.helpers import tiny_lm

SITES = [Site("resid_mid", 0), Site("resid_post", 1)]
TOPK = {"method": "topk", "sites": ["resid_mid.0", "resid_post.1"], "k": 2, "expansion": 2}
STAIRS = {"method": "staircase", "along": "ff_blocks", "k": 2, "expansion": 2}
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


def _train(tmp_path: Path, text: Path, name: str, saes: list[dict], **changes) -> dict:
    config = validated(TrainConfig, {**SMALL, "corpus": str(text), "saes": saes, **changes}, "train")
    train(config, tiny_lm(), load_corpus(str(text)), tmp_path / name, Events(None))
    return load_saes(tmp_path / name)


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
t._train(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], [t.TOPK, t.STAIRS], tokens=16_000)
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
    assert len(files) == 6
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
    with pytest.raises(UserError, match=r"topk/resid_post.1: the loss is not finite at step 20"):
        train(config, lm, load_corpus(str(text)), tmp_path / "run", Events(None))
    assert not list(tmp_path.rglob("sae.json"))
