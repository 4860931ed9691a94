"""Small training runs for the tests."""

from pathlib import Path

import torch

from scalar_sae.corpora import load_corpus
from scalar_sae.io import Events
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import load_saes
from scalar_sae.sites import Site
from scalar_sae.training.config import TrainConfig, validated
from scalar_sae.training.loop import train
from tests.helpers import tiny_lm

SITES = [Site("resid_mid", 0), Site("resid_post", 1)]
TOPK = {"method": "topk", "sites": ["resid_mid.0", "resid_post.1"], "k": 2, "expansion": 2}
STAIRS = {"method": "staircase", "along": "ff_blocks", "k": 2, "expansion": 2}
STATEFUL = [
    {"method": "batch_topk", "sites": ["resid_mid.0"], "k": 2, "expansion": 2, "dead_tokens": 300},
    {"method": "atm", "sites": ["resid_mid.0"], "expansion": 2, "sparsity": {"weight": 1, "target_l0": 4}},
    {"method": "feature_choice", "sites": ["resid_mid.0"], "k": 2, "expansion": 2, "first_phase": 0.5},
    {"method": "g_sae", "sites": ["resid_mid.0"], "k": 2, "expansion": 2},
]
SMALL = {"tokens": 2000, "batch_tokens": 100, "buffer_tokens": 400, "context": 16, "warmup_steps": 3}


def random_prompts(n: int = 12) -> torch.Tensor:
    """Random windows."""
    return torch.randint(0, 32, (n, 16), generator=torch.Generator().manual_seed(3))


def write_text(path: Path) -> Path:
    """A text of few symbols."""
    path.write_text("".join(chr(1 + (7 * i * i + i) % 31) for i in range(3000)))
    return path


def trained(
    tmp_path: Path, text: Path, name: str, saes: list[dict], events: Events | None = None, cache: Path | None = None,
    **changes,
) -> dict[str, dict[Site, SAE]]:  # fmt: skip
    """The SAEs of a small run in `tmp_path / name`."""
    config = validated(TrainConfig, {**SMALL, "corpus": str(text), "saes": saes, **changes}, "train")
    train(config, tiny_lm(), load_corpus(str(text), tiny_lm()), tmp_path / name, events or Events(None), cache)
    return load_saes(tmp_path / name)
