"""What is found of a ranking that is not finished, on disk: one that was stopped goes on from it, to the same bits.

A ranking is made of sums over prompts, of some downstream latents at a time. Finished sums are written if they took
some time; one that is not finished is written now and then, after a prompt, by every worker its own.
"""

import shutil
import time
from pathlib import Path

import torch
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.io import atomic_write
from scalar_sae.sealed import load_unfinished, save_tensors

WORTH = 1.0
"""Seconds: what took less is found again."""
SELDOM = 20.0
"""An unfinished sum is written when what would be lost took so many times as long as writing it."""


class Unfinished:
    """The folder of an unfinished ranking; without a folder nothing is kept.

    A file that is damaged or belongs to other work is named in a message, and its sums are made again.
    """

    def __init__(self, folder: Path | None = None, of: str = "") -> None:
        """`of` names the ranking that the sums belong to."""
        self._folder, self._of = folder, of
        self._since = time.perf_counter()
        self._cost = WORTH

    def part(self, name: str) -> "Unfinished":
        """A ranking's part that has sums of its own."""
        return Unfinished(self._folder / name if self._folder else None, f"{self._of}/{name}")

    def found(self, columns: slice) -> Tensor | None:
        """The finished sums of some downstream latents."""
        self._since = time.perf_counter()
        return self._read(f"{columns.start}-{columns.stop}").get("found")

    def keep_found(self, columns: slice, found: Tensor) -> None:
        """Write finished sums down; the unfinished ones are not needed any more."""
        if distributed.rank() == 0 and time.perf_counter() - self._since > WORTH:
            self._write(f"{columns.start}-{columns.stop}", {"found": found})
        if self._folder:
            self._path(self._mine(columns)).unlink(missing_ok=True)

    def sums(self, columns: slice, total: Tensor) -> int:
        """Read this worker's sums into `total`; returns how many of its prompts are in them."""
        kept = self._read(self._mine(columns))
        if "n" not in kept or "total" not in kept or kept["total"].shape != total.shape:
            return 0
        total.copy_(kept["total"])
        return int(kept["n"])

    def keep_sums(self, columns: slice, n: int, total: Tensor) -> None:
        """Write this worker's sums after n of its prompts down, if it is time."""
        start = time.perf_counter()
        if start - self._since > SELDOM * self._cost:
            self._write(self._mine(columns), {"n": torch.tensor(n), "total": total})
            self._since = time.perf_counter()
            self._cost = self._since - start

    def remove(self) -> None:
        """The ranking is finished."""
        if self._folder is not None and distributed.rank() == 0:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _mine(self, columns: slice) -> str:
        return f"{columns.start}-{columns.stop}.{distributed.rank()}-of-{distributed.world_size()}"

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.safetensors"

    def _read(self, name: str) -> dict[str, Tensor]:
        return load_unfinished(self._path(name), f"{self._of}/{name}") if self._folder else {}

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        if self._folder is not None:
            with atomic_write(self._path(name)) as temporary:
                save_tensors(temporary, tensors, f"{self._of}/{name}")
