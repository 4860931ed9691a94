"""docs/report.png from the report of a real run.

    make demo && .venv/bin/python docs/make_picture.py runs/quickstart

The picture needs Debian's chromium.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


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
    picture(run / "report.html", Path(__file__).parent / "report.png")
