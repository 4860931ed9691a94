"""Does Adaptive Temporal Masking (ATM) absorb less than TopK, JumpReLU and ReLU SAEs at matched quality?

    python -m benchmarks.absorption

It trains every method with several seeds on the toy hierarchy of arXiv 2409.14507: four orthogonal features, of which
one, the child, occurs only together with another, its parent. The SAEs have four latents. The code that has the four
features has an L0 of 0.909. If the child's latent also represents the parent, an L0 of 0.900 is enough. Absorption is
measured where parent and child are present. FVU and L0 are printed beside it.
"""

from statistics import fmean
from typing import Any, NamedTuple

import torch

from scalar_sae.evaluation.labels.absorption import absorption
from scalar_sae.evaluation.seeds.organism import hierarchy
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site
from scalar_sae.training.config import TrainConfig, validated
from scalar_sae.training.learner import learners

SITE = Site("resid_mid", 0)
D_MODEL, BATCH, STEPS, SEEDS = 4, 512, 1000, range(8)
TANH = {"loss": "tanh", "scale": "sqrt_d", "bandwidth": 0.5, "threshold": 0.1}
METHODS: dict[str, dict[str, Any]] = {
    "topk, k = 1": {"method": "topk", "k": 1},
    "topk, k = 2": {"method": "topk", "k": 2},
    "jumprelu, weight 0.3": {"method": "jumprelu", "sparsity": {"weight": 0.3, "warmup": 0.1}, **TANH},
    "relu, weight 0.1": {"method": "relu", "lr_scale": 1, "sparsity": {"weight": 0.1}},
    "relu, weight 0.3": {"method": "relu", "lr_scale": 1, "sparsity": {"weight": 0.3}},
    "atm, weight 0.1": {"method": "atm", "lr_scale": 1, "sparsity": {"weight": 0.1}},
    "atm, weight 0.3": {"method": "atm", "lr_scale": 1, "sparsity": {"weight": 0.3}},
}


class Shape(NamedTuple):
    """As much of a language model as these methods ask for."""

    d_model: int = D_MODEL
    n_layers: int = 1

    def feed_forward(self, layer: int) -> None:
        """None of them asks."""


def trained(method: dict[str, Any], seed: int, steps: int = STEPS) -> SAE:
    """An SAE with as many latents as there are features."""
    fields = {"tokens": steps * BATCH, "batch_tokens": BATCH, "buffer_tokens": BATCH, "lr": 1e-2, "warmup_steps": 100}
    saes = [method | {"sites": [str(SITE)], "expansion": 1}]
    config = validated(TrainConfig, {"min_lr": 1e-3, "seed": seed, "saes": saes, **fields}, "train")
    [learner] = learners(config, Shape())
    g = torch.Generator().manual_seed(seed)
    learner.trainee.prepare({SITE: hierarchy(16_384, g, D_MODEL).x})
    for step in range(steps):
        learner.step({SITE: hierarchy(BATCH, g, D_MODEL).x}, step)
    learner.trainee.calibrate({SITE: hierarchy(16_384, g, D_MODEL).x})
    return learner.trainee.sae(SITE)


def measured(sae: SAE) -> dict[str, float]:
    """On activations that no SAE was trained on."""
    data = hierarchy(20_000, torch.Generator().manual_seed(1_000_000), D_MODEL)
    acts = sae.encode(data.x)
    missed = (data.x - sae.decode(acts)).square().sum() / (data.x - data.x.mean(0)).square().sum()
    found = absorption(sae, data.x, data.active[:, 0], data.active[:, 1], torch.eye(D_MODEL)[0])
    l0 = (acts > 0).float().sum(1).mean()
    return {"l0": l0.item(), "fvu": missed.item(), "fraction": found.fraction, "full": found.full}


def main() -> None:
    print("| SAEs | L0 | FVU: mean (least, most) | absorbed fraction | full absorption | seeds with any |")
    print("|---|---|---|---|---|---|")
    for name, method in METHODS.items():
        found = [measured(trained(method, seed)) for seed in SEEDS]
        mean = {key: fmean(one[key] for one in found) for key in found[0]}
        fvu = [one["fvu"] for one in found]
        cells = [f"{mean['l0']:.2f}", f"{mean['fvu']:.3f} ({min(fvu):.3f}, {max(fvu):.3f})", f"{mean['fraction']:.2f}"]
        some = sum(one["fraction"] > 0.05 for one in found)
        print(f"| {' | '.join([name, *cells])} | {mean['full']:.2f} | {some} of {len(found)} |", flush=True)


if __name__ == "__main__":
    main()
