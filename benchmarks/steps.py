"""`python -m benchmarks.steps`: what a training step of each method with one dictionary a site takes, on one thread.

A process each, with freed memory kept, as `scalar train` does (malloc.keep_freed_memory), and handed back at once. For
the source of another commit: `git worktree add ../before COMMIT; PYTHONPATH=../before/src python -m benchmarks.steps`.
"""

import time
from contextlib import nullcontext
from multiprocessing import get_context

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.training import LR, SHAPES, Shape, sparse_mixture
from scalar_sae.malloc import freed_memory_handed_back, keep_freed_memory
from scalar_sae.saes.methods.dictionary import SitePair
from scalar_sae.sites import Site
from scalar_sae.training.config import TrainConfig
from scalar_sae.training.learner import OptimizedSAEs

KEEP_K = ("topk", "batch_topk", "matryoshka", "mutual_choice", "feature_choice")
PENALISED = ("relu", "gated", "jumprelu")
SITE = Site.parse("resid_post.0")


def milliseconds(name: str, shape: Shape, repeats: int, keep: bool) -> float:
    """A step's median time."""
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    options = {"k": shape.k} if name in KEEP_K else {}
    method = {"method": name, "sites": [str(SITE)], "expansion": shape.d_sae // shape.d_model, **options}
    config = TrainConfig(saes=[method], tokens=10**9, batch_tokens=shape.batch, buffer_tokens=shape.batch, lr=LR)
    trainee = config.saes[0].trainee(SitePair(SITE, SITE, shape.d_model), 0)
    x, seconds = sparse_mixture(shape, shape.batch, 1), torch.zeros(repeats)
    trainee.prepare({SITE: x})
    learner = OptimizedSAEs(config.saes[0], trainee, config)
    with nullcontext() if keep else freed_memory_handed_back():
        for step in range(repeats):
            start = time.perf_counter()
            learner.step({SITE: x}, step)
            seconds[step] = time.perf_counter() - start
    return 1000 * seconds.median().item()


def main() -> None:
    for shape, repeats in zip(SHAPES, (5, 15), strict=True):
        table = Table(title=f"{shape.d_model} x {shape.d_sae:,}, batch {shape.batch:,}, ms a step, one thread")
        for column in ("method", "freed memory kept", "handed back", "ratio"):
            table.add_column(column, justify="right")
        for name in (*KEEP_K, *PENALISED):
            found: list[float] = []
            for keep in (True, False):
                with get_context("spawn").Pool(1) as alone:
                    found.append(alone.apply(milliseconds, (name, shape, repeats, keep)))
            table.add_row(name, *(f"{ms:,.0f}" for ms in found), f"{found[1] / found[0]:.1f}")
        Console().print(table)


if __name__ == "__main__":
    main()
