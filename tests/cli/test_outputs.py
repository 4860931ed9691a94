"""Every verb checks first whether it can write, and names an option that it has."""

import errno
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from scalar_sae.errors import UserError
from scalar_sae.evaluation.features import judges
from scalar_sae.io import check_writable
from scalar_sae.lm import model
from scalar_sae.saes import hub, store
from tests.cli.test_verbs import READ, SCORED, arguments
from tests.test_study import scalar

OUTPUTS = {
    "quickstart": ["--out"],
    "train": ["--out", "--cache"],
    "train-lm": ["--out"],
    "report": ["--out"],
    "score": ["--out"],
    "circuit": ["--out"],
    "measure": ["--out"],
    "features": ["--out"],
    "blind": ["--out"],
    "export": ["--out"],
    "pull": ["--out"],
}
"""The options of each verb that name an output."""
FILES = ("report", "score", "circuit")
"""Verbs whose output is one file."""


def words(verb: str, option: str, run: Path, preset: Path, tmp_path: Path) -> list[str | Path]:
    """What is needed beside an output."""
    sae = run / "saes" / "topk" / "resid_post.0"
    needed: dict[str, list[str | Path]] = {
        "quickstart": ["--preset", preset],
        "train": [preset] if option == "--out" else [preset, "--out", tmp_path / "other"],
        "train-lm": [],
        "report": [run],
        "score": ["--saes", run, "--block", "ff_block.0"],
        "circuit": ["--saes", run, "--sites", "resid_pre.0,resid_mid.0,resid_post.0"],
        "measure": [run],
        "features": [run],
        "blind": [sae, sae],
        "export": [run],
        "pull": [str(run)],
    }
    return [verb, *needed[verb]]


def options_of(verb: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", scalar(verb, "--help").stdout))


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded before outputs are checked."""

    def work(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(model, "load_hf", work)
    monkeypatch.setattr(store, "find_saes", work)
    monkeypatch.setattr("scalar_sae.lm.train.load_texts", work)
    monkeypatch.setattr("scalar_sae.study.load_corpus", work)
    monkeypatch.setattr("scalar_sae.report.page.render", work)


def refused(path: Path, verb: str, option: str, *others: str | Path) -> str:
    """What a verb says of an output that cannot be written."""
    done = scalar(*others, option, path, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert str(path)[:60] in done.stderr
    assert re.findall(r"(?<![\w-])--[a-z][a-z-]*", done.stderr) == [option], done.stderr
    assert option in options_of(verb)
    return done.stderr


PLACES = ["below a file", "in /proc", "a long name", "of another kind", "a device", "below a device"]


@pytest.mark.parametrize("verb", OUTPUTS)
@pytest.mark.parametrize("place", PLACES)
def test_an_output_that_cannot_be_written_is_found_before_any_work(
    verb: str, place: str, finished_run: Path, preset: Path, tmp_path: Path, no_work: None
):
    (tmp_path / "file").touch()
    path = {
        "below a file": tmp_path / "file" / "sub" / "x",
        "in /proc": Path("/proc/nowhere/x"),
        "a long name": tmp_path / ("x" * 300),
        "of another kind": tmp_path if verb in FILES else tmp_path / "file",
        "a device": Path("/dev/full"),
        "below a device": Path("/dev/null/x"),
    }[place]
    for option in OUTPUTS[verb]:
        refused(path, verb, option, *words(verb, option, finished_run, preset, tmp_path))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("verb", OUTPUTS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_what_the_system_says_of_an_output_is_said_before_any_work(
    verb: str,
    number: int,
    finished_run: Path,
    preset: Path,
    tmp_path: Path,
    no_work: None,
    monkeypatch: pytest.MonkeyPatch,
):
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", fails)
    for option in OUTPUTS[verb]:
        if (verb, option) == ("train", "--cache"):  # its --out is refused first
            continue
        said = refused(tmp_path / "x", verb, option, *words(verb, option, finished_run, preset, tmp_path))
        assert f"cannot be written ({os.strerror(number)}); free space or choose another {option}" in said


@pytest.mark.parametrize("name", ["saes", "lm", "results.json", "report.html", "events.jsonl", "checkpoint.pt"])
def test_something_else_in_the_place_of_a_runs_file_or_folder_is_found_before_any_work(
    name: str, run: Path, preset: Path, no_work: None
):
    there = run / name
    shutil.rmtree(there) if there.is_dir() else there.unlink(missing_ok=True)
    there.touch() if name in ("saes", "lm") else there.mkdir()
    for verb in (["quickstart", "--preset", preset], ["train", preset]):
        done = scalar(*verb, "--out", run, check=False)
        kinds = "no folder, and a folder" if name in ("saes", "lm") else "a folder or a device, and a file"
        assert done.stderr == f"scalar: {there}: is {kinds} is to be written there; choose another --out\n"


def test_a_run_with_another_config_is_refused_before_any_work(run: Path, preset: Path, no_work: None):
    for verb in (["quickstart", "--preset", preset], ["train", preset]):
        done = scalar(*verb, "--out", run, "--set", "seed=7", check=False)
        assert "already holds another run (train.seed: 0 here, 7 asked); choose another --out" in done.stderr


def test_records_that_are_damaged_or_of_other_saes_are_found_before_any_work(
    run: Path, preset: Path, tmp_path: Path, no_work: None
):
    (tmp_path / "settings.json").write_text('{"saes": "/others"}')
    for verb in ("measure", "features"):
        assert "holds other tables (saes: /others here" in scalar(verb, run, "--out", tmp_path, check=False).stderr
    (run / "results.json").write_text("{")
    judge = ["judge", run / "features" / "topk" / "resid_post.0", "--model", "python-stdlib"]
    for verb in (["quickstart", "--preset", preset, "--out", run], ["measure", run], ["features", run], judge):
        done = scalar(*verb, check=False)
        assert done.returncode == 2
        assert str(run / "results.json") in done.stderr


def test_a_partial_folder_that_cannot_be_made_is_found_before_any_work(
    finished_run: Path, preset: Path, tmp_path: Path, no_work: None
):
    (tmp_path / "x.json.partial").touch()
    for verb in ("score", "circuit"):
        done = scalar(*words(verb, "--out", finished_run, preset, tmp_path), "--out", tmp_path / "x.json", check=False)
        assert "x.json.partial: is no folder, and a folder is to be written there" in done.stderr


def test_tables_that_cannot_be_written_are_found_before_a_judge_is_loaded(
    run: Path, no_work: None, monkeypatch: pytest.MonkeyPatch
):
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    folder = run / "features" / "topk" / "resid_post.0"
    monkeypatch.setattr(Path, "write_bytes", read_only)
    done = scalar("judge", folder, "--model", "python-stdlib", check=False)
    assert done.stderr == (
        f"scalar: {folder}: cannot be written (Read-only file system); free space or choose another folder, such as a "
        "copy of this one\n"
    )


VERBS = [*(verb for verb in OUTPUTS if verb != "blind"), "judge", "push", "blind"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_becomes_full_is_one_line_that_names_options_of_the_verb(
    verb: str, run: Path, tmp_path: Path, preset: Path, text: Path, monkeypatch: pytest.MonkeyPatch
):
    def judge(*_: object) -> judges.Judge:
        return judges.Judge(str.upper, "m")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sae = run / "saes" / "topk" / "resid_post.0"
    if verb == "push":
        given = ["push", run, "me/saes"]
    elif verb == "blind":
        given = ["blind", sae, sae, "--tokens", text, "--prompts", "8", "--pairs", "2", "--out", tmp_path / "blind"]
    else:
        given = arguments(verb, run, tmp_path, preset, text)
    if verb in ("train", "quickstart"):
        given[-1] = tmp_path / "new"
    if verb in ("score", "circuit"):
        given += ["--out", tmp_path / "out.json"]
    if verb == "judge":
        given += ["--model", "m"]
        monkeypatch.setattr(judges, "local", judge)
    monkeypatch.setattr(hub, "upload", full)
    monkeypatch.setattr(os, "fsync", full)
    done = scalar(*given, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1][:8]) == (2, "scalar: "), done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.search(r"(No space left on device)", last), last
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", last)) <= options_of(verb)
    assert not list(tmp_path.rglob(".*.partial"))


def test_saes_that_cannot_be_written_are_read(run: Path, tmp_path: Path, text: Path):
    for path in [*run.rglob("*"), run]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    before = {path: path.stat().st_mtime_ns for path in [run, *run.rglob("*")]}
    on = ("--tokens", text)
    scalar("ls", run)
    scalar("compare", run)
    scalar("report", run, "--out", tmp_path / "page.html")
    scalar("score", "--saes", run, "--block", "ff_block.0", *SCORED, *on)
    scalar("measure", run, "--out", tmp_path / "records", *READ, *on)
    scalar("features", run, "--out", tmp_path / "tables", "--method", "topk", "--edges", "none", *READ, *on)
    scalar("export", run, "--out", tmp_path / "exported")
    assert {path: path.stat().st_mtime_ns for path in [run, *run.rglob("*")]} == before
    for path in before:
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_checking_leaves_nothing_behind(tmp_path: Path):
    check_writable(tmp_path / "a" / "b" / "file.json")
    check_writable(tmp_path / "a" / "b", folder=True)
    check_writable(tmp_path, folder=True)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_found(tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match=r"x: cannot be written \(File too large\); free space"):
            check_writable(tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="needs the right to become another user")
def test_a_folder_of_another_user_is_found(tmp_path: Path):
    (tmp_path / "theirs").mkdir(mode=0o755)
    code = (
        "import os, sys; from pathlib import Path; from scalar_sae.io import check_writable\n"
        "os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
        "check_writable(Path(sys.argv[1]))"
    )
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "theirs" / "x")], capture_output=True, text=True)
    assert "cannot be written (Permission denied); free space or choose another --out" in done.stderr
