"""What is done of an unfinished record: the ranking, and a line a prompt. A scoring that was stopped goes on from it.

Every file and every line has a SHA-256 of its content and of the record that it belongs to. What is damaged, or belongs
to another record, is named in a message and computed again.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.console import say
from scalar_sae.io import appending, atomic_write, unwritable
from scalar_sae.readers import read_bytes
from scalar_sae.records.results import Curves
from scalar_sae.scoring.rankings.unfinished import Unfinished
from scalar_sae.sealed import load_unfinished, save_tensors


class Partial:
    """The folder of one unfinished record; without a folder nothing is kept."""

    def __init__(self, parent: Path | None, identity: dict[str, Any]) -> None:
        """`identity` is all that the record depends on: another one has another folder, which is made here.

        Raises:
            UserError: it cannot be made.
        """
        self._of = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self._folder = parent / self._of if parent else None
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unwritable(self._folder, error) from error

    def ranking(self) -> Tensor | None:
        """The scores of the edges, if they were computed already.

        Raises:
            UserError: a folder or a pipe is there in place of the file.
        """
        return load_unfinished(self._folder / "ranking.safetensors", self._of).get("scores") if self._folder else None

    def unfinished_ranking(self) -> Unfinished:
        """Where a ranking keeps what it has found so far."""
        return Unfinished(self._folder / "ranking" if self._folder else None, self._of)

    def keep_ranking(self, scores: Tensor) -> None:
        """Write the scores down."""
        if self._folder is not None and distributed.rank() == 0:
            with atomic_write(self._folder / "ranking.safetensors") as temporary:
                save_tensors(temporary, {"scores": scores}, self._of)
            self.unfinished_ranking().remove()

    def curves(self) -> dict[int, Curves]:
        """The prompts that were swept already; lines that are damaged or cut short by a kill are left out.

        Raises:
            UserError: a folder or a pipe is there in place of a file.
        """
        found: dict[int, Curves] = {}
        for path in sorted(self._folder.glob("prompts.*.jsonl")) if self._folder else []:
            content = read_bytes(path, "no longer there; run the command again")
            entries = [self._entry(line) for line in content.split(b"\n") if line]
            for entry in entries:
                if entry is not None:
                    number = entry.pop("number")
                    found[number] = Curves(**{name: np.array(values) for name, values in entry.items()})
            if lost := entries.count(None):
                say(f"{path}: {lost} of {len(entries)} prompts are cut short or damaged; they are swept again")
        return found

    def keep_curve(self, number: int, curve: Curves) -> None:
        """Write one prompt down.

        Raises:
            UserError: the disk is full.
        """
        if self._folder is None:
            return
        entry = {"number": number, **{name: values.tolist() for name, values in asdict(curve).items()}}
        path = self._folder / f"prompts.{distributed.rank()}.jsonl"
        with appending(path) as file:
            file.write("\n" + json.dumps({**entry, "sha256": self._digest(entry)}) + "\n")

    def _entry(self, line: bytes) -> dict[str, Any] | None:
        """What a line says of a prompt, if it is what was written of this record."""
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(entry, dict):
            return None
        digest = entry.pop("sha256", None)
        return entry if digest == self._digest(entry) else None

    def _digest(self, entry: dict[str, Any]) -> str:
        return hashlib.sha256(f"{self._of} {json.dumps(entry)}".encode()).hexdigest()
