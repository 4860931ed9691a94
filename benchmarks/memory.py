"""`python -m benchmarks.memory`: the most memory that training was predicted to hold, against what the process held.

Width 768, 12,288 latents, batches of 1,024, a random two-layer model; a process a method. Held is the peak of resident
memory less what torch and the package take by themselves.
"""

import json
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

from scalar_sae.corpora import load_corpus
from scalar_sae.lm.model import LanguageModel
from scalar_sae.runs import Events, keep_freed_memory
from scalar_sae.training.config import TrainConfig
from scalar_sae.training.loop import train

WIDTH, EXPANSION, BATCH = 768, 16, 1024
METHODS: list[dict[str, Any]] = [
    {"method": "topk", "sites": ["resid_mid.0"], "k": 32},
    {"method": "topk", "sites": ["ff_blocks"], "k": 32},
    {"method": "relu", "sites": ["resid_mid.0"]},
    {"method": "batch_topk", "sites": ["resid_mid.0"], "k": 32},
    {"method": "staircase", "along": "ff_blocks", "k": 32},
    {"method": "jacobian", "along": "ff_blocks", "k": 16},
]


def resident(what: str) -> float:
    """This process's memory in MiB: `VmRSS` now, `VmHWM` at the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def measured(method: dict[str, Any]) -> tuple[float, float]:
    """MiB predicted and held."""
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.nn.Linear(8, 8)(torch.randn(8, 8)).sum().backward()
    base = resident("VmRSS")
    shape = GPT2Config(vocab_size=128, n_positions=128, n_embd=WIDTH, n_layer=2, n_head=12, use_cache=False)
    lm = LanguageModel(GPT2LMHeadModel(shape), "random")
    config = TrainConfig(
        saes=[{**method, "expansion": EXPANSION}], tokens=4 * BATCH, batch_tokens=BATCH, buffer_tokens=8 * BATCH,
        validations=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        events = Events(Path(folder) / "events.jsonl")
        train(config, lm, load_corpus("python-stdlib"), Path(folder), events)
        start = json.loads((Path(folder) / "events.jsonl").read_text().splitlines()[0])
    return sum(start["memory"].values()) / 2**20, resident("VmHWM") - base


def main() -> None:
    table = Table(title=f"width {WIDTH}, {WIDTH * EXPANSION:,} latents, batches of {BATCH:,}")
    for column in ("method", "predicted (MiB)", "held (MiB)", "held / predicted"):
        table.add_column(column, justify="right")
    for method in METHODS:
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            predicted, held = alone.apply(measured, (method,))
        name = f"{method['method']} {method.get('along') or ','.join(method['sites'])}"
        table.add_row(name, f"{predicted:,.0f}", f"{held:,.0f}", f"{held / predicted:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
