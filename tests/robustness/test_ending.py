"""How a command ends: one line and an exit code, whatever happens to it."""

import errno
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch

from scalar_sae.cli.ending import ended
from scalar_sae.cli.tables import PlainTable, show
from scalar_sae.console import Bar, say, tell
from scalar_sae.errors import UserError
from tests.test_study import scalar


@pytest.fixture(autouse=True)
def _tracebacks_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


NASTY = "a\nb\x1b[31m[/b]:smile:\udcff"
SHOWN = r"a\nb\x1b[31m[/b]:smile:\udcff"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "No such command 'nope'"),
        (["score", "--seed", "abc"], "--seed 'abc': "),
        (["score", "--prompts=0"], "--prompts '0': "),
        (["score", "--prompts", "-1"], "--prompts '-1': "),
        (["score", "--nope", "1"], "--nope"),
        (["score"], "--saes"),
        (["report", NASTY], SHOWN.replace("\\", r"\\").replace("[", r"\[")),
        (["report", "n" * 300], "n: |name too long"),
        (["ls", "n" * 300], "name too long"),
        (["measure", "n" * 300], "name too long"),
        (["train", "quickstart", "--out", "n" * 300], "name too long"),
        (["train", "--set", "a", "quickstart", "--out", "x"], "--set a: expected FIELD=VALUE"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_that_names_the_value(arguments: list[str], said: str):
    done = scalar(*arguments, check=False)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(rf"scalar: [^\n]*(?i:{said})[^\n]*\n", done.stderr), done.stderr
    assert done.stdout == ""


def failing(error: BaseException) -> tuple[int, str]:
    with mock.patch.object(sys, "stderr", io.StringIO()) as said:

        def work() -> None:
            raise error

        return ended(work), said.getvalue()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("x: wrong; mend it"), 2, "x: wrong; mend it"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "f"), 2, "f: File name too long; check .*"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "the system: No space left on device; .*"),
        (PermissionError(errno.EACCES, "Permission denied", b"a\xff\n"), 2, r"a\\udcff\\n: Permission denied; .*"),
        (MemoryError("of 3 TiB"), 2, r"not enough memory \(of 3 TiB\); lower .*"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "not enough memory .*"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "not enough memory .*"),
        (KeyboardInterrupt(), 130, "stopped; .*"),
        (ZeroDivisionError("division\nby zero"), 70, "ZeroDivisionError: division by zero; .*please report it with .*"),
    ],
)
def test_every_exception_ends_in_one_line(error: BaseException, code: int, said: str):
    found, line = failing(error)
    assert found == code
    assert re.fullmatch(rf"scalar: {said}\n", line), line


def test_the_traceback_of_what_nobody_foresaw_is_in_a_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret-of-mine")
    _, line = failing(KeyError("a-secret-of-mine"))
    path = Path(line.split()[-1])
    text = path.read_text()
    path.unlink()
    assert "Traceback" in text
    assert "a-secret-of-mine" not in text + line


def test_an_exit_code_is_passed_on():
    assert failing(SystemExit(143)) == (143, "")
    assert ended(lambda: 3) == 3
    assert ended(lambda: None) == 0


class Gone(io.StringIO):
    """A stream that nobody reads, or that has no room."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def write(self, text: str) -> int:
        raise OSError(self._number, os.strerror(self._number))


@pytest.mark.parametrize(("number", "code"), [(errno.EPIPE, 0), (errno.ENOSPC, 2)])
def test_work_goes_on_when_its_output_cannot_be_written(number: int, code: int):
    done: list[str] = []

    def work() -> None:
        tell("one")
        done.append("more work")
        tell("two")

    with mock.patch.object(sys, "stdout", Gone(number)), mock.patch.object(sys, "stderr", io.StringIO()) as said:
        assert ended(work) == code
    assert done == ["more work"]
    assert said.getvalue().count("\n") == int(code != 0)


SCALAR = "import sys; sys.argv = ['scalar', '--version']\nfrom scalar_sae.cli import main\nmain()"


@pytest.mark.parametrize("where", ["closed", "full", "nobody"])
def test_a_real_stream_that_is_closed_full_or_not_read(where: str):
    if where == "full" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    redirect = {"closed": ">&-", "full": ">/dev/full", "nobody": "| true"}[where]
    command = f'set -o pipefail; "$0" -c "$1" {redirect}'
    done = subprocess.run(["bash", "-c", command, sys.executable, SCALAR], capture_output=True, text=True)
    assert done.returncode == (2 if where == "full" else 0), done.stderr
    assert done.stderr.count("\n") == int(where == "full")


def test_names_are_shown_as_they_are_in_tables_bars_and_messages(capsys: pytest.CaptureFixture[str]):
    table = PlainTable(f"of {NASTY}")
    table.add_column("name", no_wrap=True)
    table.add_row(NASTY)
    show(table)
    tell(NASTY)
    out = capsys.readouterr().out
    assert out.count(SHOWN) == 3
    assert not re.search(r"[^\S\n]*[\x00-\x09\x0b-\x1f]", out)
    say(NASTY)
    assert SHOWN in capsys.readouterr().err
    with Bar(NASTY, 2) as bar:
        bar.step(note=NASTY)
    assert "Traceback" not in capsys.readouterr().err


def test_an_encoding_without_the_letters_ends_no_command(tmp_path: Path):
    script = "import sys\nfrom scalar_sae.cli.ending import ended\nfrom scalar_sae.console import tell\n"
    script += "sys.exit(ended(lambda: tell('Träning – \u65e5')))"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=env, check=True)
    assert done.stdout == b"Tr\\xe4ning \\u2013 \\u65e5\n"
