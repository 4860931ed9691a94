"""A process that has imported everything and forks for each command, so that one costs what its work costs.

The other side is `Warm`. Requests and replies are lines of JSON. A child has its own current folder, standard streams,
folder for temporary files and limits of time and memory; a fault of `faults.py` may be put into it.
"""

import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
CPU_SECONDS = 15
"""That a command may compute; one that computes without end is ended by the system."""
IDLE_SECONDS = 10.0
"""That a command may sleep; the time that a busy machine gives to others does not count."""
MEMORY = 8 * 2**30
"""Bytes of address space that a command may take beside what the warm process has."""


@dataclass(frozen=True)
class Command:
    """A command, and how it is run."""

    argv: list[str]
    cwd: str
    scratch: str
    """Folder for its streams and temporary files; not in `cwd`."""
    fault: list[Any] = field(default_factory=list)
    """Name of a function of `faults.py` and its arguments."""
    stdout: str = ""
    """`closed`, `full`, or a file."""
    kill_after: float | None = None
    """Seconds after which it is killed."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Exit code, or minus the signal."""
    out: str
    err: str
    seconds: float
    timed_out: bool
    files: list[str]
    """What is left in the folder for temporary files."""
    report: str
    """The traceback that a command put into a file there."""


class Warm:
    """A warm process, from the outside."""

    def __init__(self) -> None:
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
            "COLUMNS": "300", "TERM": "dumb", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        for name in ("OPENAI_API_KEY", "HF_TOKEN", "SCALAR_SAE_CACHE"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request and wait for its reply."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError("the warm process has ended")
        return json.loads(line)

    def build(self, folder: Path, judge: str) -> None:
        """Make the fixtures of `world.py`; `judge` is the address of a server that answers as a judge does."""
        self.ask({"build": str(folder), "judge": judge})

    def run(self, command: Command) -> Ended:
        """Run a command in a child."""
        return Ended(**self.ask(asdict(command)))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def _serve() -> None:
    """The process itself."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    requests = os.fdopen(os.dup(0), "r")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    from tests.robustness.corpus.world import build

    for line in requests:
        request = json.loads(line)
        if "build" in request:
            build(Path(request["build"]), request["judge"])
            gc.collect()
            gc.freeze()
            reply: Any = {}
        else:
            reply = asdict(_run(Command(**request)))
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _run(command: Command) -> Ended:
    scratch = Path(command.scratch)
    files = scratch / "tmp"
    files.mkdir(parents=True)
    for name in ("out", "err"):
        (scratch / name).touch()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _child(command, scratch, files)
        finally:
            os._exit(code)
    status, timed_out = _ended(child, start, command.kill_after)
    seconds = time.monotonic() - start
    left = sorted(path.name for path in files.iterdir())
    report = "".join(path.read_text() for path in files.glob("scalar-sae-*.txt"))
    out, err = ((scratch / name).read_text(errors="replace") for name in ("out", "err"))
    return Ended(os.waitstatus_to_exitcode(status), out, err, seconds, timed_out, left, report)


def _ended(child: int, start: float, kill_after: float | None) -> tuple[int, bool]:
    """The status of a child; whether it had to be killed because it slept or computed without end."""
    number, asleep_since = os.pidfd_open(child), start
    try:
        while True:
            wait = 0.5 if kill_after is None else max(0.0, start + kill_after - time.monotonic())
            ready, _, _ = select.select([number], [], [], wait)
            if not ready and kill_after is None and _sleeps(child):
                if time.monotonic() - asleep_since < IDLE_SECONDS:
                    continue
            elif not ready and kill_after is None:
                asleep_since = time.monotonic()
                continue
            if not ready:
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            hung = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
            return status, hung or (not ready and kill_after is None)
    finally:
        os.close(number)


def _sleeps(process: int) -> bool:
    """Whether no thread of a process computes or waits for a disk."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{process}/task").glob("*/stat")]
    return set(states) == {"S"}


def _child(command: Command, scratch: Path, files: Path) -> int:
    """Become the command."""
    os.chdir(command.cwd)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(scratch / name, os.O_WRONLY), number)
    if command.stdout == "closed":
        os.close(1)
    elif command.stdout == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    os.environ["TMPDIR"] = tempfile.tempdir = str(files)
    soft = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout = None if command.stdout == "closed" else open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    if command.fault:
        from tests.robustness.corpus import faults

        make: Callable[..., None] = getattr(faults, command.fault[0])
        make(*command.fault[1:])
    return scalar(*command.argv)


def scalar(*arguments: str) -> int:
    """The command line, to its exit code."""
    from scalar_sae.cli import main

    sys.argv = ["scalar", *arguments]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    return code


if __name__ == "__main__":
    _serve()
