"""What a cluster's log shows of a verb: every stage that can take long has a name, and no verb is silent."""

import io
import re
import time
from pathlib import Path
from typing import Any

import pytest

from scalar_sae import console
from scalar_sae.console import Bar
from scalar_sae.errors import UserError
from scalar_sae.lm import gguf, loading
from scalar_sae.saes import hub, store
from tests.test_console import Terminal, shown
from tests.test_study import scalar


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that a log could name, in the order in which they began."""
    found: list[str] = []
    enter = console.Beat.enter

    def noted(self: Any, stage: Any) -> None:
        found.append("user" if stage is None else stage._what)
        enter(self, stage)

    monkeypatch.setattr(console.Beat, "enter", noted)
    return found


def test_a_study_names_its_stages(stages: list[str], preset: Path, text: Path, tmp_path: Path):
    scalar("quickstart", "--preset", preset, "--out", tmp_path / "run")
    assert stages == [
        "scalar quickstart", "load python-stdlib", "check the sizes of what is to be scored", f"tokenize {text.name}",
        "check what is to be trained", f"load {tmp_path / 'run' / 'lm'}", "train SAEs", f"tokenize {text.name}",
        "measure SAEs", "score", "prepare scalar explore", f"load {tmp_path / 'run' / 'lm'}", f"tokenize {text.name}",
    ]  # fmt: skip


def test_documents_are_tokenized_with_progress(stages: list[str], run: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "the quick brown fox jumps over the lazy dog"}\n' * 400)
    scalar("measure", run, "--tokens", rows, "--prompts", "64", "--context", "16", "--out", tmp_path / "out")
    assert "tokenize rows.jsonl" in stages


def test_downloads_and_uploads_have_names(stages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def gone(*_: object, **__: object) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(hub, "snapshot_download", gone)
    monkeypatch.setattr(loading, "hf_hub_download", gone)
    monkeypatch.setattr(hub.HfApi, "create_repo", gone)
    for work in (
        lambda: hub.local("hf://owner/saes"),
        lambda: hub.upload(tmp_path, "owner/saes", False),
        lambda: loading.locate("owner/model", {}),
    ):
        with pytest.raises(UserError, match="no connection"):
            work()
    assert stages == ["download hf://owner/saes", "upload to owner/saes", "download config.json of owner/model"]


def test_reading_a_gguf_file_has_names(stages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SCALAR_SAE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="cannot be read as a GGUF file"):
        gguf.unpacked(tmp_path / "x.gguf", with_tokenizer=True)
    assert stages == ["look for x.gguf in the cache", "read fields and tokenizer of x.gguf"]


def test_a_verb_is_not_silent_in_a_stage_without_a_name(run: Path, monkeypatch: pytest.MonkeyPatch):
    find = store.find_saes

    def slow(path: str | Path) -> Any:
        time.sleep(0.5)
        return find(path)

    monkeypatch.setattr(console, "INTERVAL", 0.1)
    monkeypatch.setattr(store, "find_saes", slow)
    assert "scalar ls: at it for 0 s" in scalar("ls", run).stderr
    assert scalar("ls", run, "--quiet").stderr == ""


def test_the_innermost_stage_speaks_and_many_short_ones_are_not_silent(monkeypatch: pytest.MonkeyPatch):
    log = shown(monkeypatch, 80, io.StringIO())
    monkeypatch.setattr(console, "INTERVAL", 0.1)
    with Bar("scalar pull"):
        time.sleep(0.15)
        for number in range(8):
            with Bar(f"write {number}"):
                time.sleep(0.05)
    lines = log.getvalue().splitlines()
    assert lines[0] == "scalar pull: at it for 0 s"
    assert [line for line in lines if re.fullmatch(r"write \d: at it for 0 s", line)], lines
    assert lines[-1] == "scalar pull: done in 1 s"
    assert len(lines) >= 4


def test_nothing_is_said_while_the_user_is_the_one_at_work(monkeypatch: pytest.MonkeyPatch):
    log = shown(monkeypatch, 80, io.StringIO())
    monkeypatch.setattr(console, "INTERVAL", 0.02)
    with Bar("scalar blind"), console.waiting_for_user():
        time.sleep(0.1)
        log.truncate(0)  # a line before the user's turn
        time.sleep(0.2)
        assert log.getvalue() == ""


def test_a_stage_for_logs_and_a_stage_within_a_stage_are_not_drawn_at_a_terminal(monkeypatch: pytest.MonkeyPatch):
    terminal = shown(monkeypatch, 80, Terminal())
    with console.in_log("download x"):
        pass
    assert terminal.getvalue() == ""
    with Bar("outer", 2) as outer, Bar("inner", 2) as inner:
        inner.step()
        outer.step()
    assert "outer" in terminal.getvalue()
    assert "inner" not in terminal.getvalue()
    with Bar("next", 2):
        pass
    assert "next" in terminal.getvalue()
