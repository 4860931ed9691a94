"""`make bench`: the sweep against the obvious scorer (tests/reference/), in one run, on the shipped toy model.

Prints a table of seconds a prompt and their ratio, with the largest difference between the two.
"""

import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tests.reference import scorer

from scalar_sae.benchmark.pair import Pair, read
from scalar_sae.benchmark.ranking import ablation, levels
from scalar_sae.benchmark.scores import edge_counts
from scalar_sae.benchmark.subcircuits import sweep
from scalar_sae.corpora import load_corpus, windows
from scalar_sae.lm.model import LanguageModel
from scalar_sae.saes.activation import TopK
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Block

THREADS = 2
PROMPTS = 2


def data_sae(x: torch.Tensor, d_sae: int, k: int, seed: int) -> SAE:
    """An SAE whose latents are directions of the data: no training, realistic sparsity."""
    g = torch.Generator().manual_seed(seed)
    rows = x.flatten(0, 1)
    mean = rows.mean(0)
    W_dec = rows[torch.randperm(len(rows), generator=g)[:d_sae]] - mean
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    return SAE(W_dec.T.contiguous(), -mean @ W_dec.T, W_dec, mean, TopK(k))


def compare(block: str) -> tuple[float, float, float]:
    """Seconds a prompt of the sweep and of the obvious scorer, and the largest difference."""
    lm = LanguageModel.load("python-stdlib")
    prompts = windows(load_corpus("python-stdlib").val, 128)
    place = Block.parse(block)
    acts = lm.activations(prompts[:64], [place.up, place.down])
    pair = Pair(lm, place, *(data_sae(acts[site], 512, 10, 0) for site in (place.up, place.down)))
    counts = edge_counts(pair.n_edges)
    level = levels(ablation(pair, read(pair, prompts[64:72]), lambda: None), counts, 0)
    text = read(pair, prompts[100 : 100 + PROMPTS])
    seconds, difference = np.zeros(2), 0.0
    for z in text.z:
        start = time.perf_counter()
        ours = [sub.pre_acts.clone() for sub in sweep(pair, z, level, len(counts))]
        middle = time.perf_counter()
        theirs = [scorer.pre_acts(pair, z, level <= index) for index in range(len(counts))]
        seconds += [middle - start, time.perf_counter() - middle]
        difference = max(difference, *(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)))
    return *(seconds / PROMPTS), difference


def main() -> None:
    torch.set_num_threads(THREADS)
    table = Table(
        title=f"Sweep, 512 x 512 latents, {len(edge_counts(512 * 512))} counts, prompts of 128, {THREADS} threads"
    )
    for column in ("block", "sweep (s a prompt)", "obvious scorer (s)", "ratio", "largest difference"):
        table.add_column(column, justify="right")
    with torch.no_grad():
        for block in ("ff_layer.1", "ff_block.1", "transformer_block.1"):
            ours, theirs, difference = compare(block)
            table.add_row(block, f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.1f}", f"{difference:.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
