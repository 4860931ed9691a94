"""Progress at a terminal and in a log."""

import io
import re
import threading
import time

import pytest

from scalar_sae import console
from scalar_sae.console import Bar, duration, say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, columns: int, stream: io.StringIO) -> io.StringIO:
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return stream


def test_a_log_has_lines_with_stage_share_rate_and_time_left(monkeypatch: pytest.MonkeyPatch):
    log = shown(monkeypatch, 80, io.StringIO())
    monkeypatch.setattr(console, "INTERVAL", 0.1)
    with Bar("score", 200) as bar:
        for number in range(10):
            bar.step(10, f"ff_block.{number}")
            time.sleep(0.05)
    lines = log.getvalue().splitlines()
    assert 3 <= len(lines) <= 6
    assert re.fullmatch(r"score: (\d\d|[5-9].0) %, [\d.]+ % a minute, [\d.]+ s left; ff_block.\d", lines[0]), lines
    shares = [float(re.search(r"([\d.]+) %", line)[1]) for line in lines[:-1]]
    assert shares == sorted(shares)
    assert re.fullmatch(r"score: done in [01] s", lines[-1])


def test_a_log_is_not_silent_while_a_step_takes_long(monkeypatch: pytest.MonkeyPatch):
    log = shown(monkeypatch, 80, io.StringIO())
    monkeypatch.setattr(console, "INTERVAL", 0.1)
    threads = threading.active_count()
    with Bar("measure", 4, done=1):
        time.sleep(0.35)
    with Bar("load x"):
        time.sleep(0.15)
    lines = log.getvalue().splitlines()
    assert lines[:2] == ["measure: 25 %, 0.0 % a minute, unknown time left"] * 2
    assert "load x: at it for 0 s" in lines
    assert threading.active_count() == threads


def test_the_estimate_follows_the_recent_rate():
    log = console._Log("train", 1000, 500)  # half was done before
    log._began, start = 0.0, 0.0
    log._past.clear()
    log._past.append((start, 500))
    for beat in range(1, 31):
        log._done = 500 + beat if beat <= 10 else 510 + 10 * (beat - 10)
        line = log._line(30.0 * beat)
    assert line == "train: 71 %, 2.0 % a minute, 14 min left"


def test_a_short_stage_leaves_no_line_in_a_log(monkeypatch: pytest.MonkeyPatch):
    log = shown(monkeypatch, 80, io.StringIO())
    with Bar("score", 2) as bar:
        bar.step(2)
    assert log.getvalue() == ""


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_the_time_left_is_seen_at_a_terminal_of_any_width(monkeypatch: pytest.MonkeyPatch, columns: int):
    terminal = shown(monkeypatch, columns, Terminal())
    with Bar("read some-long-name-of-a-model-in-a-file.gguf", 7) as bar:
        for _ in range(3):
            bar.step(1, "ff_block.12 staircase_jumprelu expected, and more that does not fit in here")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    last = [line for line in re.split(r"[\r\n]+", text) if line.strip()][-1]
    assert len(last) <= columns
    assert re.search(r" 43% (-:--:--|0:00:0\d) left 0:00:0\d", last), last


def test_quiet_leaves_out_progress_and_messages(monkeypatch: pytest.MonkeyPatch):
    for stream in (io.StringIO(), Terminal()):
        shown(monkeypatch, 80, stream)
        monkeypatch.setattr(console, "INTERVAL", 0.01)
        console.set_quiet(True)
        try:
            with Bar("score", 2) as bar:
                bar.step()
                time.sleep(0.05)
            say("a remark")
        finally:
            console.set_quiet(False)
        assert stream.getvalue() == ""


def test_times_in_words():
    seconds = (0.4, 89, 100, 3500, 12_000, 200_000)
    assert [*map(duration, seconds)] == ["0 s", "89 s", "2 min", "58 min", "3 h 20 min", "2 days 8 h"]
