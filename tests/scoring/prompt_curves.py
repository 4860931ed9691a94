"""Curves of 300 real prompts, and how often intervals over a few of them hold the score of all of them.

    python -m tests.scoring.prompt_curves make       # trains, scores and writes prompt_curves.npz, in about a minute
    python -m tests.scoring.prompt_curves coverage   # prints the table of scoring/README.md

TopK SAEs of the quickstart's recipe at ff_block.0 of the shipped toy model, prompts of 64 tokens, ranked on 64 others.
"""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr, ndtri

from scalar_sae import held_out, load_run, score
from scalar_sae.records.curve import recovery
from scalar_sae.records.results import Curves
from scalar_sae.scoring import metrics
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.intervals import ends, resamples
from scalar_sae.study import StudyConfig, train_run

FILE = Path(__file__).with_suffix(".npz")
SCORES = ("faithful@80", "edges@90", "log_area")


def make(out: Path) -> None:
    saes = [{"method": "topk", "sites": ["resid_mid.0", "resid_post.0"]}]
    train_run(StudyConfig.from_preset("quickstart", {"saes": saes}), out)
    run = load_run(out)
    config = ScoreConfig(prompts=300, context=64, edges="coarse")
    record = score(run.pair("topk", "ff_block.0"), held_out(run.text, config), config)
    curves = record.prompts.arrays()
    arrays = {name: getattr(curves, name).astype(np.float32) for name in Curves.__annotations__}
    np.savez_compressed(FILE, edges=record.edges, n_live=record.n_live_edges, **arrays)


class Prompts:
    """The stored curves. All prompts have as many tokens, so that every mean is a plain mean."""

    def __init__(self) -> None:
        with np.load(FILE) as stored:
            self.edges, self.n_live = stored["edges"].astype(int), int(stored["n_live"])
            self.curves = Curves(**{name: stored[name].astype(float) for name in Curves.__annotations__})
        assert len(set(self.curves.n_tokens)) == 1

    def scores(
        self, sample: Int[np.ndarray, " prompt"], times: Float[np.ndarray, "row prompt"]
    ) -> dict[str, Float[np.ndarray, " row"]]:
        """The scores of resamples of some prompts: a row says how often each of them was drawn."""
        share = times / times.sum(1, keepdims=True)
        recovered = recovery(self.edges, share @ self.curves.kl_circuit[:, sample].T)
        faithful = metrics.faithfulness(share @ self.curves.kl_model[:, sample].T, share @ self.curves.kl_mean[sample])
        found = (
            metrics.edges_at(self.edges, faithful, 0.8),
            metrics.edges_at(self.edges, recovered, 0.9),
            metrics.log_area(self.edges, recovered, self.n_live),
        )
        return dict(zip(SCORES, map(np.asarray, found), strict=True))


Resampled = Float[np.ndarray, " row"]
"""A score of n prompts, then of all but each one of them, then of each resample."""


def percentile(found: Resampled, n: int) -> tuple[float, float]:
    """The interval that is too narrow."""
    low, high = np.quantile(found[1 + n :], [0.025, 0.975], method="nearest")
    return float(low), float(high)


def bca(found: Resampled, n: int) -> tuple[float, float]:
    """Efron's bias-corrected and accelerated interval, its acceleration from the jackknife of the score's logarithm."""
    value, resampled = found[0], found[1 + n :]
    below = ((resampled < value).mean() + (resampled <= value).mean()) / 2
    bias = ndtri(np.clip(below, 1e-3, 1 - 1e-3))
    jackknife = np.log(found[1 : 1 + n])
    away = jackknife.mean() - jackknife if np.isfinite(jackknife).all() else np.zeros(n)
    acceleration = (away**3).sum() / max(6 * (away**2).sum() ** 1.5, 1e-30)
    shifted = bias + ndtri([0.025, 0.975])
    shares = ndtr(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(resampled, shares, method="nearest")
    return float(low), float(high)


def students(found: Resampled, n: int) -> tuple[float, float]:
    """The interval of the package."""
    return ends(found[1 + n :], found[1 + n :], n)


INTERVALS = (percentile, bca, students)


def coverage(prompts: Prompts, n: int, n_trials: int, n_resamples: int = 1000) -> dict[tuple[str, str], float]:
    """How often the intervals over n prompts, drawn from all with replacement, hold the score of all prompts.

    The ends are those of the interpolated score, without what the grid of edge counts leaves open.
    """
    n_all = len(prompts.curves.n_tokens)
    truth = prompts.scores(np.arange(n_all), np.ones((1, n_all)))
    rng = np.random.default_rng(n)
    drawn = [np.bincount(draw, minlength=n) for draw in resamples(n, 0, n_resamples)]
    times = np.concatenate([np.ones((1, n)), 1 - np.eye(n), drawn])
    inside: dict[tuple[str, str], int] = {}
    for _ in range(n_trials):
        for name, found in prompts.scores(rng.integers(n_all, size=n), times).items():
            for method in INTERVALS:
                low, high = method(found, n)
                key = method.__name__, name
                inside[key] = inside.get(key, 0) + bool(low <= truth[name][0] <= high)
    return {key: hits / n_trials for key, hits in inside.items()}


def table(sizes: Iterable[int]) -> str:
    prompts = Prompts()
    lines = ["| prompts | interval | " + " | ".join(SCORES) + " |", "|---|---|" + "---|" * len(SCORES)]
    for n in sizes:
        found = coverage(prompts, n, 1000)
        for method in INTERVALS:
            cells = [f"{found[method.__name__, name]:.3f}" for name in SCORES]
            lines.append(f"| {n} | {method.__name__} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(what: str) -> None:
    if what == "make":
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder) / "run")
    else:
        print(table((6, 10, 20, 50)))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
