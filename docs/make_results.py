"""From a real run: the README's results table on standard output, and docs/report.png from its report.

    make demo && .venv/bin/python docs/make_results.py runs/quickstart

The picture needs Debian's chromium.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from scalar_sae.results import Record, Results


def cell(record: Record, name: str, value: float | None) -> str:
    interval = record.ci[name]
    if value is None:
        return "never"
    if interval is None:
        return f"{value:,.3g}"
    low, high = interval
    return f"{value:,.0f} [{low:,.0f}, {high:,.0f}]" if value >= 10 else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def table(results: Results) -> str:
    lines = [
        "| block | SAEs | possible edges | edges@90 | live edges@90 | local edges@90 | log area | floor (nats) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    local = {record.key[:2]: record for record in results.under("local")}
    for record in results.under("expected"):
        here = local[record.key[:2]]
        cells = [
            record.block,
            record.method,
            f"{record.n_edges:,}",
            cell(record, "edges_at.90", record.edges_at["90"]),
            cell(record, "live_edges_at.90", record.live_edges_at["90"]),
            cell(here, "edges_at.90", here.edges_at["90"]),
            cell(record, "log_area", record.log_area),
            cell(record, "floor.kl", record.floor.kl),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(page: Path, out: Path, size: tuple[int, int] = (1240, 1880)) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("no chromium here: apt-get install chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                chromium,
                *flags,
                f"--user-data-dir={profile}",
                f"--window-size={size[0]},{size[1]}",
                "--virtual-time-budget=8000",
                f"--screenshot={out}",
                page.resolve().as_uri(),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )


if __name__ == "__main__":
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
    print(table(Results.read(run / "results.json")))
    picture(run / "report.html", Path(__file__).parent / "report.png")
