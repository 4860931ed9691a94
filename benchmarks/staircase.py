"""`python -m benchmarks.staircase`: a transformer block between Staircase SAEs of 2,048 and 2,560 latents, whole.

The last block of the shipped model. Its Staircase is trained first, as the `rankings` preset does it. Edges are ranked
by `leave_one_out_with_prior`, the default, and swept over all 5.24e6 edges, as `scalar score` does. It prints
seconds, CPU seconds (with one thread they do not count what others do on the machine), and peak memory.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import whole
from scalar_sae.corpora import Corpus, load_corpus
from scalar_sae.io import Events
from scalar_sae.lm.model import LanguageModel
from scalar_sae.malloc import keep_freed_memory
from scalar_sae.saes.store import load_saes
from scalar_sae.scoring.config import ScoreConfig, counts_of, held_out
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.rankings.registry import rank
from scalar_sae.scoring.sweep.edges import GlobalEdges
from scalar_sae.sites import Block
from scalar_sae.training.config import TrainConfig, read_preset
from scalar_sae.training.loop import train

RANKING = "leave_one_out_with_prior"


def staircase_pair(lm: LanguageModel, corpus: Corpus, **changes: Any) -> Pair:
    """The two widest SAEs of a Staircase along the residual stream, and the block between them.

    `changes`: fields of the training in place of the preset's.
    """
    preset = read_preset("rankings")["train"] | changes
    config = TrainConfig(**preset | {"saes": [{"method": "staircase", "along": "residual_stream"}]})
    with tempfile.TemporaryDirectory() as folder:
        train(config, lm, corpus, Path(folder), Events(None))
        saes = {site: sae.to(lm.device) for site, sae in load_saes(folder)["staircase"].items()}
        return Pair.between(lm, Block.parse(f"transformer_block.{lm.n_layers - 1}"), saes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--rank-prompts", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    lm = LanguageModel.load("python-stdlib")
    corpus = load_corpus("python-stdlib", lm)
    texts = held_out(corpus, ScoreConfig(ranking=RANKING, rank_prompts=given.rank_prompts, prompts=given.prompts))
    pair = staircase_pair(lm, corpus)
    counts = counts_of("full", pair.n_edges)
    times = [(time.perf_counter(), time.process_time())]
    with torch.no_grad():
        keep_index = keep_indices(rank(pair, texts.ranking, RANKING, 0), counts, 0)
        times.append((time.perf_counter(), time.process_time()))
        whole(pair, GlobalEdges(keep_index), len(counts), texts.scoring)
        times.append((time.perf_counter(), time.process_time()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    shape = f"{pair.up.d_sae:,} x {pair.down.d_sae:,} latents, {len(counts)} counts, prompts of 128"
    table = Table(title=f"{pair.block}, {shape}, {given.threads} threads, peak {peak:.1f} GiB")
    for column in ("seconds", f"{RANKING}, {given.rank_prompts} prompts", f"sweep, {given.prompts} prompts", "both"):
        table.add_column(column, justify="right")
    for name, (start, ranked, swept) in zip(("wall clock", "CPU"), zip(*times, strict=True), strict=True):
        table.add_row(name, f"{ranked - start:.0f}", f"{swept - ranked:.0f}", f"{swept - start:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
