"""Memory and descriptors of a long scoring and a long training: what the last hour holds is what the first one held.

Both run in a process of their own with the settings of the command line. Memory is the least that is resident in each
window, since buffers come and go.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from scalar_sae.scoring import metrics
from scalar_sae.scoring.intervals import resamples
from tests.forks import Forks

MIB = 2**20
PRELUDE = """
import json, os, torch
from pathlib import Path
from scalar_sae.malloc import keep_freed_memory
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.toy import toy_gpt
keep_freed_memory()
torch.manual_seed(0)
lm, trace = LanguageModel(toy_gpt(), "toy"), []

def look(*_, **__):
    pages = int(open("/proc/self/statm").read().split()[1])
    trace.append([pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))])
"""
SCORING = """
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.texts import Texts
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.score import score
from scalar_sae.sites import Block
from tests.helpers import random_sae

pair = Pair(lm, Block.parse("ff_block.1"), *(random_sae(lm.d_model, 512, 10, seed) for seed in (1, 2)))
tokens = torch.randint(0, 128, (44, 128), generator=torch.Generator().manual_seed(0))
config = ScoreConfig(ranking="leave_one_out", rank_prompts=4, prompts=40, context=128, edges="coarse")
score(pair, Texts(tokens[:4], tokens[4:], {}), config, on_progress=look, partial=Path("partial"))
print(json.dumps(trace[-40:]))
"""
TRAINING = """
from scalar_sae.corpora import Corpus
from scalar_sae.io import Events
from scalar_sae.training import loop
from scalar_sae.training.config import TrainConfig, validated

loop.CHECKPOINT_SECONDS = 0.2
tokens = torch.randint(0, 128, (60_000,), generator=torch.Generator().manual_seed(0))
saes = [{"method": "topk", "sites": ["resid_mid.0", "resid_post.1"], "k": 10, "expansion": 8},
        {"method": "staircase", "along": "ff_blocks", "k": 10, "expansion": 4}]
config = validated(TrainConfig, {"tokens": 80_000, "batch_tokens": 256, "buffer_tokens": 8192, "context": 128,
    "corpus": "x", "saes": saes}, "train")
loop.Bar.step = look
text = Corpus("x", tokens[:50_000], tokens[50_000:], lm.tokenizer.fingerprint)
loop.train(config, lm, text, Path("run"), Events(Path("events.jsonl")))
print(json.dumps(trace))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("program", [SCORING, TRAINING], ids=["scoring", "training"])
def test_memory_and_descriptors_stay_what_they_are(program: str, tmp_path: Path, forks: Forks):
    trace = np.array(json.loads(forks.run(PRELUDE + program, cwd=tmp_path).splitlines()[-1]))
    resident, descriptors = trace[len(trace) // 5 :].T
    first, *_, last = np.array_split(resident, 4)
    assert last.min() - first.min() < 40 * MIB
    assert descriptors.max() == descriptors.min()


def test_the_bootstrap_of_many_prompts_holds_one_count_at_a_time():
    """Means over resamples against their definition, and what they hold at the most."""
    import tracemalloc

    rng = np.random.default_rng(0)
    curve, draws = rng.random((30, 500)), resamples(500, 0)
    tracemalloc.start()
    found = metrics.over_prompts(curve, np.full(500, 128.0), draws)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 5 * draws.size * 8
    for resample in (0, 17, 999):
        np.testing.assert_allclose(found[:, resample], [np.mean(row[draws[resample]]) for row in curve])
