"""A wrong option is said before a language model is loaded, however long that would take."""

import socket
from pathlib import Path

import pytest

from scalar_sae.lm import model
from tests.cli.test_verbs import arguments
from tests.test_study import scalar

BLIND = "blind"

WRONG: list[tuple[str, list[str], str]] = [
    ("quickstart", ["--set", "tokenz=1"], "unknown train field 'tokenz'"),
    ("quickstart", ["--set", "corpus=/no/such"], "unknown corpus '/no/such'"),
    ("quickstart", ["--dtype", "float8"], "dtype"),
    ("quickstart", ["--special", "bos"], "bos"),
    ("quickstart", ["--set", "score.promts=1"], "unknown score field 'promts'"),
    ("quickstart", ["--set", "prompts=1"], "write --set score.prompts=VALUE"),
    ("quickstart", ["--device", "abacus"], "abacus"),
    ("train", ["--log", "paper"], "paper"),
    ("train", ["--set", "dtype=float8"], "dtype"),
    ("train-lm", ["--recipe", "large"], "unknown recipe 'large'"),
    ("train-lm", ["--set", "lr=-1"], "lr"),
    ("train-lm", ["--data", "/no/such"], "/no/such"),
    *((verb, ["--tokens", "/no/such"], "unknown corpus '/no/such'") for verb in ("score", "circuit", "measure")),
    *((verb, ["--tokens", "/no/such"], "unknown corpus '/no/such'") for verb in ("features", BLIND)),
    *((verb, ["--lm", "/no/such"], "unknown language model '/no/such'") for verb in ("score", "circuit", "measure")),
    *((verb, ["--lm", "/no/such"], "unknown language model '/no/such'") for verb in ("features", BLIND)),
    *((verb, ["--dtype", "float8"], "unknown dtype 'float8'") for verb in ("score", "circuit", "measure", BLIND)),
    *((verb, ["--dtype", "float8"], "unknown dtype 'float8'") for verb in ("features", "judge")),
    *((verb, ["--special", "bos"], "bos") for verb in ("score", "circuit", "measure", "features", BLIND)),
    *((verb, ["--method", "tpok"], "unknown method 'tpok'") for verb in ("score", "circuit", "features")),
    *((verb, ["--ranking", "magic"], "'magic'") for verb in ("score", "circuit")),
    *((verb, ["--edges", "some"], "unknown edge grid 'some'") for verb in ("score", "circuit")),
    *((verb, ["--device", "abacus"], "abacus") for verb in ("score", "circuit", "measure")),
    *((verb, ["--memory", "0"], "memory") for verb in ("score", "circuit")),
    ("score", ["--block", "ff.0"], "ff.0"),
    ("score", ["--ablation", "knife"], "ablation"),
    ("score", ["--control", "none"], "control"),
    ("score", ["--saes", "/no/such"], "/no/such: no such file or folder"),
    ("circuit", ["--sites", "resid_pre.0,resid_post.0"], "at least two pairs"),
    ("circuit", ["--sites", "resid_pre.0,mlp_out.0,resid_post.0"], "runs along the residual stream"),
    ("circuit", ["--one-order", "--ranking", "leave_one_out_with_prior"], "one order for all pairs"),
    ("measure", ["--labels", "colours"], "unknown labels 'colours'"),
    ("measure", ["--against", "/no/such"], "/no/such: no such file or folder"),
    ("features", ["--edges", "magic"], "unknown ranking 'magic'"),
    ("judge", ["--model", "/no/such"], "unknown language model '/no/such'"),
    (BLIND, ["--rater", "a/b"], "--rater 'a/b'"),
]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(model, "load_hf", load)


def given(verb: str, run: Path, tmp_path: Path, preset: Path, text: Path) -> list[str | Path]:
    sae = run / "saes" / "topk" / "resid_post.0"
    words = [verb, sae, sae] if verb == BLIND else arguments(verb, run, tmp_path, preset, text)
    if verb in ("quickstart", "train"):
        words[-1] = tmp_path / "new"
    if verb == "judge":
        words += ["--model", "python-stdlib"]
    return [*words, "--out", tmp_path / "out"] if verb in ("score", "circuit", "measure", "features", BLIND) else words


@pytest.mark.parametrize(("verb", "wrong", "said"), WRONG, ids=[" ".join([verb, *wrong]) for verb, wrong, _ in WRONG])
def test_a_wrong_option_is_said_before_a_model_is_loaded(
    verb: str, wrong: list[str], said: str, finished_run: Path, tmp_path: Path, preset: Path, text: Path, no_model: None
):
    done = scalar(*given(verb, finished_run, tmp_path, preset, text), *wrong, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(finished_run: Path, tmp_path: Path, no_model: None):
    sae = finished_run / "saes" / "topk" / "resid_post.0"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = scalar("blind", sae, sae, "--out", tmp_path / "out", "--port", port, check=False)
    assert done.stderr == f"scalar: --port {port}: Address already in use; choose another\n"


def test_tables_that_are_not_there_are_said_before_a_judge_is_loaded(
    finished_run: Path, tmp_path: Path, no_model: None
):
    done = scalar("judge", tmp_path / "none", "--model", finished_run / "lm", check=False)
    assert (done.returncode, "no feature tables here" in done.stderr) == (2, True), done.stderr


def test_formats_and_repositories_are_checked_before_saes_are_read(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def find(*_: object) -> None:
        raise AssertionError("SAEs were read")

    monkeypatch.setattr("scalar_sae.saes.store.find_saes", find)
    for words, said in (
        (["export", finished_run, "--out", tmp_path / "x", "--format", "onnx"], "unknown format 'onnx'"),
        (["export", finished_run, "--out", tmp_path / "x", "--site", "middle"], "middle"),
        (["push", finished_run, "not a name"], "not a name"),
    ):
        done = scalar(*words, check=False)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
