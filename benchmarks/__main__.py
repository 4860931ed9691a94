"""`make bench`: the sweep against the obvious scorer (tests/reference/), in one run, on the shipped toy model.

Prints seconds a prompt and their ratio with the largest difference between the two; then what a whole score costs: 50
prompts of 128, the 35 published counts, edges ranked on other text. The large cases: `python -m benchmarks.staircase`,
`python -m benchmarks.gpt2_shapes`.
"""

import time

import torch
from rich.console import Console
from rich.table import Table
from tests.reference import scorer

from benchmarks.clock import now
from scalar_sae.corpora import load_corpus, windows
from scalar_sae.lm.model import LanguageModel
from scalar_sae.malloc import keep_freed_memory
from scalar_sae.saes.activation import TopK
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring.conventions import EXACT
from scalar_sae.scoring.curve import measure
from scalar_sae.scoring.metrics import published_counts
from scalar_sae.scoring.pair import Pair, read
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.rankings.registry import rank
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import GlobalEdges
from scalar_sae.scoring.sweep.subcircuits import sweep
from scalar_sae.sites import Block

THREADS = 2
COMPARED = 4
SCORED = 50
RANKED = {"ff_block.1": 576, "transformer_block.1": 64}


def data_sae(x: torch.Tensor, d_sae: int, k: int, seed: int) -> SAE:
    """An SAE whose latents are directions of the data: no training, realistic sparsity."""
    g = torch.Generator().manual_seed(seed)
    rows = x.flatten(0, 1)
    mean = rows.mean(0)
    W_dec = rows[torch.randperm(len(rows), generator=g)[:d_sae]] - mean
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    return SAE(W_dec.T.contiguous(), -mean @ W_dec.T, W_dec, mean, TopK(k))


def toy_pair(block: str, prompts: torch.Tensor, device: str = "cpu") -> Pair:
    """512 x 512 latents, k = 10, on the shipped model."""
    lm = LanguageModel.load("python-stdlib", device=device)
    place = Block.parse(block)
    acts = lm.activations(prompts.to(device), [place.up, place.down])
    return Pair(lm, place, *(data_sae(acts[site], 512, 10, 0) for site in (place.up, place.down)))


def compare(
    pair: Pair, edges: GlobalEdges, keep_index: torch.Tensor, n_counts: int, tokens: torch.Tensor
) -> list[float]:
    """Seconds a prompt of the sweep and of the obvious scorer, the first left out, and the largest difference."""
    seconds, difference = [0.0, 0.0], 0.0
    for number, prompt in enumerate(read(pair, tokens)):
        start = now(pair.device)
        ours = [sub.pre_acts.clone() for sub in sweep(pair, prompt, edges, n_counts)]
        middle = now(pair.device)
        with torch.device(pair.device):  # where the reference makes its tensors
            theirs = [scorer.pre_acts(pair, prompt, keep_index <= index) for index in range(n_counts)]
        if number > 0:  # the first warms up
            seconds = [seconds[0] + middle - start, seconds[1] + now(pair.device) - middle]
        difference = max(difference, *(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)))
    return [second / (len(tokens) - 1) for second in seconds] + [difference]


def whole(pair: Pair, edges: GlobalEdges, n_counts: int, tokens: torch.Tensor) -> float:
    """Seconds for the curves of all prompts."""
    readout = Readout.of(pair)
    start = time.perf_counter()
    for prompt in read(pair, tokens):
        measure(pair, prompt, edges, n_counts, True, EXACT, readout)
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(THREADS)
    keep_freed_memory()
    prompts = windows(load_corpus("python-stdlib", LanguageModel.load("python-stdlib")).val, 128)
    table = Table(title=f"512 x 512 latents, 35 counts, prompts of 128, {THREADS} threads")
    for column in (
        "block",
        "sweep (s a prompt)",
        "obvious (s)",
        "ratio",
        "largest difference",
        "ranking",
        "50 prompts",
    ):
        table.add_column(column, justify="right")
    with torch.no_grad():
        for block, n_ranked in RANKED.items():
            pair = toy_pair(block, prompts[:64])
            counts = published_counts(pair.n_edges)
            start = time.perf_counter()
            scores = rank(pair, prompts[1000 : 1000 + n_ranked], "leave_one_out", 0)
            ranking = time.perf_counter() - start
            keep_index = keep_indices(scores, counts, 0)
            edges = GlobalEdges(keep_index)
            ours, theirs, difference = compare(pair, edges, keep_index, len(counts), prompts[100 : 100 + COMPARED])
            curves = whole(pair, edges, len(counts), prompts[100 : 100 + SCORED])
            table.add_row(
                block, f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.1f}", f"{difference:.1e}",
                f"{ranking:.1f} s ({n_ranked} prompts)", f"{curves:.1f} s",
            )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
