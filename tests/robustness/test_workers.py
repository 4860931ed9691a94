"""Workers that would wait forever end instead, and say whom they waited for."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scalar_sae.watch import APART, BEAT, SILENT, Beat, Seen, verdict

HERE = Beat("here", os.getpid())


def seen(
    operation: int,
    waits_in: str = "",
    host: str = "here",
    heard: int | float = 1000,
    since: int | float = 0,
    **more: bool,
) -> Seen:
    beat = Beat(host, os.getpid(), operation=operation, waits_in=waits_in, ended=more.get("ended", False))
    return Seen(beat, float(heard), float(since), more.get("gone", False))


@pytest.mark.parametrize(
    ("mine", "other", "said"),
    [
        (seen(3), seen(3), None),
        (seen(3, "a sum"), seen(2), None),
        (seen(3, "a sum"), seen(3, "a sum"), None),
        (seen(3, "a sum"), seen(2, ended=True), r"worker 1 \(process \d+ on here\) has ended, .*worker 0 .*\(a sum\)"),
        (seen(3, "a sum", since=1000 - BEAT), seen(2, ended=True), None),
        (seen(3, "a sum"), seen(3, ended=True), None),
        (seen(3), seen(2, ended=True), None),
        (seen(3), seen(2, gone=True), r"worker 1 \(.*\) has died"),
        (seen(3), seen(2, ended=True, gone=True), None),
        (seen(3), seen(2, heard=0), None),
        (seen(3), seen(2, host="there", heard=1000 - SILENT + 1), None),
        (seen(3), seen(2, host="there", heard=1000 - SILENT - 1), r"worker 1 \(.* on there\) has died"),
        (seen(3), seen(2, host="there", heard=0, ended=True), None),
        (seen(3, "a sum"), seen(2, "a meeting"), "worker 0 in a sum, worker 1 in a meeting.*not see the same files"),
        (seen(3, "a sum"), seen(3, "a meeting"), "different things"),
        (seen(3, "a sum"), seen(2, "a meeting", since=1000 - APART + 1), None),
        (seen(3, "a sum"), None, None),
    ],
)
def test_what_makes_a_worker_end(mine: Seen, other: Seen | None, said: str | None):
    import re

    found = verdict(0, [mine, other], 1000.0)
    assert (found is None) if said is None else (found is not None and re.search(said, found)), found


def test_a_worker_is_heard_when_it_says_anything_and_is_still_while_it_does_the_same():
    one = Seen(Beat("here", 1, number=1, operation=2), 0.0, 0.0)
    again = one.then(Beat("here", 1, number=1, operation=2), 5.0)
    assert (again.heard, again.since) == (0, 0)
    again = one.then(Beat("here", 1, number=2, operation=2), 5.0)
    assert (again.heard, again.since) == (5, 0)
    again = one.then(Beat("here", 1, number=3, operation=3, waits_in="a sum"), 9.0)
    assert (again.heard, again.since) == (9, 9)


SCRIPT = """
import os, signal, sys, time
import torch; torch.set_num_threads(1)
from scalar_sae import watch, distributed
watch.BEAT, watch.APART = float(sys.argv[2]), 2.0
distributed.init()
distributed.barrier()
first, how = distributed.rank() == 0, sys.argv[1]
if how == "leaves" and not first:
    sys.exit(0)
if how == "agrees":
    watch.APART = 60.0
    distributed.check_agreement("results.json", distributed.broadcast_from_first(lambda: [1, 2]))
    print("the same")
    sys.exit(0)
if how == "differs":
    from scalar_sae.cli.ending import ended
    sys.exit(ended(lambda: distributed.check_agreement("results.json", distributed.rank())))
if how == "other" and first:
    distributed.all_sum(torch.zeros(3))
    distributed.all_sum(torch.zeros(3))
distributed.barrier()
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("leaves", "worker 1 (process "),
        ("other", "has ended, and worker 0 waits for it|wait for different things"),
        ("differs", "results.json: worker 1 on "),
    ],
)
def test_a_job_ends_when_one_of_its_workers_does_something_else(tmp_path: Path, how: str, said: str):
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    begun = time.monotonic()
    done = subprocess.run([*TORCHRUN, str(script), how, "0.3"], capture_output=True, text=True, timeout=120)
    assert time.monotonic() - begun < 100
    assert done.returncode != 0
    assert any(part in done.stderr for part in said.split("|")), done.stderr


def test_workers_that_see_the_same_go_on_and_end_well_while_they_report(tmp_path: Path):
    """Both report all the time, so that each ends in the middle of a report of its own and of a look at the other."""
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    done = subprocess.run([*TORCHRUN, str(script), "agrees", "0.0001"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.count("the same")) == (0, 2), done.stderr
