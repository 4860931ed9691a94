"""The bars of docs/speed.md: FF block, transformer block, Staircase, and every edge of 24,576 x 24,576 latents.

Edge evaluations are the possible edges times edge counts times prompts: each edge is in or out of each sub-circuit.
"""

from collections.abc import Callable, Iterator

import torch

from benchmarks.__main__ import RANKED, compare, toy_pair
from benchmarks.gpt2_shapes import gpt2_pair
from benchmarks.gpu.section import Found, Where
from benchmarks.staircase import staircase_pair
from scalar_sae.corpora import load_corpus, windows
from scalar_sae.lm.model import LanguageModel
from scalar_sae.scoring.config import counts_of
from scalar_sae.scoring.conventions import EXACT
from scalar_sae.scoring.curve import measure
from scalar_sae.scoring.pair import Pair, read
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.rankings.registry import rank
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import GlobalEdges

Tokens = torch.Tensor


def ff_block(where: Where) -> Iterator[Found]:
    """512 x 512 latents of the shipped model, 35 counts."""
    return _toy(where, "ff_block.1")


def transformer_block(where: Where) -> Iterator[Found]:
    """The same at a transformer block."""
    return _toy(where, "transformer_block.1")


def _toy(where: Where, block: str) -> Iterator[Found]:
    prompts = _prompts()
    pair = toy_pair(block, prompts[:64], where.device)
    n_ranked, n_scored = (2, 2) if where.small else (RANKED[block], 50)

    def against(edges: GlobalEdges, keep_index: Tokens, n_counts: int) -> Found:
        ours, theirs, difference = compare(
            pair, edges, keep_index, n_counts, prompts[100 : 102 if where.small else 104]
        )
        return {
            "sweep of a prompt (s)": ours,
            "the obvious scorer takes so many times as long": theirs / ours,
            "largest difference from it": difference,
        }

    grid = "1,1000" if where.small else "published"
    return _scored(where, pair, grid, prompts[1000 : 1000 + n_ranked], prompts[100 : 100 + n_scored], against)


def staircase(where: Where) -> Iterator[Found]:
    """2,048 x 2,560 latents, all counts; its SAEs are trained first."""
    lm, prompts = LanguageModel.load("python-stdlib", device=where.device), _prompts()
    start = where.now()
    fewer = {"tokens": 2048, "buffer_tokens": 2048} if where.small else {}
    pair = staircase_pair(lm, load_corpus("python-stdlib", lm), **fewer)
    found: Found = {"training the Staircase (s)": where.now() - start}
    n_ranked, n_scored, n_token = (1, 1, 8) if where.small else (64, 50, 128)
    ranked, scored = (prompts[at : at + n, :n_token] for at, n in ((1000, n_ranked), (100, n_scored)))
    for more in _scored(where, pair, "1" if where.small else "full", ranked, scored):
        yield found | more


def wide(where: Where) -> Iterator[Found]:
    """An FF block at GPT-2-small shapes, 6.04e8 edges, all counts; 5 prompts."""
    width, n_layers, n, n_token = (96, 1, 1, 16) if where.small else (24_576, 12, 5, 128)
    pair, tokens = gpt2_pair((width, width), where.device, n_layers)
    yield from _scored(where, pair, "full", tokens[:n, :n_token], tokens[n : 2 * n, :n_token])


def _prompts() -> Tokens:
    return windows(load_corpus("python-stdlib", LanguageModel.load("python-stdlib")).val, 128)


@torch.no_grad()
def _scored(
    where: Where,
    pair: Pair,
    grid: str,
    ranked: Tokens,
    scored: Tokens,
    against: Callable[[GlobalEdges, Tokens, int], Found] | None = None,
) -> Iterator[Found]:
    """Rank by `leave_one_out`, sweep prompts one after the other: what there is after each of them."""
    where.begin_memory()
    counts = counts_of(grid, pair.n_edges)
    start = where.now()
    scores = rank(pair, ranked, "leave_one_out", 0)
    ranking = where.now()
    keep_index = keep_indices(scores, counts, 0)
    ordering = where.now()
    del scores
    found: Found = {
        "edges": pair.n_edges, "counts": len(counts), "tokens of a prompt": ranked.shape[1],
        "prompts ranked": len(ranked), "ranking (s)": ranking - start, "ordering (s)": ordering - ranking,
    }  # fmt: skip
    yield found
    edges, readout = GlobalEdges(keep_index), Readout.of(pair)
    if against is not None:
        found |= against(edges, keep_index, len(counts))
        yield found
    start = where.now()
    for number, prompt in enumerate(read(pair, scored), 1):
        curves = measure(pair, prompt, edges, len(counts), True, EXACT, readout)
        seconds = where.now() - start
        found |= {
            "prompts scored": number, "scoring (s)": seconds, "a prompt (s)": seconds / number,
            "edge evaluations a second": pair.n_edges * len(counts) * number / seconds,
            "KL at the last count (nats)": float(curves.kl_circuit[-1, 0]), "peak memory (GiB)": where.peak_gib(),
        }  # fmt: skip
        yield found
