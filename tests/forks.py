"""Programs that run in processes of their own and need not import the package anew.

A process that starts imports for three seconds. Here one process imports, and forks for every program.
"""

import atexit
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    """Exit code, or minus the signal."""
    out: str
    err: str


class Forks:
    """The process that forks, from the outside. It computes with one thread; its types are not checked."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ends(self, program: str, *arguments: object, cwd: Path = ROOT, n_workers: int = 1) -> list[Ended]:
        """Run a program, or as many workers of it as torchrun would start. If one fails, the others are ended.

        Args:
            program: Python code.
            arguments: of the program, in `sys.argv[1:]`.
            cwd: the current folder of the program.
            n_workers: number of processes.
        """
        store, variables = None, dict[str, str]()
        if n_workers > 1:
            from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]  # documented

            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun does
            variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
            variables |= {"WORLD_SIZE": str(n_workers), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        with tempfile.TemporaryDirectory(prefix="scalar-fork-") as folder:
            streams = [(Path(folder) / f"{rank}.out", Path(folder) / f"{rank}.err") for rank in range(n_workers)]
            request = {
                "program": program, "argv": ["-c", *map(str, arguments)], "cwd": str(cwd), "variables": variables,
                "streams": [[str(path) for path in paths] for paths in streams],
            }  # fmt: skip
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            codes = json.loads(self._process.stdout.readline())
            ends = [
                Ended(code, out.read_text(), err.read_text()) for code, (out, err) in zip(codes, streams, strict=True)
            ]
        del store
        return ends

    def run(self, program: str, *arguments: object, cwd: Path = ROOT, n_workers: int = 1) -> str:
        """Run a program that must succeed; what its first worker writes to standard output."""
        ends = self.ends(program, *arguments, cwd=cwd, n_workers=n_workers)
        assert all(end.code == 0 for end in ends), "\n".join(end.err for end in ends)
        return ends[0].out

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _serve() -> None:
    """The process itself: what programs need is imported, lazy modules of the libraries too."""
    replies, requests = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(0), "r")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    import torch

    for name in ("cli", "study", "training.loop"):
        import_module(f"scalar_sae.{name}")
    from tests.helpers import tiny_lm

    torch.set_num_threads(1)
    tiny_lm()
    gc.collect()
    gc.freeze()
    for line in requests:
        request = json.loads(line)
        children = {_fork(request, rank): rank for rank in range(len(request["streams"]))}
        codes = [0] * len(children)
        while children:
            child, status = os.wait()
            code = os.waitstatus_to_exitcode(status)
            codes[children.pop(child)] = code
            for other in children if code else ():
                os.kill(other, signal.SIGTERM)
        replies.write(json.dumps(codes) + "\n")
        replies.flush()


def _fork(request: dict[str, Any], rank: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for number, path in zip((1, 2), request["streams"][rank], strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        os.chdir(request["cwd"])
        os.environ |= request["variables"] | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        sys.argv, sys.stdout, sys.stderr = request["argv"], open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        exec(compile(request["program"], "program", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]  # of a worker's watch
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
