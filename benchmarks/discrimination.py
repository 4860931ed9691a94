"""How often does a score order two recipes right, from one pair of SAEs each and some prompts?

for seed in 0 1 2 3 4; do
  scalar quickstart --preset benchmarks/discrimination.yaml --set seed=$seed --out runs/discrimination/$seed
done
python -m benchmarks.discrimination runs/discrimination/*

The right order of two recipes is that of their mean log scores over all seeds and prompts. A trial takes a seed of each
recipe and some prompts, with replacement, and asks for the order. Noise is the standard deviation of the log score, as
a factor: of one seed over choices of prompts, and of all prompts over seeds.
"""

import sys
from itertools import combinations
from math import exp
from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from scalar_sae.records.results import Record, Results
from scalar_sae.scoring.metrics import every_score

SIZES, TRIALS = (10, 50, 200), 2000
Scores = Float[np.ndarray, "seed trial"]


def log_scores(record: Record, name: str, prompts: np.ndarray) -> Float[np.ndarray, " trial"]:
    """A score of some choices of prompts; infinite for never."""
    curves = record.prompts.arrays()
    return np.log(every_score(np.array(record.edges), curves, record.n_live_edges, record.n_edges, prompts)[name].value)


def right(a: Scores, b: Scores, generator: np.random.Generator) -> float:
    """The share of trials in which a is below b; half a trial if neither is."""
    trials = np.arange(a.shape[1])
    one, other = (scores[generator.integers(len(scores), size=len(trials)), trials] for scores in (a, b))
    return float(np.mean((one < other) + 0.5 * (one == other)))


def main(folders: list[str]) -> None:
    records: dict[str, list[Record]] = {}
    for folder in folders:
        for record in Results.read(Path(folder) / "results.json").records:
            records.setdefault(record.method, []).append(record)
    n_prompts = len(next(iter(records.values()))[0].prompts.n_tokens)
    sizes = [size for size in SIZES if size <= n_prompts]
    for name in ("faithful_at.50", "faithful_at.80", "edges_at.90"):
        whole = {method: log_scores_of(mine, name, np.arange(n_prompts)[None]) for method, mine in records.items()}
        generator = np.random.default_rng(0)
        draws = {size: generator.integers(n_prompts, size=(TRIALS, size)) for size in sizes}
        drawn = {
            method: {size: log_scores_of(mine, name, draws[size]) for size in sizes} for method, mine in records.items()
        }
        levels = Table(title=f"{name}, {n_prompts} prompts, {len(folders)} seeds")
        for column in ("SAEs", "mean", "seeds", "reseed noise", *(f"noise of {size} prompts" for size in sizes)):
            levels.add_column(column, justify="right")
        for method, by_size in drawn.items():
            scores = whole[method][:, 0]
            seeds = ", ".join("never" if np.isinf(one) else f"{exp(one):,.0f}" for one in scores)
            noise = [noise_of(by_size[size], axis=1) for size in sizes]
            levels.add_row(method, f"{exp(scores.mean()):,.0f}", seeds, noise_of(whole[method], axis=0), *noise)
        orders = Table(title=f"{name}: share of trials in the right order")
        for column in ("recipes", "ratio", *(f"{size} prompts" for size in sizes)):
            orders.add_column(column, justify="right")
        for pair in combinations(records, 2):
            low, high = sorted(pair, key=lambda method: whole[method].mean())
            shares = [f"{right(drawn[low][size], drawn[high][size], generator):.2f}" for size in sizes]
            ends = [whole[method].mean() for method in (low, high)]
            ratio = f"{exp(ends[1] - ends[0]):.2f}" if np.isfinite(ends).all() else "–"
            orders.add_row(f"{low} < {high}", ratio, *shares)
        Console(width=160).print(levels, orders)


def log_scores_of(records: list[Record], name: str, prompts: np.ndarray) -> Scores:
    """The same for the records of a recipe, one a seed."""
    return np.stack([log_scores(record, name, prompts) for record in records])


def noise_of(scores: Scores, axis: int) -> str:
    """The root mean square over the other axis of the standard deviation of the log score, as a factor."""
    if np.isinf(scores).any() or scores.shape[axis] < 2:
        return "–"
    return f"{exp(np.sqrt(scores.var(axis, ddof=1).mean())):.2f}"


if __name__ == "__main__":
    main(sys.argv[1:])
