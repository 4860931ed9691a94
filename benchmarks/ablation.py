"""`python -m benchmarks.ablation`: what mean ablation costs beside zero ablation, at three shapes, in one run.

A row is one pair: ranking of some prompts and sweep of one prompt at all counts of the full grid, seconds under each
ablation, and their ratio. The SAEs' latents are directions of the model's activations.
"""

import time

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import THREADS, toy_pair
from benchmarks.gpt2_shapes import gpt2_pair
from scalar_sae.corpora import load_corpus, windows
from scalar_sae.lm.model import LanguageModel
from scalar_sae.malloc import keep_freed_memory
from scalar_sae.scoring.ablation import mean_ablated
from scalar_sae.scoring.config import counts_of
from scalar_sae.scoring.pair import Pair, read
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.rankings.registry import rank
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import GlobalEdges
from scalar_sae.scoring.sweep.subcircuits import sweep

RANKED, SWEPT = 8, 3


@torch.no_grad()
def seconds(pair: Pair, tokens: torch.Tensor) -> tuple[float, float]:
    """Of a ranking, and of a sweep of one prompt; the first prompt warms up and is left out."""
    counts, start = counts_of("full", pair.n_edges), time.perf_counter()
    scores = rank(pair, tokens[:RANKED], "leave_one_out_with_prior", 0)
    ranked = time.perf_counter() - start
    edges, readout = GlobalEdges(keep_indices(scores, counts, 0)), Readout.of(pair)
    swept: list[float] = []
    for prompt in read(pair, tokens[RANKED : RANKED + SWEPT]):
        start = time.perf_counter()
        for _ in sweep(pair, prompt, edges, len(counts), readout):
            pass
        swept.append(time.perf_counter() - start)
    return ranked, sum(swept[1:]) / (SWEPT - 1)


def main() -> None:
    torch.set_num_threads(THREADS)
    keep_freed_memory()
    prompts = windows(load_corpus("python-stdlib", LanguageModel.load("python-stdlib")).val, 128)
    pairs = {block: (toy_pair(block, prompts[:64]), prompts[100:]) for block in ("ff_block.1", "transformer_block.1")}
    pairs["ff_block at GPT-2 shapes"] = gpt2_pair((4608, 4608), n_layers=2)
    table = Table(title=f"full grid, {RANKED} prompts ranked, {THREADS} threads")
    for column in ("block", "edges", "ranking: zero (s)", "mean (s)", "ratio", "sweep: zero (s)", "mean (s)", "ratio"):
        table.add_column(column, justify="right")
    for name, (pair, tokens) in pairs.items():
        zero, mean = seconds(pair, tokens), seconds(mean_ablated(pair, tokens[:RANKED]), tokens)
        cells = [cell for a, b in zip(zero, mean, strict=True) for cell in (f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}")]
        table.add_row(name, f"{pair.n_edges:,}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
