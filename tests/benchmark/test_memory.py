"""What ranking takes, measured in a process of its own, against what the package says."""

import subprocess
import sys
from pathlib import Path

import pytest

MEASURED = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch; torch.set_num_threads(1)
from scalar_sae.benchmark.memory import SUM_BYTES, WORKSPACE
from scalar_sae.benchmark.ranking import rank
from tests.helpers import tiny_pair

def resident(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))

pair, room = tiny_pair("ff_block.0", n_up=2**17, n_down=64), 2**26
before = resident("VmRSS")
rank(pair, torch.arange(32).view(2, 16), "published", 0, room=room)
print(resident("VmHWM") - before, WORKSPACE + 4 * pair.n_edges + room * SUM_BYTES // 8)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_published_ranking_stays_within_what_a_budget_counts_for_it():
    """All 64 latents at once would take a gigabyte: [latent, token, n_up] twice."""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", MEASURED, root], capture_output=True, text=True, check=True)
    taken, allowed = map(int, done.stdout.split()[-2:])
    assert taken < allowed
