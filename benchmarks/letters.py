"""Does Adaptive Temporal Masking (ATM) absorb first letters less than TopK, JumpReLU and ReLU SAEs of a language model?

    make smollm2
    scalar train benchmarks/letters.yaml --out runs/letters
    scalar measure runs/letters --labels first-letters --words 2048 --prompts 32 --special first
    python -m benchmarks.letters runs/letters

The last command reads the records of `scalar measure`. It prints means over the seeds of a method. The absorbed
fraction is given with the thresholds of SAEBench's code and with those of its paper; full absorption has none. All
three are means over the letters that a linear probe finds. *Best latent* is the balanced accuracy of the one latent
that tells a letter best, mean over letters: 0.5 means that no latent knows the letter. The last two columns compare the
fractions with those of ATM, letter by letter, with 95 % bootstrap intervals over letters.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import numpy as np

from scalar_sae.evaluation.labels.absorption import SAEBENCH_CODE, SAEBENCH_PAPER
from scalar_sae.records.results import Results

RESAMPLES = 10_000
BASELINE = "atm"
HEADER = ("SAEs", "L0", "FVU", "CE +", "dead", "best latent", "fraction, code", "fraction, paper", "full",
          "code, minus ATM", "paper, minus ATM")  # fmt: skip


def method_of(name: str) -> str:
    """The method of `topk-0`, whose seed is 0."""
    return name.rpartition("-")[0]


def by_letter(results: Results) -> dict[str, dict[str, np.ndarray]]:
    """Absorbed fraction by code and by paper, and full absorption, of each letter found, as means over seeds."""
    found: defaultdict[str, defaultdict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    settings = {(record.method, record.thresholds): record.parents for record in results.absorption}
    for name in dict.fromkeys(record.method for record in results.absorption):
        both = zip(settings[name, SAEBENCH_CODE.name], settings[name, SAEBENCH_PAPER.name], strict=True)
        for code, paper in both:
            if code.fraction is not None and paper.fraction is not None and code.full is not None:
                found[method_of(name)][code.parent].append([code.fraction, paper.fraction, code.full])
    return {method: {letter: np.mean(seeds, 0) for letter, seeds in of.items()} for method, of in found.items()}


def interval(differences: np.ndarray, resamples: int = RESAMPLES) -> str:
    """The mean of differences, with its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).integers(len(differences), size=(resamples, len(differences)))
    low, high = np.quantile(differences[draws].mean(1), (0.025, 0.975))
    return f"{differences.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def rows(results: Results) -> Iterator[tuple[str, ...]]:
    """The cells of the table, a row a method."""
    letters = by_letter(results)
    for method, absorption in letters.items():
        saes = [record for record in results.saes if method_of(record.method) == method]
        best = [
            label.sparse[1]
            for record in results.probes
            if method_of(record.method) == method
            for label in record.labels
            if label.label in absorption
        ]
        differences = np.array([absorption[letter] - other for letter, other in letters[BASELINE].items()])
        yield (
            method,
            f"{fmean(sae.l0 for sae in saes):.1f}",
            f"{fmean(sae.fvu for sae in saes):.3f}",
            f"{fmean(sae.ce_increase for sae in saes):.3f}",
            f"{fmean(sae.dead for sae in saes):.0%}",
            f"{fmean(best):.2f}",
            *(f"{value:.3f}" for value in np.mean(list(absorption.values()), 0)),
            *("" if method == BASELINE else interval(column) for column in differences.T[:2]),
        )


def main(folder: str) -> None:
    results = Results.read(Path(folder) / "results.json")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for row in rows(results):
        print(f"| {' | '.join(row)} |")
    print(f"{len(by_letter(results)[BASELINE])} letters, {results.absorption[0].n_rows:,} words")


if __name__ == "__main__":
    main(*sys.argv[1:])
