"""The tables of docs/zoo.md, from a run of the `zoo` preset, on standard output.

scalar quickstart --preset zoo --out runs/zoo && python docs/make_zoo.py runs/zoo
"""

import sys
from pathlib import Path
from statistics import fmean

import numpy as np
from make_rankings import cell

from scalar_sae.records.results import Record, Results
from scalar_sae.records.sae_results import SaeFidelity
from scalar_sae.scoring.compare import Ratio, ratios

BASE = "topk"
SCORES = ("edges_at.90", "log_area", "absolute", "relative", "floor.kl")


def summary(results: Results) -> str:
    """One row a method: fidelity as the mean over its SAEs, scores as the mean over the layers (edges: geometric)."""
    lines = [
        "| SAEs | L0 | FVU | CE + (one) | CE + (all) | dead | FF block: edges@90 | log area | relative (do nothing) "
        "| transformer block: edges@90 | log area | relative (do nothing) |",
        "|---|" + "---|" * 11,
    ]
    spliced = {one.method: one.ce_increase for one in results.spliced}
    for method in dict.fromkeys(record.method for record in results.records):
        saes = [sae for sae in results.saes if sae.method == method]
        both = [scores(results, method, kind) for kind in ("ff_block", "transformer_block")]
        all_spliced = f"{spliced[method]:.2f}" if method in spliced else "–"
        lines.append(
            f"| {method} | {fidelity(saes)[0]} | {all_spliced} | {fidelity(saes)[1]} | {both[0]} | {both[1]} |"
        )
    return "\n".join(lines)


def fidelity(saes: list[SaeFidelity]) -> tuple[str, str]:
    """Means over the SAEs of a method: L0, FVU, CE increase; share of dead latents."""
    l0, fvu = fmean(sae.l0 for sae in saes), fmean(sae.fvu for sae in saes)
    ce, dead = fmean(sae.ce_increase for sae in saes), fmean(sae.dead for sae in saes)
    return f"{l0:.1f} | {fvu:.3f} | {ce:.3f}", f"{dead:.1%}"


def scores(results: Results, method: str, kind: str) -> str:
    """Means over the blocks of a kind: edges@90 (geometric), log area, the published relative score and its do-nothing
    value, the baseline's curves over as many possible edges."""
    records = of_kind(results.records, kind)
    mine = [record for record in records if record.method == method]
    if not mine:
        return "– | – | –"
    edges = [record.edges_at["90"] for record in mine]
    shown = "never" if None in edges else f"{np.exp(np.mean(np.log(np.array(edges, dtype=float)))):,.0f}"
    areas = {record.block: record.absolute for record in records if record.method == BASE}
    nothing = fmean(areas[record.block] / record.n_edges for record in mine)
    relative = f"{fmean(r.relative for r in mine):.3f} ({nothing:.3f})"
    return f"{shown} | {fmean(r.log_area for r in mine):.2f} | {relative}"


def of_kind(records: list[Record], kind: str) -> list[Record]:
    """The pairs' records at the blocks of a kind, controls left out."""
    return [record for record in records if record.block.startswith(kind) and record.control is None]


def relative(records: list[Record], kind: str) -> str:
    """Every method over the baseline: geometric means over the blocks of a kind, with 95 % intervals over prompts."""
    lines = [f"**{kind}**", "", f"| SAEs | {' | '.join(SCORES)} |", "|---|" + "---|" * len(SCORES)]
    some = of_kind(records, kind)
    by_score = {s: {r.method: r for r in ratios(some, BASE, s).rows if r.block.startswith("all")} for s in SCORES}
    for method in dict.fromkeys(record.method for record in some):
        row = ["1" if method == BASE else beside_nothing(by_score[score][method]) for score in SCORES]
        lines.append(f"| {method} | {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def beside_nothing(ratio: Ratio) -> str:
    """A ratio with its interval; of relative scores, what two identical curves would give beside it."""
    return cell(ratio) + ("" if ratio.do_nothing is None else f" (nothing: {ratio.do_nothing:.2g})")


def sites(results: Results) -> str:
    """FVU and L0 of every SAE."""
    places = list(dict.fromkeys(sae.site for sae in results.saes))
    lines = [f"| SAEs | {' | '.join(places)} |", "|---|" + "---|" * len(places)]
    for method in dict.fromkeys(sae.method for sae in results.saes):
        found = {sae.site: f"{sae.fvu:.3f} ({sae.l0:.1f})" for sae in results.saes if sae.method == method}
        lines.append(f"| {method} | {' | '.join(found.get(place, '–') for place in places)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    found = Results.read(Path(sys.argv[1]) / "results.json")
    print(summary(found), "", sep="\n")
    for kind in ("ff_block", "transformer_block"):
        print(relative(found.records, kind))
    print(sites(found))
