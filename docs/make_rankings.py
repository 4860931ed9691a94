"""The tables of docs/rankings.md from a run of the `rankings` preset, on standard output; the picture beside it.

scalar quickstart --preset rankings --out runs/rankings && python docs/make_rankings.py runs/rankings
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from make_picture import picture
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from scalar_sae.benchmark.compare import Ratio, ratios
from scalar_sae.report.figures import style
from scalar_sae.results import Record, Results

SCORES = ("edges_at.50", "edges_at.90", "edges_at.99", "log_area", "pure")


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
    low_high = "" if ratio.interval is None else f" [{ratio.interval[0]:.2g}, {ratio.interval[1]:.2g}]"
    return f"{ratio.value:.2g}{low_high}"


def tables(results: Results) -> str:
    """For each group: every ranking over `ablation`, geometric means over its blocks."""
    lines: list[str] = []
    for (kind, saes), records in groups(results).items():
        lines += [f"**{kind}, {saes}**", "", "| ranking | edges@50 | edges@90 | edges@99 | log area | pure area | s |"]
        lines += ["|---|---|---|---|---|---|---|"]
        by_score = {score: {r.method: r for r in ratios(records, "ablation", score) if r.block.startswith("all")}
                    for score in SCORES}  # fmt: skip
        for name in dict.fromkeys(record.method for record in records):
            seconds = sum(record.seconds for record in records if record.method == name)
            row = ["1" if name == "ablation" else cell(by_score[score][name]) for score in SCORES]
            lines.append(f"| `{name}` | {' | '.join(row)} | {seconds:.0f} |")
        lines.append("")
    return "\n".join(lines)


def absolute(results: Results) -> str:
    """edges@90 of each block under each ranking, and local edges."""
    names = list(dict.fromkeys(record.ranking for record in results.records if record.scope == "global"))
    found = {record.key[:3]: record for record in results.records if record.control is None}
    lines = ["| block | SAEs | " + " | ".join(f"`{name}`" for name in names) + " | local edges@90 |"]
    lines.append("|---|---|" + "---|" * (len(names) + 1))
    for block, saes in dict.fromkeys(key[:2] for key in found):
        values = [found[block, saes, name].edges_at["90"] for name in [*names, "local"]]
        cells = ["never" if value is None else f"{value:,.0f}" for value in values]
        lines.append(f"| {block} | {saes} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(results: Results) -> go.Figure:
    """Mean recovery over the blocks of each group against edges kept."""
    some = groups(results)
    titles = [f"{kind}, {saes}" for kind, saes in some]
    drawn = make_subplots(1, len(some), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.02)
    for column, records in enumerate(some.values(), start=1):
        names = list(dict.fromkeys(record.method for record in records))
        for name, colour in zip(names, qualitative.D3, strict=False):
            mine = [record for record in records if record.method == name]
            grid = np.geomspace(1, min(record.n_edges for record in mine), 60)
            curves = [
                np.interp(np.log(grid), np.log(r.edges[1:]), 1 - np.array(r.kl_circuit[1:]) / r.kl_circuit[0])
                for r in mine
            ]
            line = {"color": colour, "width": 1.6, "dash": "dot" if name == "random" else "solid"}
            drawn.add_scatter(
                x=grid, y=np.mean(curves, 0), name=name, line=line, showlegend=column == 1, row=1, col=column
            )
    drawn.update_xaxes(type="log", title_text="edges kept", exponentformat="power", dtick=1)
    drawn.update_yaxes(range=[-0.4, 1.03])
    drawn.update_yaxes(title_text="recovery, mean over four layers", col=1)
    return style(drawn, height=420)


if __name__ == "__main__":
    run = Path(sys.argv[1])
    found = Results.read(run / "results.json")
    print(tables(found))
    print(absolute(found))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        figure(found).write_html(page, config={"displayModeBar": False})
        picture(page, Path(__file__).parent / f"{run.name}.png", (1280, 440))
