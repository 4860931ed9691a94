"""SmolLM2 135M in bfloat16, from the wheel to the report: the preset `smollm2`, as a user runs it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from benchmarks.gpu.section import Found, Where
from benchmarks.smollm2 import smollm2
from scalar_sae.records.results import Results
from scalar_sae.training.config import read_preset

SITES = ["resid_pre.1", "resid_mid.1", "resid_post.1"]
"""Of the shipped model, which stands in for SmolLM2 in a rehearsal."""


def run(where: Where) -> Iterator[Found]:
    """Seconds until the model lies there, the SAEs are trained and measured, every pair is scored, and the report."""
    start, found = time.perf_counter(), Found()
    preset, changes = "smollm2", []
    if where.small:
        preset = _rehearsal(where.folder / "rehearsal.yaml")
    else:
        changes = ["--set", f"lm={smollm2(models=where.folder / 'models', wheels=where.wheels)}"]
        found["model (s)"] = time.perf_counter() - start
        yield found
    out = where.folder / "run"
    command = [sys.executable, "-m", "scalar_sae", "quickstart", "--preset", preset, *changes, "--out", str(out)]
    process = subprocess.Popen([*command, "--dtype", "bfloat16", "--device", where.device])
    while process.poll() is None:
        time.sleep(0.5)
        found |= _so_far(out, found, time.perf_counter() - start)
        yield found
    if process.returncode:
        raise RuntimeError(f"scalar quickstart ended with {process.returncode}")
    found |= _so_far(out, found, time.perf_counter() - start) | {"report (s)": time.perf_counter() - start}
    for record in Results.read(out / "results.json").records:
        name = f"{record.block}, {record.method}"
        found |= {f"{name}, edges@90": record.edges_at["90"], f"{name}, floor (nats)": record.floor.kl}
    for sae in Results.read(out / "results.json").saes:
        found[f"{sae.site}, {sae.method}, FVU"] = sae.fvu
    yield found


def _so_far(out: Path, found: Found, seconds: float) -> Found:
    """What the run directory holds, and when that was first seen."""
    if not (out / "saes").is_dir() or not list((out / "saes").glob("*/*/sae.json")):
        return {}
    new: Found = {"SAEs trained (s)": seconds}
    if (out / "results.json").is_file():
        results = Results.read(out / "results.json")
        new |= {"SAEs measured (s)": seconds, f"{len(results.records)} pairs scored (s)": seconds}
    return {name: value for name, value in new.items() if name not in found}


def _rehearsal(path: Path) -> str:
    """The preset on the shipped model, with very little of everything."""
    preset = read_preset("smollm2")
    for method in preset["train"]["saes"]:
        method |= {"sites": SITES, "k": 4, "expansion": 2}
    preset["train"] |= {"lm": "python-stdlib", "corpus": "python-stdlib", "tokens": 4096, "batch_tokens": 512}
    preset["train"] |= {"buffer_tokens": 4096, "context": 32, "warmup_steps": 2}
    preset["score"] |= {"rankings": {"leave_one_out_with_prior": 1}, "prompts": 2, "context": 16, "edges": "16,256"}
    path.write_text(yaml.safe_dump(preset))
    return str(path)
