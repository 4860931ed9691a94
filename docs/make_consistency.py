"""The tables of docs/consistency.md, on standard output: both measures of stability on the same SAEs.

python docs/make_consistency.py [STEPS]              # the synthetic organism: trains 5 seeds of 9 SAEs, one core
python docs/make_consistency.py runs/consistency/0   # the toy model: from a run that was measured against other seeds
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from scalar_sae.console import Bar
from scalar_sae.evaluation.seeds.consistency import mcc
from scalar_sae.evaluation.seeds.matching import Dictionary
from scalar_sae.evaluation.seeds.organism import Organism
from scalar_sae.evaluation.seeds.seeds import seed_agreement
from scalar_sae.records.results import Results
from scalar_sae.records.sae_results import SeedAgreement
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site
from scalar_sae.training.config import TrainConfig
from scalar_sae.training.learner import learners

SEEDS = range(5)
K = 3
STEPS, BATCH = 2000, 512
RELEASED_L0 = 15.7
"""Of ReLU SAEs in the stored outputs of arXiv 2505.20254's notebook. Its penalty (0.01 times the sum of the latents,
beside the mean squared error) leaves decoder norms out; the one here counts them, so the L0 is what can be matched."""
PLACE, LATER = Site("resid_mid", 0), Site("resid_post", 0)
STEERED = {"weight": 0.1, "target_l0": K}
HERE = {"sites": [str(PLACE)], "expansion": 2}
METHODS = [
    {"method": "topk", "k": K, **HERE},
    {"method": "topk", "name": "topk-auxk", "k": K, "auxk": 1 / 32, "k_aux": 8, "dead_tokens": 20_000, **HERE},
    {"method": "topk", "name": "topk-multi", "k": K, "multi": 4, **HERE},
    {"method": "batch_topk", "k": K, "k_aux": 8, "dead_tokens": 100_000, **HERE},
    {"method": "relu", "lr_scale": 1, "sparsity": STEERED, **HERE},
    {"method": "relu", "name": "relu-15.7", "lr_scale": 1, "sparsity": STEERED | {"target_l0": RELEASED_L0}, **HERE},
    {"method": "gated", "sparsity": STEERED, **HERE},
    {"method": "jumprelu", "scale": "sqrt_d", "bandwidth": 0.5, "threshold": 0.1, "loss": "tanh",
     "sparsity": STEERED | {"warmup": 0.05}, **HERE},
    {"method": "staircase", "along": "ff_blocks", "k": K, "expansion": 2},  # its first step, 32 latents, is compared
]  # fmt: skip


class Shape(NamedTuple):
    """As much of a language model as these methods ask for."""

    d_model: int
    n_layers: int = 1

    def feed_forward(self, layer: int) -> None:
        """None of them asks."""


def trained(organism: Organism, seed: int, steps: int) -> dict[str, dict[Site, SAE]]:
    """SAEs of every method on the organism, with fresh data at every step."""
    config = TrainConfig(
        lm="organism", corpus="organism", tokens=steps * BATCH, batch_tokens=BATCH, buffer_tokens=BATCH, lr=1e-2,
        min_lr=1e-3, warmup_steps=100, seed=seed, saes=METHODS,
    )  # fmt: skip
    group = learners(config, Shape(organism.atoms.shape[1]))
    g = torch.Generator().manual_seed(seed)

    def acts(n: int) -> dict[Site, torch.Tensor]:
        x = organism.sample(n, g).x
        return {PLACE: x, LATER: x}

    first = acts(16_384)
    for learner in group:
        learner.trainee.prepare(first)
    with Bar(f"seed {seed}", steps) as bar:
        for step in range(steps):
            batch = acts(BATCH)
            for learner in group:
                learner.step(batch, step)
            bar.step()
    last = acts(16_384)
    for learner in group:
        learner.trainee.calibrate(last)
    return {learner.method.name: {PLACE: learner.trainee.sae(PLACE)} for learner in group}


def spread(values: list[float]) -> str:
    """Mean, and the range over seeds."""
    return f"{np.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def both(seeds: SeedAgreement) -> str:
    """The cells of both measures, each with its null."""
    return f"{seeds.pw_mcc:.3f} | {seeds.rescaled:.3f} | {100 * seeds.shared:.0f} % | {100 * seeds.shared_null:.1f} %"


def of_organism(steps: int) -> None:
    organism = Organism.random(seed=1)
    truth = Dictionary(organism.atoms, organism.atoms)
    runs = {f"seed {seed}": trained(organism, seed, steps) for seed in SEEDS}
    x = organism.sample(16_384, torch.Generator().manual_seed(100)).x
    agreement = {seeds.method: seeds for seeds in seed_agreement(runs)}
    null = next(iter(agreement.values())).null
    print(f"{steps:,} steps of {BATCH}; PW-MCC of random dictionaries {null:.3f}\n")
    print("| method | L0 | FVU | GT-MCC | PW-MCC | rescaled | shared | by chance |")
    print("|---|---|---|---|---|---|---|---|")
    for name, seeds in agreement.items():
        saes = [run[name][PLACE] for run in runs.values()]
        l0 = [(sae.encode(x) > 0).sum(1).float().mean().item() for sae in saes]
        fvu = [((x - sae.decode(sae.encode(x))).square().sum() / (x - x.mean(0)).square().sum()).item() for sae in saes]
        found = [mcc(Dictionary.of(sae), truth).mcc for sae in saes]
        print(f"| {name} | {spread(l0)} | {spread(fvu)} | {spread(found)} | {both(seeds)} |")


def of_run(run: Path) -> None:
    results = Results.read(run / "results.json")
    saes = {(sae.method, sae.site): sae for sae in results.saes}
    sites = set.intersection(*({one.site for one in results.seeds if one.method == name} for name, _ in saes))
    print("| method | site | L0 | FVU | dead | PW-MCC | rescaled | shared | by chance |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seeds in results.seeds:
        if seeds.site not in sites:
            continue
        sae = saes[seeds.method, seeds.site]
        print(
            f"| {seeds.method} | {seeds.site} | {sae.l0:.2f} | {sae.fvu:.3f} | {100 * sae.dead:.0f} % | {both(seeds)} |"
        )


if __name__ == "__main__":
    [argument] = sys.argv[1:] or [str(STEPS)]
    if argument.isdecimal():
        of_organism(int(argument))
    else:
        of_run(Path(argument))
