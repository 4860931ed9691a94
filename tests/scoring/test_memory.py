"""What ranking and scoring take, measured in a process of its own, against what the package says."""

import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scalar_sae.scoring import memory, score
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.pair import read
from scalar_sae.scoring.rankings import base, effects, registry
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.sweep import per_prompt, per_token
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import GlobalEdges
from scalar_sae.scoring.sweep.subcircuits import sweep
from scalar_sae.scoring.texts import Texts
from tests.forks import Forks
from tests.helpers import tiny_pair

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

BEFORE = """
import ctypes
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from scalar_sae.scoring import curve, memory
from scalar_sae.scoring.conventions import CONVENTIONS
from scalar_sae.scoring.rankings import base, effects, order, registry, shapley
from scalar_sae.scoring.sweep.edges import GlobalEdges
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.pair import read
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.subcircuits import sweep
from scalar_sae.lm import outputs
from scalar_sae.malloc import trim_malloc
from tests.helpers import random_sae, tiny_lm, tiny_pair

for option in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
    assert ctypes.CDLL(None).mallopt(option, 65536)

def resident(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))

def begin():
    trim_malloc()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    return resident("VmRSS")
"""


def measured(forks: Forks, code: str) -> list[int]:
    """The numbers that a process of its own prints.

    Its blocks from 64 KiB on go back to the system when they are freed: what gaps between blocks take differs by a
    sixth from run to run, and is part of WORKSPACE.
    """
    return [int(word) for word in forks.run(BEFORE + code).split()]


PUBLISHED = """
pair, room = tiny_pair("ff_block.0", n_up=2**17, n_down=64), 2**26
before = begin()
registry.rank(pair, torch.arange(32).view(2, 16), "published", 0, room=room)
print(resident("VmHWM") - before, memory.WORKSPACE + 4 * pair.n_edges + room * memory.SUM_BYTES // 8)
"""


@needs_proc
def test_the_published_ranking_stays_within_what_a_budget_counts_for_it(forks: Forks):
    """All 64 latents at once would take a gigabyte: [latent, token, n_up] twice."""
    taken, allowed = measured(forks, PUBLISHED)
    assert taken < allowed


SWEPT = """
n_down = 60_000
pair = tiny_pair("ff_block.0", n_down=n_down, k=20)
(prompt,) = read(pair, torch.arange(16).view(1, 16))
counts = np.linspace(0, pair.n_edges, 40).astype(np.int64)
edges = GlobalEdges(keep_indices(torch.rand(24, n_down), counts, 0))
before = begin()
for sub in sweep(pair, prompt, edges, len(counts)):
    pass
changes = memory.CHANGE_BYTES * 16 * 21 * n_down
print(resident("VmHWM") - before, memory._sweep(pair, 16, len(counts)) - memory.WORKSPACE - memory.PROCESS, changes)
"""


@needs_proc
def test_a_sweep_stays_within_what_a_budget_counts_for_it(forks: Forks):
    """Random keep indices: most active latents change a downstream one. Without the changes it would be short."""
    taken, counted, changes = measured(forks, SWEPT)
    assert counted - changes < taken < counted


ORDERED = """
scores, order._CHUNK = torch.rand(2**11, 2**12), 2**17  # an eighth of what is ordered at a time, and of the workspace
before = begin()
keep_indices(scores, np.array([0, 1000, 1_000_000, scores.numel()]), 0)
print(resident("VmHWM") - before, scores.numel() + memory.WORKSPACE // 8)
"""


@needs_proc
def test_ordering_takes_a_byte_an_edge_and_a_workspace(forks: Forks):
    taken, counted = measured(forks, ORDERED)
    assert taken < counted


BUSY = """
pair = tiny_pair("transformer_block.0")
ends = random_sae(256, 2**15, 4, 0), random_sae(256, 8, 4, 1)
pair = replace(pair, lm=tiny_lm(d_model=256), up=ends[0], down=ends[1])
(prompt,) = read(pair, torch.arange(16).view(1, 16))
z = prompt.z.clone()
z[0] = 1.0
prompt = replace(prompt, z=z, active=pair.active(z, prompt.x_up))
edges = GlobalEdges(keep_indices(torch.rand(2**15, 8), np.array([0, 1000, 100_000]), 0))
before = begin()
for sub in sweep(pair, prompt, edges, 3):
    pass
padded = 2 * 4 * prompt.active.latent.numel() * 256
print(resident("VmHWM") - before, memory._sweep(pair, 16, 3) - memory._always(pair), padded)
"""


@needs_proc
def test_a_token_that_uses_every_latent_does_not_widen_the_others(forks: Forks):
    taken, counted, padded = measured(forks, BUSY)
    assert taken < counted < padded


VOCABULARY = """
d_vocab = 2**19
pair = replace(tiny_pair("ff_block.0"), lm=tiny_lm(d_vocab=d_vocab))
(prompt,) = read(pair, torch.arange(16).view(1, 16))
edges = GlobalEdges(torch.zeros(24, 20).byte())
effects.LABEL_BYTES, outputs.LOGIT_BYTES, outputs.CACHE_BYTES = 1, 2**21, 2**21
before = begin()
WHAT
weights = 4 * 16 * d_vocab  # a product brings the unembedding into another order
print(resident("VmHWM") - before, memory.COUNTED * 16 * d_vocab + weights)
"""
OUTPUTS = {
    "OUTPUT_BYTES": 'curve.measure(pair, prompt, edges, 3, False, CONVENTIONS["published"], Readout.of(pair))',
    "LABEL_BYTES": "effects.fisher(pair, prompt, 4, torch.Generator())",
}


@needs_proc
@pytest.mark.parametrize("bytes_counted", OUTPUTS)
def test_outputs_stay_within_what_a_budget_counts_for_the_vocabulary(forks: Forks, bytes_counted: str):
    """Four labels at once would take more than twice as much, and so would the logits of three sub-circuits."""
    taken, counted = measured(
        forks, VOCABULARY.replace("WHAT", OUTPUTS[bytes_counted]).replace("COUNTED", bytes_counted)
    )
    assert counted / 3 < taken < 1.1 * counted


SHAPLEY = """
pair = tiny_pair("transformer_block.0", n_up=512, n_down=2048, kind="relu")
(prompt,) = read(pair, torch.arange(16).view(1, 16))
total = torch.zeros(512, 2048, dtype=torch.float64)
effects.MEAN_BYTES, shapley.ORDERS = 2**23, 1
before = begin()
shapley.add_shapley(pair, prompt, slice(0, 2048), total, torch.Generator())
print(resident("VmHWM") - before, 2 * 4 * 2048 * effects.AblationUnits.of(pair, prompt).latent.numel())
"""


@needs_proc
def test_shapley_holds_the_means_of_some_latents_at_a_time(forks: Forks):
    """A sixteenth at a time, with what a batch of units takes."""
    taken, whole = measured(forks, SHAPLEY)
    assert taken < whole / 2


@pytest.mark.parametrize("block", ["ff_block.0", "transformer_block.0"])
def test_shapley_is_the_same_to_the_bit_however_many_latents_fit(block: str, monkeypatch: pytest.MonkeyPatch):
    pair, tokens = tiny_pair(block, n_down=200), torch.arange(32).view(2, 16)
    expected = registry.rank(pair, tokens, "shapley", 0)
    (prompt,) = read(pair, tokens[:1])
    monkeypatch.setattr(effects, "MEAN_BYTES", 16 * 70 * effects.AblationUnits.of(pair, prompt).latent.numel())
    assert len(list(effects.narrowed(pair, prompt, slice(0, 200)))) > 1
    assert torch.equal(registry.rank(pair, tokens, "shapley", 0), expected)


@pytest.mark.parametrize("ablation_value", [False, True])
@pytest.mark.parametrize("most", [1, 3])
def test_a_sweep_is_the_same_where_what_active_latents_add_is_not_held(
    most: int, ablation_value: bool, monkeypatch: pytest.MonkeyPatch
):
    pair = tiny_pair("transformer_block.0", kind="jumprelu", ablation_value=ablation_value)
    (prompt,) = read(pair, torch.arange(16).view(1, 16))
    counts = np.linspace(0, pair.n_edges, 6).astype(np.int64)
    edges = GlobalEdges(keep_indices(torch.rand(24, 20, generator=torch.Generator().manual_seed(0)), counts, 0))
    held = [sub.pre_acts.clone() for sub in sweep(pair, prompt, edges, 6)]
    monkeypatch.setattr(per_prompt, "ADD_BYTES", 4 * 16 * most)
    anew = [sub.pre_acts.clone() for sub in sweep(pair, prompt, edges, 6)]
    torch.testing.assert_close(anew, held, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["leave_one_out", "file"])
def test_scores_are_gone_when_the_sweep_begins(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Which is why a budget counts them for ranking and ordering, and one byte an edge for the sweep."""
    held: list[weakref.ref[Tensor]] = []
    ordered, measure = base.keep_indices, score.measure

    def ordering(scores: Tensor, *rest: object) -> Tensor:
        held.append(weakref.ref(scores))
        return ordered(scores, *rest)

    def measuring(*what: object) -> object:
        assert held[0]() is None
        return measure(*what)

    monkeypatch.setattr(base, "keep_indices", ordering)
    monkeypatch.setattr(score, "measure", measuring)
    np.save(tmp_path / "scores.npy", np.random.default_rng(0).random((24, 20), dtype=np.float32))
    which = str(tmp_path / "scores.npy") if name == "file" else name
    tokens = torch.arange(30).view(3, 10)
    config = ScoreConfig(ranking=which, rank_prompts=1, prompts=2, context=10, edges="1,10")
    score.score(tiny_pair("ff_block.0"), Texts(tokens[:1], tokens[1:], {}), config, method="m")
    assert held


def test_scores_and_changes_are_not_counted_together():
    pair, n_token, n_counts = tiny_pair("ff_block.0", n_up=2**13, n_down=2**13), 1000, 60
    scores, changes = 4 * pair.n_edges, memory._sweep(pair, n_token, n_counts)
    assert changes > scores  # the sweep is what takes most
    room = memory.ranking_bytes(pair, (changes + pair.n_edges) / 1e9 + 1e-6, n_token, n_counts, 4)
    assert room > 0


@pytest.mark.parametrize("block", ["ff_block.0", "transformer_block.0"])
def test_a_budget_counts_every_change_of_a_sweep(block: str):
    pair, n_counts = tiny_pair(block, n_down=200, k=2), 40
    (prompt,) = read(pair, torch.arange(16).view(1, 16))
    counts = np.linspace(0, pair.n_edges, n_counts).astype(np.int64)
    edges = GlobalEdges(keep_indices(torch.rand(24, 200, generator=torch.Generator().manual_seed(0)), counts, 0))
    how = per_prompt if pair.block.mixes_tokens else per_token
    held = sum(len(change.flat_index) for change in how.updates(pair, Readout.of(pair), prompt, edges, n_counts))
    counted = memory._sweep(pair, 16, n_counts) - memory._sweep(pair, 16, 0)
    assert 0.3 * counted < held * memory.CHANGE_BYTES <= counted
