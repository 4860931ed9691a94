"""Outputs are checked before any work: can they be written where the user wants them? Nothing is left there."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from scalar_sae.errors import UserError
from scalar_sae.io import check_writable, leads

_RUN_FOLDERS = ("lm", "saes", "partial")
_RUN_FILES = ("config.yaml", "events.jsonl", "checkpoint.pt", "results.json", "report.html")
"""What `train` and `quickstart` write into a run directory."""


def check_results(out: Path | None) -> None:
    """Raise a UserError if a results file is there already, or if it or its `.partial` folder cannot be written."""
    if out is None:
        return
    if os.path.lexists(out):
        raise UserError(f"{out}: exists already; choose another --out")
    check_writable(out)
    check_folder(out.with_name(f"{out.name}.partial"))


@contextmanager
def making(out: Path | None) -> Generator[Path | None]:
    """Keep other processes from a results file while the block makes it; yields the folder for unfinished work.

    That folder is removed when the block has succeeded.

    Raises:
        UserError: another process makes the file, or has made it since it was checked.
    """
    from scalar_sae.locks import held

    if out is None:
        yield None
        return
    partial = out.with_name(f"{out.name}.partial")
    with held(out.parent, out.name, remedy="wait until it ends, or choose another --out"):
        if leads():
            check_results(out)
        yield partial
        if leads():
            shutil.rmtree(partial, ignore_errors=True)


def check_folder(path: Path | None, option: str = "--out") -> None:
    """Raise a UserError if nothing can be written into a folder, which need not be there yet."""
    if path:
        check_writable(path, option, folder=True)


def check_empty(out: Path) -> None:
    """Raise a UserError if a folder holds something already, or cannot be written."""
    check_folder(out)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: exists already; choose another --out")


def check_run(out: Path) -> None:
    """Raise a UserError if a run directory, or something that a run writes there, cannot be written."""
    check_folder(out)
    if not out.is_dir():
        return
    for name in _RUN_FOLDERS:
        check_folder(out / name)
    for name in _RUN_FILES:
        check_writable(out / name)


def check_cache(folder: Path | None) -> None:
    """Raise a UserError if no cache of activations can be begun in a folder. One that is there may be complete."""
    if folder and not os.path.lexists(folder / "manifest.json"):
        check_folder(folder, "--cache")


def check_tables(folder: Path) -> None:
    """Raise a UserError if feature tables cannot be written below a folder, or the pages of those that are there."""
    check_folder(folder)
    for tables in folder.glob("*/*/latents.parquet"):
        check_folder(tables.parent / "page")
