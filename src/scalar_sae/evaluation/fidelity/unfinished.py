"""The sums of a measurement, and how they are kept while it is not finished: one that was stopped goes on from them, to
the same bits.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalar_sae.evaluation.fidelity.sums import SAETally, Tally
from scalar_sae.io import atomic_write
from scalar_sae.scoring.rankings.unfinished import SELDOM, WORTH
from scalar_sae.sealed import load_unfinished, save_tensors
from scalar_sae.sites import Site


@dataclass
class Tallies:
    """All sums of a measurement."""

    clean: Tally
    ablated: dict[Site, Tally]
    alone: dict[tuple[str, Site], SAETally]
    together: dict[str, Tally]

    @property
    def n_prompts(self) -> int:
        """Prompts whose sums are there."""
        return sum(map(len, self.clean.rows["n"]))

    def tensors(self) -> dict[str, Tensor]:
        """All sums by name."""
        rows = {f"{of}/{name}": torch.cat(parts) for of, tally in self._tallies() for name, parts in tally.rows.items()}
        return rows | {name: tensor for name, tensor in self._of_groups()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over the sums that `tensors` gave."""
        tallies = dict(self._tallies())
        groups = dict(self._of_groups())
        for name, tensor in tensors.items():
            if name in groups:
                groups[name].copy_(tensor)
            else:
                of, _, each = name.rpartition("/")
                tallies[of].rows[each] = [tensor]

    def _tallies(self) -> Iterator[tuple[str, Tally]]:
        yield "clean", self.clean
        yield from ((f"ablated/{site}", tally) for site, tally in self.ablated.items())
        yield from ((f"alone/{method}/{site}", sae.tally) for (method, site), sae in self.alone.items())
        yield from ((f"together/{method}", tally) for method, tally in self.together.items())

    def _of_groups(self) -> Iterator[tuple[str, Tensor]]:
        for (method, site), sae in self.alone.items():
            yield f"fired/{method}/{site}", sae.fired
            yield f"error/{method}/{site}", sae.error


class Kept:
    """A file with the sums of the prompts that are finished; without a folder nothing is kept. A file that is damaged
    or belongs to another measurement is named in a message, and its prompts are measured again.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        """`identity` is all that the sums depend on."""
        self._of = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self._path = None if folder is None else folder / f"{self._of}.safetensors"
        self._since, self._cost = time.perf_counter(), WORTH

    def read(self) -> dict[str, Tensor]:
        """The sums that were kept; none if nothing was."""
        return {} if self._path is None else load_unfinished(self._path, self._of)

    def keep(self, tallies: Tallies) -> None:
        """Write the sums down, if what would be lost took much longer than writing them."""
        start = time.perf_counter()
        if self._path is not None and start - self._since > SELDOM * self._cost:
            with atomic_write(self._path) as temporary:
                save_tensors(temporary, tallies.tensors(), self._of)
            self._since = time.perf_counter()
            self._cost = self._since - start
