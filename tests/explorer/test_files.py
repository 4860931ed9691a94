"""What a page shows before the language model is loaded: answers that the run directory keeps, and cards."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from scalar_sae.errors import UserError
from scalar_sae.explorer import files
from scalar_sae.explorer.app import Explorer, prepare
from scalar_sae.explorer.files import Kept
from scalar_sae.explorer.subject import Subject
from scalar_sae.report.cards import Cards
from tests.explorer.subjects import KEY, RANKING, small_subject

ABOUT = {"pair": KEY, "ranking": RANKING}
CARD = {"pair": KEY, "end": "up", "latent": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def subject(run: Path) -> Subject:
    return small_subject(run)


@pytest.fixture(scope="module")
def answers(run: Path, subject: Subject) -> dict[str, Any]:
    """The engine's answers, which the run keeps."""
    explorer = Explorer(lambda: subject, Kept(run))
    explorer.subject.result()
    return {
        name: explorer.answer(name, body) for name, body in (("run", {}), ("map", ABOUT), ("card", CARD))
    }  # fmt: skip


def test_pairs_map_and_cards_are_there_before_the_model_and_equal_the_engines_answers(
    run: Path, subject: Subject, answers: dict[str, Any]
):
    loaded = threading.Event()

    def load() -> Subject:
        assert loaded.wait(60)
        return subject

    explorer = Explorer(load, Kept(run))
    early = {name: explorer.answer(name, body) for name, body in (("run", {}), ("map", ABOUT), ("card", CARD))}
    assert not explorer.subject.done()
    assert early == json.loads(json.dumps(answers)) | {"card": answers["card"]}
    assert answers["map"]["edges"]
    assert answers["card"] == Cards.read(run / "features" / "m" / "resid_mid.0").card(3)
    with pytest.raises(UserError, match="24 latents"):
        explorer.answer("card", CARD | {"latent": 24})

    async def lines(name: str, body: Any) -> list[Any]:
        said: list[Any] = []
        async for line in explorer.lines(name, body):
            said.append(json.loads(line))
            if "loading" in said[-1]:
                loaded.set()
        return said

    assert asyncio.run(lines("map", ABOUT)) == [{"answer": early["map"]}]
    said = asyncio.run(lines("tokens", {**ABOUT, "text": "def"}))  # a question to the model waits and says so
    assert said == [{"loading": True}, {"progress": 0}, {"answer": {"tokens": ["d", "e", "f"], "special": [0, 0, 0]}}]


def found(kept: Kept, question: str) -> Any:
    """The answer that a server finds that starts now."""
    return kept.find(question, kept.state())


def _rewrite(path: Path) -> None:
    """Another file of the same size."""
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "an SAE of the same size": lambda run: _rewrite(run / "saes" / "m" / "sae.safetensors"),
    "a record more": lambda run: (run / "results.json").write_text("{} "),
    "a table less": lambda run: (run / "features" / "m" / "latents.parquet").unlink(),
    "a file more": lambda run: (run / "saes" / "m" / "more.json").write_text(""),
    "an SAE under another name": lambda run: (run / "saes" / "m").rename(run / "saes" / "n"),
    "a link to a folder": lambda run: (run / "saes" / "linked").symlink_to(run / "saes" / "m"),
    "a damaged answer": lambda run: next(run.glob("explorer/answers/*")).write_text('{"question": "map {}"'),
}


@pytest.mark.parametrize("changed", CHANGES)
def test_an_answer_is_not_used_once_something_that_it_depends_on_has_changed(changed: str, tmp_path: Path):
    for name in ("saes/m/sae.safetensors", "results.json", "features/m/latents.parquet", "explorer/judge.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    kept = Kept(tmp_path)
    kept.keep("map {}", {"edges": [1]}, kept.state())
    (tmp_path / "explorer" / "judge.jsonl").write_text("what the explorer writes itself changes no answer")
    assert found(Kept(tmp_path), "map {}") == {"edges": [1]}
    assert found(Kept(tmp_path), "run {}") is None
    CHANGES[changed](tmp_path)
    assert found(Kept(tmp_path), "map {}") is None


def test_files_that_no_answer_depends_on_change_none_but_the_runs_name_does(tmp_path: Path):
    run = tmp_path / "run"
    (run / "saes").mkdir(parents=True)
    (run / "results.json").write_text("{}")
    kept = Kept(run)
    kept.keep("run {}", {"name": "run"}, kept.state())
    for name in ("report.html", "events.jsonl", "notes.txt", ".lock", "saes/x.lock", "results.json.partial"):
        (run / name).write_text("")
    assert found(Kept(run), "run {}") == {"name": "run"}
    assert found(Kept(run.rename(tmp_path / "other")), "run {}") is None


@pytest.mark.parametrize(
    ("error", "said"), [(RuntimeError("out of\nmemory"), "out of memory"), (KeyboardInterrupt(), "interrupted")]
)
def test_what_keeps_a_page_from_being_prepared_is_said_and_ends_nothing(
    error: BaseException, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "lm").mkdir()
    (tmp_path / "config.yaml").write_text("")
    monkeypatch.setattr("scalar_sae.explore.run.load_run", mock.Mock(side_effect=error))
    prepare(tmp_path)
    err = capsys.readouterr().err
    assert f"scalar explore is not prepared: {said}" in err
    assert "Traceback" not in err


def test_an_answer_of_another_command_another_package_or_files_that_changed_meanwhile_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "results.json").write_text("{}")
    kept = Kept(tmp_path, ["a judge"])
    before = kept.state()
    kept.keep("run {}", {"judge": "a judge"}, before)
    assert found(kept, "run {}") == {"judge": "a judge"}
    assert found(Kept(tmp_path, ["another judge"]), "run {}") is None
    with monkeypatch.context() as newer:
        newer.setattr(files, "_package", lambda: [("explorer/app.py", 1, 2, 3)])
        assert found(kept, "run {}") is None
    (tmp_path / "results.json").write_text("{ }")
    kept.keep("run {}", {"judge": "worked out from the files before"}, before)
    assert found(kept, "run {}") is None


def test_a_run_that_cannot_be_written_is_explored_without_keeping_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "explorer").write_text("a file where the folder belongs")
    kept = Kept(tmp_path)
    kept.keep("run {}", {}, kept.state())
    assert found(kept, "run {}") is None
    assert "answers are not kept" in capsys.readouterr().err


def test_cards_are_read_anew_when_their_tables_are_written_anew(tmp_path: Path):
    subject = small_subject(tmp_path)
    folder = tmp_path / "features" / "m" / "resid_mid.0"
    width = subject.pairs[KEY].sae("up").d_sae
    before = files.cards_of(tmp_path, "m", "resid_mid.0", width)
    assert before is files.cards_of(tmp_path, "m", "resid_mid.0", width)
    line = {"latent": 3, "explanation": "now", "detection": 0.5, "fuzzing": None, "judge": {"model": "m"}}
    (folder / "judged.jsonl").write_text(json.dumps(line) + "\n")
    again = files.cards_of(tmp_path, "m", "resid_mid.0", width)
    assert before is not None
    assert again is not None
    assert (before.card(3)["judged"], again.card(3)["judged"][0]["explanation"]) == ([], "now")
    (folder / "latents.parquet").unlink()
    assert files.cards_of(tmp_path, "m", "resid_mid.0", width) is None


EARLY = """
import sys
from pathlib import Path
from scalar_sae.explorer.app import Explorer
from scalar_sae.explorer.files import Kept, cards_of
run = Path(sys.argv[1])
cards = cards_of(run, "m", "resid_mid.0", 24)
assert cards.card(3) and cards.labels([1, 2])
kept = Kept(run)
assert kept.find("run {}", kept.state())["pairs"]
print(*sys.modules)
"""


def test_neither_pytorch_nor_pandas_is_imported_for_what_is_shown_early(run: Path, answers: dict[str, Any]):
    assert answers["run"]["pairs"]
    code = [sys.executable, "-c", EARLY, str(run)]
    there = set(subprocess.run(code, capture_output=True, text=True, check=True).stdout.split())
    assert "pyarrow" in there
    assert not there & {"torch", "transformers", "pandas", "pyarrow.dataset", "scipy"}
