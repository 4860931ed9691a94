"""Every verb where jobs run: output into a file, an ASCII locale, a user whom the machine does not know.

Each environment is one process that runs all verbs, since a process takes seconds to import torch.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from scalar_sae.evaluation.features.blind import Answers, FeaturePair, Pairs
from tests.cli.conftest import PRESET
from tests.cli.test_verbs import READ, SCORED, letters
from tests.evaluation.test_judge import server

NOBODY = 4242
"""A user whom nothing knows."""
NOBODY_WHO_READS = (
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
)  # fmt: skip
"""A command's beginning: as that user, who can read everything (Python may lie in another user's home)."""
CHAIN = """
import json, sys
from scalar_sae.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["scalar", *words]
    print("==", words[0])
    try:
        main()
    except SystemExit as end:
        if end.code:
            sys.exit(f"{words}: {end.code}")
"""
SITES = "resid_pre.0,resid_mid.0,resid_post.0"
LM = ("steps=1", "d_model=8", "n_layers=1", "batch_size=2")
VERBS = {
    "train-lm", "quickstart", "train", "score", "circuit", "compare", "measure", "features", "judge", "blind",
    "report", "ls", "export", "pull",
}  # fmt: skip


@pytest.fixture
def place(finished_run: Path) -> Iterator[Path]:
    """A folder that everybody can write: a text with letters outside ASCII, a preset, a run that only its owner can."""
    folder = Path(tempfile.mkdtemp(prefix="scalar-sae-test-"))
    folder.chmod(0o777)
    text = folder / "text.txt"
    text.write_text("the quick brown fox jümps over ☃ a lazy dog (1 + 2) = 3;\n" * 600, encoding="utf-8")
    (folder / "small.yaml").write_text(yaml.safe_dump({**PRESET, "train": {"corpus": str(text), **PRESET["train"]}}))
    shutil.copytree(finished_run, folder / "theirs")
    (folder / "blind").mkdir(mode=0o755)
    pairs = Pairs(names={"a": "one", "b": "other"}, pairs=[FeaturePair(a=0, b=1, left="a")])
    (folder / "blind" / "pairs.json").write_text(pairs.model_dump_json())
    Answers(folder / "blind", "ann", 1).add(0, "right", 1.0)
    yield folder
    shutil.rmtree(folder)


def chain(url: str) -> list[list[str]]:
    """A small job of every verb; what is read belongs to somebody else."""
    on, theirs = ["--tokens", "text.txt"], "theirs"
    return [
        ["train-lm", "--out", "lm", *(word for one in (*LM, "corpus=text.txt") for word in ("--set", one))],
        ["quickstart", "--preset", "small.yaml", "--out", "mine"],
        ["train", "--resume", "--out", "mine"],
        ["score", "--saes", theirs, "--block", "ff_block.0", *SCORED, *on, "--out", "score.json"],
        ["circuit", "--saes", theirs, "--sites", SITES, *SCORED, *on, "--out", "circuit.json"],
        ["compare", theirs],
        ["measure", theirs, *READ, *on, "--out", "records"],
        ["features", theirs, *READ, *on, "--method", "topk", "--edges", "none", "--out", "tables"],
        ["judge", "tables/topk/resid_post.0", "--latents", "1", "--url", url, "--model", "m"],
        ["blind", "--out", "blind", "--summary"],
        ["report", theirs, "--out", "page.html"],
        ["ls", theirs],
        ["export", theirs, "--out", "exported"],
        ["pull", theirs, "--out", "pulled"],
    ]


def ran(place: Path, env: dict[str, str], *before_python: str) -> tuple[str, str]:
    """What all verbs write into the files of standard output and of errors."""
    before = {path: path.stat().st_mtime_ns for path in (place / "theirs").rglob("*")}
    out, err = (place / name for name in ("out.txt", "err.txt"))
    with (
        server(letters) as (url, _),
        out.open("wb") as output,
        err.open("wb") as errors,
    ):
        words = chain(url)
        done = subprocess.run(
            [*before_python, sys.executable, "-c", CHAIN, json.dumps(words)],
            stdout=output,
            stderr=errors,
            cwd=place,
            env=env,
            check=False,
        )
    said = err.read_bytes().decode()
    assert done.returncode == 0, said
    assert {path: path.stat().st_mtime_ns for path in (place / "theirs").rglob("*")} == before
    assert not list(place.rglob("*.partial"))
    assert {word[0] for word in words} == VERBS
    for name in ("mine/report.html", "page.html", "tables/topk/resid_post.0/page/index.html", "exported", "pulled"):
        assert (place / name).exists(), name
    return out.read_bytes().decode(), said


def test_an_ascii_locale_ends_no_verb(place: Path):
    ascii_only = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "LC_CTYPE")}
    out, err = ran(place, env | ascii_only)
    assert out.isascii()
    assert err.isascii()
    assert "☃" in (place / "text.txt").read_text(encoding="utf-8")


def can_become_nobody() -> bool:
    """Whether this is root on a system with setpriv and capabilities."""
    if not hasattr(os, "getuid") or os.getuid() != 0 or shutil.which("setpriv") is None:
        return False
    return subprocess.run([*NOBODY_WHO_READS, sys.executable, "-c", ""]).returncode == 0


def test_a_user_without_name_and_home_writes_plain_and_whole_output_into_files(place: Path):
    """Where nobody can become that user, the output alone is looked at."""
    before_python = NOBODY_WHO_READS if can_become_nobody() else ()
    kept = ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if before_python else tuple(os.environ)
    env = {name: os.environ[name] for name in kept if name in os.environ}
    out, err = ran(place, env | {"TMPDIR": str(place), "TERM": "xterm-256color", "COLUMNS": "40"}, *before_python)
    for text in (out, err):
        assert "\x1b" not in text
        assert "\r" not in text
    assert "…" not in out  # columns are as wide as what they hold
    assert out.count("\nText: ") >= 5
    assert not (place / "~").exists()
    if before_python:
        assert (place / "mine" / "results.json").stat().st_uid == NOBODY
