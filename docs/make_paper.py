"""The SCALAR paper's aggregates from its own tables: prints the tables of docs/paper.md.

    .venv/bin/python docs/make_paper.py

Published numbers are in paper_tables.json; everything else is arithmetic on them.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

TABLES: dict[str, Any] = json.loads((Path(__file__).parent / "paper_tables.json").read_text(encoding="utf-8"))
BLOCKS = ("ff_layer", "ff_block", "transformer_block", "gpt2_ff_block")


class Measured(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float


def printed(block: str, method: str) -> list[Measured]:
    """One row of Table 7 or 9 as printed: every layer's column has its own power of ten, which is left out here."""
    return [Measured(*cell) for cell in TABLES["areas"][block][method]]


def areas(block: str, method: str) -> list[Measured]:
    """One row of Table 7 or 9 in edge nats."""
    units = TABLES["areas"][block]["unit"]
    return [Measured(value * u, error * u) for (value, error), u in zip(printed(block, method), units, strict=True)]


def method_of(block: str) -> str:
    """The SAEs that a block compares with TopK."""
    return "jsae" if block == "ff_layer" else "staircase"


def relative(row: list[Measured], edges: list[int]) -> list[Measured]:
    """Areas divided by the possible edges, in units of a TopK pair's."""
    return [Measured(area.value / n, area.error / n) for area, n in zip(row, edges, strict=True)]


def reduction(topk: list[Measured], method: list[Measured]) -> Measured:
    """1 - sum(method) / sum(topk) in percent; independent errors to first order: of a ratio r = M / T,
    (dr / r)^2 = (dT / T)^2 + (dM / M)^2."""
    total, other = (sum(area.value for area in row) for row in (topk, method))
    error, other_error = (math.hypot(*(area.error for area in row)) for row in (topk, method))
    ratio = other / total
    return Measured(100 * (1 - ratio), 100 * ratio * math.hypot(error / total, other_error / other))


def printed_error(percent: float, topk: list[Measured], method: list[Measured]) -> float:
    """The rule that gives the toy tables' standard errors: |percent| * sqrt(sum dT^2 + sum dM^2) / sum T."""
    return abs(percent) * math.hypot(*(area.error for area in topk + method)) / sum(area.value for area in topk)


def as_printed(block: str, score: str) -> float:
    """The aggregate of the numbers in Tables 7 to 10 without their powers of ten."""
    method = (
        TABLES["relative"][block] if score == "relative" else [cell.value for cell in printed(block, method_of(block))]
    )
    return 100 * (1 - sum(method) / sum(cell.value for cell in printed(block, "topk")))


def aggregate(block: str, score: str) -> Measured:
    """Reduction of the score summed over layers in edge nats: `absolute` or `relative`."""
    topk, method = areas(block, "topk"), areas(block, method_of(block))
    return reduction(topk, relative(method, TABLES["areas"][block]["edges"]) if score == "relative" else method)


def do_nothing(block: str, score: str) -> float:
    """The reduction of a method whose areas equal TopK's at every layer."""
    topk = areas(block, "topk")
    return reduction(topk, relative(topk, TABLES["areas"][block]["edges"]) if score == "relative" else topk).value


def mean_over_layers(block: str) -> float:
    """Geometric mean over layers of area / TopK's area: every layer counts alike, units cancel."""
    pairs = zip(areas(block, "topk"), areas(block, method_of(block)), strict=True)
    return math.exp(sum(math.log(mine.value / base.value) for base, mine in pairs) / len(areas(block, "topk")))


def sweep_total(table: str, coefficient: str) -> float:
    """Area summed over the four FF layers at one Jacobian coefficient, edge nats."""
    sweep = TABLES["jsae_sweep"]
    return sum(value * unit for value, unit in zip(sweep[table][coefficient], sweep["unit"], strict=True))


def sweep_best(table: str) -> list[tuple[str, float]]:
    """At each FF layer, the non-zero coefficient with the smallest area, and that area in edge nats."""
    sweep = TABLES["jsae_sweep"]
    rows = {coefficient: row for coefficient, row in sweep[table].items() if coefficient != "0"}
    best = [min(rows, key=lambda coefficient, i=layer: rows[coefficient][i]) for layer in range(len(sweep["unit"]))]
    return [(coefficient, rows[coefficient][i] * sweep["unit"][i]) for i, coefficient in enumerate(best)]


def aggregate_table() -> str:
    lines = ["| block, score | published | sum of the printed numbers | sum in edge nats | do-nothing |",
             "|---|---|---|---|---|"]  # fmt: skip
    for block in BLOCKS:
        for score, (value, error) in TABLES["aggregates"][block].items():
            real = aggregate(block, score)
            lines.append(
                f"| {block}, {score} | {value:+.2f} ± {error:.2f} | {as_printed(block, score):+.2f} "
                f"| **{real.value:+.1f} ± {real.error:.1f}** | {do_nothing(block, score):+.1f} |"
            )
    return "\n".join(lines)


def layer_table() -> str:
    lines = ["| block | layer | absolute | relative | do-nothing |", "|---|---|---|---|---|"]
    for block in BLOCKS:
        edges = TABLES["areas"][block]["edges"]
        rows = zip(areas(block, "topk"), areas(block, method_of(block)), edges, strict=True)
        for layer, (base, mine, n) in enumerate(rows):
            absolute, per_edge = reduction([base], [mine]), reduction([base], relative([mine], [n]))
            name = layer if block != "gpt2_ff_block" else (1, 6, 11)[layer]
            lines.append(
                f"| {block} | {name} | {absolute.value:+.1f} ± {absolute.error:.1f} "
                f"| {per_edge.value:+.1f} ± {per_edge.error:.1f} | {100 * (1 - 1 / n):+.1f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(aggregate_table())
    print()
    print(layer_table())
    print()
    for block in BLOCKS:
        print(f"{block}: area over TopK's, geometric mean over layers: {mean_over_layers(block):.2f}")
    for table in ("full_model", "full_circuit"):
        best = sum(area for _, area in sweep_best(table))
        start, end = sweep_total(table, "0"), sweep_total(table, "10")
        print(f"{table}: coefficient 1e-2 changes the sum by {100 * (end / start - 1):+.1f} %, "
              f"the best per layer by {100 * (best / start - 1):+.1f} %")  # fmt: skip
