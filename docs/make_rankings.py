"""From runs of the `rankings` preset: docs/rankings-by-block.md whole, and the tables of docs/rankings.md on standard
output.

scalar quickstart --preset rankings --out runs/rankings && python docs/make_rankings.py runs/rankings [ANOTHER RUN ...]
"""

import sys
from pathlib import Path
from typing import cast

import numpy as np

from scalar_sae.records.results import Record, Results
from scalar_sae.records.sae_results import Interval
from scalar_sae.scoring.compare import Ratio, ratios

DOCS = Path(__file__).parent
SCORES = ("edges_at.50", "edges_at.90", "log_area", "pure")


def groups(results: Results) -> dict[tuple[str, str], list[Record]]:
    """Records of global edges by kind of block and SAEs, each under the name of its ranking."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in results.records:
        if record.control is None and record.scope == "global":
            key = (record.block.partition(".")[0], record.method)
            found.setdefault(key, []).append(record.model_copy(update={"method": record.ranking}))
    return found


def cell(ratio: Ratio) -> str:
    """A ratio with its interval."""
    if not np.isfinite(ratio.value):
        return "never"
    if ratio.interval is None:
        return f"{ratio.value:.2g}"
    low, high = ("?" if end is None else f"{end:.2g}" for end in ratio.interval)
    return f"{ratio.value:.2g} [{low}, {high}]"


def tables(results: Results) -> str:
    """For each group: every ranking over `leave_one_out`, geometric means over its blocks."""
    lines: list[str] = []
    for (kind, saes), records in groups(results).items():
        lines += [f"**{kind}, {saes}**", "", "| ranking | edges@50 | edges@90 | log area | pure area | s |"]
        lines += ["|---|---|---|---|---|---|"]
        by_score: dict[str, dict[str, Ratio]] = {}
        for score in SCORES:
            rows = ratios(records, "leave_one_out", score).rows
            by_score[score] = {row.method: row for row in rows if row.block.startswith("all")}
        for name in dict.fromkeys(record.method for record in records):
            seconds = sum(record.seconds for record in records if record.method == name)
            row = ["1" if name == "leave_one_out" else cell(by_score[score][name]) for score in SCORES]
            lines.append(f"| `{name}` | {' | '.join(row)} | {seconds:.0f} |")
        lines.append("")
    return "\n".join(lines)


def absolute(results: Results) -> str:
    """edges@90 of each block under each ranking, and local edges; the floor beside them."""
    names = list(dict.fromkeys(record.ranking for record in results.records if record.scope == "global"))
    found = {record.key[:3]: record for record in results.records if record.control is None}
    titles = ["block", "SAEs", *(f"`{name}`" for name in names), "local edges@90", "floor: KL", "CE +"]
    lines = [f"| {' | '.join(titles)} |", "|---|" + "---|" * (len(titles) - 1)]
    for block, saes in dict.fromkeys(key[:2] for key in found):
        values = [found[block, saes, name].edges_at["90"] for name in [*names, "local"]]
        cells = ["never" if value is None else f"{value:,.0f}" for value in values]
        floor = found[block, saes, "local"].floor
        lines.append(f"| {block} | {saes} | {' | '.join(cells)} | {floor.kl:.2f} | {floor.ce_increase:.2f} |")
    return "\n".join(lines)


def by_block(runs: dict[str, Results]) -> str:
    """The page of every score under every ranking at every block, with intervals."""
    lines = [
        "# Every order at every block",
        "",
        "Every score behind [rankings.md](rankings.md), which says what was run and what it means; "
        "`docs/make_rankings.py` writes this page. In brackets 95 % intervals over prompts and between edge counts.",
        "`local` counts edges per token, in its areas too. pure area: under KL(full circuit ‖ sub-circuit), "
        "absolute area: under KL(full model ‖ sub-circuit), both in edge nats from 1 to 2¹⁸ edges.",
        "The floor, KL(full model ‖ full circuit) and the increase of cross-entropy in nats, is the same under every "
        "order. s: seconds to rank and score, beside other work.",
    ]
    for name, results in runs.items():
        lines += ["", f"## {results.records[0].data['corpus']} (`runs/{name}`)"]
        records = [record for record in results.records if record.control is None]
        for key in dict.fromkeys(record.key[:2] for record in records):
            lines += ["", *one_block([record for record in records if record.key[:2] == key])]
    return "\n".join([*lines, ""])


def one_block(records: list[Record]) -> list[str]:
    """A pair's possible edges and floor, and its scores: a row a ranking."""
    first = records[0]
    kl, ce = (measured(first, f"floor.{name}", getattr(first.floor, name), ".3f") for name in ("kl", "ce_increase"))
    size = f"{first.n_up:,} × {first.n_down:,} = {first.n_edges:,} possible edges"
    lines = [f"**{first.block}, {first.method}**: {size}; floor: KL {kl}, CE + {ce}", ""]
    lines += ["| ranking | edges@50 | edges@90 | log area | pure area | absolute area | s |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for record in records:
        cells = [measured(record, f"edges_at.{q}", edges, ",.0f") for q, edges in record.edges_at.items() if q != "99"]
        cells.append(measured(record, "log_area", record.log_area, ".3f"))
        cells += [measured(record, name, getattr(record, name), ",.0f") for name in ("pure", "absolute")]
        lines.append(f"| `{record.ranking}` | {' | '.join(cells)} | {record.seconds:.1f} |")
    return lines


def measured(record: Record, score: str, value: float | None, form: str) -> str:
    """A score with its interval."""
    interval = cast(Interval | None, record.ci[score])
    low_high = "" if interval is None else f" [{interval[0]:{form}} – {interval[1]:{form}}]"
    return ("never" if value is None else f"{value:{form}}") + low_high


if __name__ == "__main__":
    runs = {Path(name).name: Results.read(Path(name) / "results.json") for name in sys.argv[1:]}
    (DOCS / "rankings-by-block.md").write_text(by_block(runs), encoding="utf-8")
    for found in runs.values():
        print(tables(found))
        print(absolute(found))
