"""Matching dictionaries: exact against pruned, time and value. python -m benchmarks.matching [n ...]"""

import resource
import sys
import time

import torch

from scalar_sae.evaluation.seeds.matching import EXACT, match

D_MODEL = 64


def timed(A: torch.Tensor, B: torch.Tensor, exact: int) -> tuple[float, float, float]:
    start = time.perf_counter()
    found = match(A, B, exact=exact)
    return found.mean, found.short, time.perf_counter() - start


if __name__ == "__main__":
    g = torch.Generator().manual_seed(0)
    print("| latents | dictionaries | exact | seconds | pruned | can be short by | seconds | peak GB |")
    print("|---|---|---|---|---|---|---|---|")
    for n in [int(argument) for argument in sys.argv[1:]] or [512, 4096]:
        A = torch.randn(n, D_MODEL, generator=g)
        copy = A[torch.randperm(n, generator=g)] + torch.randn(n, D_MODEL, generator=g)
        for name, B in (("random", torch.randn(n, D_MODEL, generator=g)), ("noisy copy", copy)):
            pruned = timed(A, B, exact=min(n // 4, EXACT))  # beyond EXACT what the package does by itself
            best = None if n > 4096 else timed(A, B, exact=n)
            cells = [f"{n:,}", name, *(["", ""] if best is None else [f"{best[0]:.4f}", f"{best[2]:.1f}"])]
            cells += [f"{pruned[0]:.4f}", f"{pruned[1]:.4f}", f"{pruned[2]:.1f}"]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print("| " + " | ".join([*cells, f"{peak:.2f}"]) + " |", flush=True)
