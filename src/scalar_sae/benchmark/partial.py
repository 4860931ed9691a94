"""What is done of an unfinished record: the ranking, and a line a prompt. A scoring that was stopped goes on from
it.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scalar_sae import workers
from scalar_sae.benchmark.unfinished import Unfinished
from scalar_sae.io import unwritable, whole
from scalar_sae.results import Curves


class Partial:
    """The folder of one unfinished record; without a place nothing is kept."""

    def __init__(self, place: Path | None, identity: dict[str, Any]) -> None:
        """`identity` is all that the record depends on: another one has another folder, which is made here.

        Raises:
            UserError: it cannot be made.
        """
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self._folder = place / digest if place else None
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unwritable(self._folder, error) from error

    def ranking(self) -> Tensor | None:
        """The scores of the edges, if they were computed already."""
        if self._folder is None or not (self._folder / "ranking.safetensors").is_file():
            return None
        try:
            return load_file(self._folder / "ranking.safetensors")["scores"]
        except (SafetensorError, OSError, KeyError):
            return None

    def unfinished_ranking(self) -> Unfinished:
        """Where a ranking keeps what it has found so far."""
        return Unfinished(self._folder / "ranking" if self._folder else None)

    def keep_ranking(self, scores: Tensor) -> None:
        """Write the scores down."""
        if self._folder is not None and workers.number() == 0:
            with whole(self._folder / "ranking.safetensors") as temporary:
                save_file({"scores": scores}, temporary)
            self.unfinished_ranking().remove()

    def curves(self) -> dict[int, Curves]:
        """The prompts that were swept already; a line cut short by a kill is left out."""
        found: dict[int, Curves] = {}
        for path in sorted(self._folder.glob("prompts.*.jsonl")) if self._folder else []:
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue
                number = entry.pop("number")
                found[number] = Curves(**{name: np.array(values) for name, values in entry.items()})
        return found

    def keep_curve(self, number: int, curve: Curves) -> None:
        """Write one prompt down.

        Raises:
            UserError: the disk is full.
        """
        if self._folder is None:
            return
        entry = {name: values.tolist() for name, values in asdict(curve).items()}
        path = self._folder / f"prompts.{workers.number()}.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps({"number": number, **entry}) + "\n")
        except OSError as error:
            raise unwritable(path, error) from error
