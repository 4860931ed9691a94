"""The tests that take a device, there."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.section import Found, Where

ROOT = Path(__file__).parents[2]
FILES = ("tests/scoring/test_devices.py", "tests/evaluation/test_fidelity.py", "tests/training/test_devices.py")


def run(where: Where) -> Iterator[Found]:
    """Passed and failed tests; the first lines of what failed are in the log."""
    chosen = ["-k", "device and (published or fidelity)"] if where.small else ["-k", "device"]
    options = ["-p", "no:cacheprovider", "-p", "no:benchmark", "--numprocesses", "auto", "-rf"]
    pytest = [sys.executable, "-m", "pytest", "--device", where.device, *options, *chosen]
    done = subprocess.run([*pytest, *FILES], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)}
    if not counts:
        raise RuntimeError("no test ran")
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    yield counts | {f"failed: {name}": 1 for name in failed}
