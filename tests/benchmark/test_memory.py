"""What ranking takes, measured in a process of its own, against what the package says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scalar_sae.benchmark import memory, promptwise, tokenwise
from scalar_sae.benchmark.edges import GlobalEdges
from scalar_sae.benchmark.order import levels
from scalar_sae.benchmark.pair import read
from scalar_sae.benchmark.readout import Readout
from tests.helpers import tiny_pair

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


SWEPT = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np, torch; torch.set_num_threads(1)
from scalar_sae.benchmark import memory
from scalar_sae.benchmark.edges import GlobalEdges
from scalar_sae.benchmark.order import levels
from scalar_sae.benchmark.pair import read
from scalar_sae.benchmark.subcircuits import sweep
from tests.helpers import tiny_pair

def resident(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))

n_down = 60_000
pair = tiny_pair("ff_block.0", n_down=n_down, k=20)
(prompt,) = read(pair, torch.arange(16).view(1, 16))
counts = np.linspace(0, pair.n_edges, 40).astype(np.int64)
edges = GlobalEdges(levels(torch.rand(24, n_down), counts, 0))
before = resident("VmRSS")
for sub in sweep(pair, prompt, edges, len(counts)):
    pass
changes = memory.CHANGE_BYTES * 16 * 21 * n_down
print(resident("VmHWM") - before, memory._sweep(pair, 16, len(counts)) - memory.WORKSPACE, changes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_sweep_stays_within_what_a_budget_counts_for_it():
    """Random levels: most slots that are used change their latents. Without the changes it would be short."""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", SWEPT, root], capture_output=True, text=True, check=True)
    taken, counted, changes = map(int, done.stdout.split()[-3:])
    assert counted - changes < taken < counted


@pytest.mark.parametrize("block", ["ff_block.0", "transformer_block.0"])
def test_a_budget_counts_every_change_of_a_sweep(block: str):
    pair, n_counts = tiny_pair(block, n_down=200, k=2), 40
    (prompt,) = read(pair, torch.arange(16).view(1, 16))
    counts = np.linspace(0, pair.n_edges, n_counts).astype(np.int64)
    edges = GlobalEdges(levels(torch.rand(24, 200, generator=torch.Generator().manual_seed(0)), counts, 0))
    how = promptwise if pair.block.mixes_tokens else tokenwise
    held = sum(len(change.place) for change in how.updates(pair, Readout.of(pair), prompt, edges, n_counts))
    counted = memory._sweep(pair, 16, n_counts) - memory._sweep(pair, 16, 0)
    assert 0.3 * counted < held * memory.CHANGE_BYTES <= counted
