"""Tiny fixtures of every kind of file, made by the commands themselves, and the commands that read them."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml

from tests.robustness.corpus.warm import scalar

PEERS = Path(__file__).resolve().parents[2] / "saes" / "formats" / "peers"
SITES = ["resid_pre.0", "resid_mid.0", "resid_post.0"]
TRAIN = {
    "lm": "lm", "tokens": 512, "batch_tokens": 128, "buffer_tokens": 256, "context": 32,
    "warmup_steps": 1, "validations": 0,
    "saes": [{"method": "topk", "sites": SITES, "expansion": 2, "k": 2},
             {"method": "topk", "name": "wide", "sites": SITES, "expansion": 3, "k": 2}],
}  # fmt: skip
SCORE = {"rankings": {"leave_one_out_with_prior": 1}, "prompts": 2, "context": 16, "edges": "1,16", "controls": []}
LM = ("steps=4", "warmup_steps=1", "eval_every=2", "batch_size=2", "context=32", "d_model=8", "n_layers=2", "n_heads=2")
ON = ("--tokens", "text.txt", "--context", "16")


def sets(*assignments: str) -> list[str]:
    """Arguments `--set`."""
    return [word for assignment in assignments for word in ("--set", assignment)]


LM_JOB = ["train-lm", *sets("corpus=text.txt", *LM), "--out", "lmstopped"]
SCORE_JOB = ["score", "--saes", "run", "--block", "ff_block.0", *ON, "--prompts", "2", "--rank-prompts", "1",
             "--edges", "1,16"]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A command that succeeds in seconds on files that are not damaged."""

    argv: list[str]
    needs: tuple[str, ...]
    """What it reads, of the world."""
    writes: tuple[str, ...] = ()
    """Beginnings of the paths that it makes or changes."""
    keeps: tuple[str, ...] = ()
    """Beginnings of the paths that it may leave when it fails in the middle, since it goes on from there."""
    fault: tuple[Any, ...] = ()
    """What keeps it from waiting for a person or a network."""


RUN_WRITES = ("run/results.json", "run/events.jsonl", "run/report.html", "run/explorer/")
JOBS = {
    "report": Job(["report", "run"], ("run",), ("run/report.html",)),
    "compare": Job(["compare", "run"], ("run",)),
    "ls": Job(["ls", "run"], ("run",)),
    "measure": Job(["measure", "run", *ON, "--prompts", "4"], ("run", "text.txt"), ("run/results.json",)),
    "features": Job(["features", "run", "--method", "topk", "--tokens", "TEXT", "--context", "16", "--prompts", "64",
                     "--edges", "none"],
                    ("run",), ("run/results.json", "run/features/topk/", "run/explorer/")),
    "judge": Job(["judge", "run/features/topk/resid_mid.0", "--url", "JUDGE", "--model", "m", "--latents", "2"],
                 ("run",), ("run/results.json", "run/features/topk/resid_mid.0/")),
    "summary": Job(["blind", "--out", "blind", "--summary"], ("blind",)),
    "blind": Job(["blind", "run/saes/topk/resid_mid.0", "run/saes/wide/resid_mid.0", "--out", "blind", "--tokens",
                  "text.txt", "--pairs", "1", "--prompts", "8", "--port", "0"], ("blind", "run", "text.txt"),
                 fault=("nobody_visits",)),
    "explore": Job(["explore", "run", "--port", "0"], ("run",), fault=("nobody_visits",)),
    "export": Job(["export", "run", "--out", "exported", "--method", "topk"], ("run",), ("exported",)),
    "pull": Job(["pull", "run", "--out", "pulled"], ("run",), ("pulled",)),
    "push": Job(["push", "run", "me/mine"], ("run",), fault=("no_hub",)),
    "score": Job([*SCORE_JOB, "--out", "new.json"], ("run", "text.txt"), ("new.json",)),
    "rescore": Job([*SCORE_JOB, "--out", "out.json"], ("run", "text.txt", "out.json.partial"), ("out.json",)),
    "score-saved": Job([*SCORE_JOB, "--method", "topk", "--ranking", "ranking.npy"],
                       ("run", "text.txt", "ranking.npy")),
    "circuit": Job(["circuit", "--saes", "run", "--sites", ",".join(SITES), *ON, "--prompts", "2", "--rank-prompts",
                    "1", "--edges", "1,16"], ("run", "text.txt")),
    "quickstart": Job(["quickstart", "--preset", "small.yaml", "--out", "run"], ("run", "small.yaml", "lm"),
                      RUN_WRITES),
    "train": Job(["train", "small.yaml", "--out", "new"], ("small.yaml", "lm"), ("new",)),
    "train-cached": Job(["train", "small.yaml", "--out", "new", "--cache", "cache"],
                        ("small.yaml", "lm", "cache"), ("new",), ("new",)),
    "resume": Job(["train", "--resume", "--out", "stopped"], ("stopped", "lm"), ("stopped",)),
    "resume-finished": Job(["train", "--resume", "--out", "run"], ("run", "lm"), ("run/events.jsonl",)),
    "train-lm": Job(LM_JOB, ("lmstopped", "text.txt"), ("lmstopped",)),
    "new-lm": Job([*LM_JOB[:-1], "newlm"], ("text.txt",), ("newlm",)),
    "ls-peer": Job(["ls", "peer"], ("peer",)),
    "export-peer": Job(["export", "peer", "--out", "exported", "--format", "scalar"], ("peer",), ("exported",)),
    "ls-dictionary": Job(["ls", "dictionary"], ("dictionary",)),
}  # fmt: skip
HAS_JSON = ("--json", "--quiet")


def argv(words: Sequence[str], world: Path, judge: str) -> list[str]:
    """The words of a command, with the text of the world and the address of the judge; quiet where it can be."""
    known = {"JUDGE": judge, "TEXT": str(world / "text.txt")}
    verb, *others = (known.get(word, word) for word in words)
    return [verb, *others] if verb in ("blind", "explore") else [verb, *HAS_JSON, *others]


def copy(world: Path, job: Job, to: Path) -> None:
    """Put what a job needs into an empty folder."""
    for name in job.needs:
        if (world / name).is_dir():
            shutil.copytree(world / name, to / name)
        else:
            shutil.copyfile(world / name, to / name)


def build(world: Path, judge: str) -> None:
    """Make the fixtures."""
    world.mkdir(parents=True, exist_ok=True)
    os.chdir(world)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "(1", "+", "2)", "=", "3;", "\n"]
    Path("text.txt").write_text(" ".join(random.Random(0).choices(words, k=8000)))
    Path("small.yaml").write_text(
        yaml.safe_dump({"train": {**TRAIN, "corpus": str(world / "text.txt")}, "score": SCORE})
    )
    done("train-lm", "--out", "lm", *sets("corpus=text.txt", *LM))
    done("quickstart", "--preset", "small.yaml", "--out", "run")
    for name in ("features", "judge", "measure"):
        done(*argv(JOBS[name].argv, world, judge))
    Path("run/report.html").unlink()
    from scalar_sae.loopback import LoopbackServer
    from tests.robustness.corpus import faults

    with mock.patch.object(LoopbackServer, "run"):
        faults.nobody_visits()
        done(*JOBS["blind"].argv)
    answers = Path("blind/answers")
    answers.mkdir(exist_ok=True)
    (answers / "me.jsonl").write_text('{"pair":0,"choice":"left","seconds":1.5}\n')
    done("train", "small.yaml", "--out", "cached", "--cache", "cache")
    shutil.rmtree("cached")
    _stopped("train SAEs", 2, signal.SIGTERM, "train", "small.yaml", "--out", "stopped")
    _stopped("train-lm", 3, signal.SIGKILL, *LM_JOB)
    _stopped("score", 2, signal.SIGKILL, *SCORE_JOB, "--out", "out.json")
    np.save("ranking.npy", np.random.default_rng(0).random((16, 16)).astype(np.float32))
    shutil.copytree(PEERS / "saelens" / "topk", "peer")
    shutil.copytree(PEERS / "dictionary_learning" / "AutoEncoderTopK", "dictionary")
    os.chdir("/")


def done(*arguments: str) -> None:
    """Run a command that must succeed, here."""
    code = scalar(*arguments)
    assert code == 0, (code, arguments)


def _stopped(bar: str, steps: int, number: int, *arguments: str) -> None:
    """Run a command in a child that is sent a signal after some steps of a bar."""
    child = os.fork()
    if child == 0:
        from scalar_sae import console

        step: Callable[..., None] = console.Bar.step

        def stopping(self: Any, *given: Any, **named: Any) -> None:
            nonlocal steps
            step(self, *given, **named)
            steps -= self._progress._what == bar  # not of the bar while a text is tokenized
            if steps == 0:
                os.kill(os.getpid(), number)

        with mock.patch.object(console.Bar, "step", stopping):
            os._exit(scalar(*arguments) % 256)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (128 + number, -number), (status, arguments)


def content_of(path: Path) -> Any:
    """The plain values of a JSON or YAML file."""
    text = path.read_text(encoding="utf-8")
    return yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
