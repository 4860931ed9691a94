"""Two processes on one folder: the second is told who is there before anything is asked, paid for or written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.blind import prepare
from scalar_sae.evaluation.features.judge import judge_features
from scalar_sae.evaluation.features.judged import read_judged
from scalar_sae.evaluation.features.judges import Judge
from scalar_sae.locks import held
from scalar_sae.report.features import write_page
from scalar_sae.sites import Site
from tests.evaluation.test_judge import knows
from tests.helpers import tiny_lm, tiny_pair
from tests.robustness.hostile import write_tables
from tests.robustness.test_judge_secrets import tables

__all__ = ["tables"]

HOLDS = (
    "import sys; from pathlib import Path; from scalar_sae.locks import held\n"
    "with held(Path(sys.argv[1]), sys.argv[2]): print('mine', flush=True); sys.stdin.read()"
)


class Other:
    """Another process that holds a folder, or a name in it, until the block ends."""

    def __init__(self, folder: Path, name: str = "") -> None:
        command = [sys.executable, "-c", HOLDS, str(folder), name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> str:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "mine\n"
        return f"in use by process {self._process.pid} on "

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")


def never(question: str) -> str:
    raise AssertionError(question)


def test_two_judges_do_not_both_pay(tables: Path):
    with Other(tables, "judged.jsonl") as said, pytest.raises(UserError, match=rf"judged\.jsonl: {said}[^\n]+; wait"):
        judge_features(tables, Judge(never, "m"), 6)
    judge_features(tables, Judge(knows, "m"), 2)
    assert len(read_judged(tables)) == 2


def test_two_comparisons_are_not_drawn_at_once(tmp_path: Path):
    sae, lm, tokens = tiny_pair("ff_block.0").up, tiny_lm(), torch.randint(0, 32, (4, 16))
    with Other(tmp_path / "blind") as said, pytest.raises(UserError, match=rf"blind: {said}[^\n]+; wait"):
        prepare(tmp_path / "blind", lm, Site("resid_mid", 0), {"a": sae, "b": sae}, {"a": "x", "b": "y"}, tokens, 1)
    assert not list((tmp_path / "blind").glob("[!.]*"))


def test_a_page_is_written_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_tables(tmp_path / "x")
    waits: list[float] = []

    def quick(folder: Path, name: str, wait: float) -> object:
        waits.append(wait)
        return held(folder, name, 0.0)

    monkeypatch.setattr("scalar_sae.report.features.held", quick)
    with Other(tmp_path / "x", "page") as said, pytest.raises(UserError, match=rf"page: {said}"):
        write_page(tmp_path / "x", "x")
    assert waits == [60.0]
    assert write_page(tmp_path / "x", "x").is_file()


def test_a_pipe_in_the_place_of_the_owners_name_holds_nobody(tmp_path: Path):
    os.mkfifo(tmp_path / ".owner")
    with held(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / ".owner").read_text()
    with Other(tmp_path):
        (tmp_path / ".owner").unlink()
        os.mkfifo(tmp_path / ".owner")
        with pytest.raises(UserError, match="in use by another process; wait"), held(tmp_path):
            pass
