"""The content of `results.json`: one self-describing record per block, method and ranking. See docs/results.md."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field

from scalar_sae.errors import UserError
from scalar_sae.io import write_json
from scalar_sae.lm.special import First
from scalar_sae.locks import held
from scalar_sae.readers import RESTORE, WRITER, read_json
from scalar_sae.records.checks import check
from scalar_sae.records.curve import draw, recovery
from scalar_sae.records.label_results import SaeAbsorption, SaeProbes
from scalar_sae.records.sae_results import Duplicates, Interval, SaeFidelity, SaeReading, SeedAgreement, SplicedFidelity
from scalar_sae.saes.trained import Trained
from scalar_sae.table import Table

SCHEMA_VERSION = 5
_NO_RECORDS = ("schema_version", "written_by")

Control = Literal["padded", "shuffled"]
"""A control: the pair with dead latents added, or on a model with shuffled weights (see scoring/controls.py)."""


Faithfulness = Literal["50", "80", "90"]
"""Levels of faithfulness, in percent."""


class Floor(BaseModel):
    """The loss of fidelity from splicing the pair in, whatever the edges."""

    model_config = ConfigDict(extra="forbid")

    kl: float
    """KL(full model || full circuit), nats."""
    ce_increase: float
    """Increase of next-token cross-entropy with the full circuit, nats."""


class Rise(BaseModel):
    """The largest rise of KL(full model || sub-circuit) from one edge count to the next, nats. A curve that falls with
    every count has none.
    """

    model_config = ConfigDict(extra="forbid")

    mean: float
    """Mean over prompts of each prompt's largest rise."""
    most: float
    """The largest of any prompt."""


@dataclass(frozen=True, eq=False)
class Curves:
    """The measurements of a sweep at each edge count for each prompt, as means over the prompt's positions."""

    kl_model: Float[np.ndarray, "n_counts prompt"]
    """KL(full model || sub-circuit), nats."""
    kl_circuit: Float[np.ndarray, "n_counts prompt"]
    """KL(full circuit || sub-circuit), nats."""
    live_edges: Float[np.ndarray, "n_counts prompt"]
    """Kept edges per token between two live latents."""
    l0_down: Float[np.ndarray, "n_counts prompt"]
    """Live downstream latents per token."""
    floor_kl: Float[np.ndarray, " prompt"]
    """KL(full model || full circuit), nats."""
    floor_ce: Float[np.ndarray, " prompt"]
    """Increase of next-token cross-entropy with the full circuit, nats."""
    kl_mean: Float[np.ndarray, " prompt"]
    """KL(full model || downstream site set to its mean), nats: no SAE can move it."""
    n_tokens: Float[np.ndarray, " prompt"]
    """Number of counted positions, that is, without special tokens. They are the weights of prompts in means over
    prompts.
    """
    n_targets: Float[np.ndarray, " prompt"]
    """Number of counted positions that are prediction targets. They are the weights of prompts in means of
    `floor_ce`.
    """

    @classmethod
    def side_by_side(cls, parts: Sequence["Curves"]) -> "Curves":
        """Concatenate the prompts of all parts, in this order."""
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts], -1) for name in cls.__annotations__})

    @classmethod
    def worst(cls, draws: Sequence["Curves"]) -> "Curves":
        """Of several measurements of the same prompts, at each edge count and prompt the one with the largest
        `kl_model`.
        """
        first = draws[0]
        at = np.stack([draw.kl_model for draw in draws]).argmax(0)[np.newaxis]
        names = ("kl_model", "kl_circuit", "live_edges", "l0_down")
        found = {name: np.take_along_axis(np.stack([getattr(d, name) for d in draws]), at, 0)[0] for name in names}
        return replace(first, **found)

    def with_text(self) -> "Curves":
        """The prompts with at least one counted token."""
        there = self.n_tokens > 0
        return Curves(**{name: getattr(self, name)[..., there] for name in Curves.__annotations__})


def _digits(values: Float[np.ndarray, "*shape"]) -> Any:
    """Nested lists of numbers, rounded to seven digits."""
    return np.array([float(f"{value:.7g}") for value in values.flat]).reshape(values.shape).tolist()


class PromptCurves(BaseModel):
    """The stored form of `Curves`, which a paired comparison with another record resamples."""

    model_config = ConfigDict(extra="forbid")

    kl_model: list[list[float]]
    """One row per edge count, one entry per prompt."""
    kl_circuit: list[list[float]]
    live_edges: list[list[float]]
    l0_down: list[list[float]]
    floor_kl: list[float]
    """One entry per prompt."""
    floor_ce: list[float]
    kl_mean: list[float]
    n_tokens: list[float]
    """Number of counted positions."""
    n_targets: list[float]
    """Number of counted positions that are prediction targets."""

    @classmethod
    def of(cls, curves: Curves) -> "PromptCurves":
        """Convert from arrays, rounding to seven digits."""
        return cls(**{name: _digits(getattr(curves, name)) for name in cls.model_fields})

    def arrays(self) -> Curves:
        """Convert to arrays."""
        return Curves(**{name: np.array(getattr(self, name)) for name in type(self).model_fields})


class Record(BaseModel):
    """One curve and its scores. Intervals in `ci` are 95 % bootstrap intervals over prompts."""

    model_config = ConfigDict(extra="forbid")

    block: str
    """The computation between the two SAEs, such as `ff_block.0`."""
    method: str
    """Name of the SAEs, which is their folder in the run."""
    ranking: str
    """The order in which edges were kept."""
    control: Control | None = None
    """The control that was scored; null for the pair itself."""
    scope: Literal["global", "local"] = "global"
    """`global`: one set of edges for all tokens. `local`: edges chosen at every token, with counts per token."""
    seed: int
    """Seed of the prompts, of ties in the ranking and of the bootstrap."""
    n_up: int
    n_down: int
    n_edges: int
    """Possible edges: n_up times n_down."""
    n_live_edges: int
    """Number of edges between latents that are both live somewhere in the ranking text. For `local`, edges of the
    busiest token.
    """
    n_tokens: int
    """Number of counted positions in the scored text, over all prompts."""
    n_special: int = 0
    """Positions of special tokens in the scored text. They kept the model's own activation and were not counted."""
    special: list[int | First] = []
    """Ids of the special tokens that were left out; `first` stands for the first token of every prompt."""
    edges: list[int]
    """Edge counts of the curve."""
    kl_model: list[float]
    """KL(full model || sub-circuit) at each count, nats, mean over prompts and positions."""
    kl_circuit: list[float]
    """KL(full circuit || sub-circuit) at each count, nats."""
    live_edges: list[float]
    """Kept edges per token between two live latents, at each count."""
    l0_down: list[float]
    """Live downstream latents per token, at each count."""
    absolute: float
    """Published: area under kl_model over linear edge count, 1 to 2^18, edge nats."""
    relative: float
    """Published: absolute / n_edges."""
    pure: float
    """Published: area under kl_circuit."""
    edges_at: dict[Literal["50", "90", "99"], float | None]
    """Edges needed for 50, 90 and 99 % recovery; null if that recovery is not reached. Fewer than 50 prompts are not
    enough for 99 %: null in every field.
    """
    live_edges_at: dict[Literal["50", "90", "99"], float | None]
    """Live kept edges per token at that count."""
    dip: dict[Literal["50", "90", "99"], float | None]
    """Largest fall of recovery below q after first reaching it."""
    lowest_recovery: float
    """The least recovery at any count above zero. It is negative where some edges are worse than none."""
    largest_rise: Rise
    log_area: float
    """Mean of 1 - recovery over log n, up to n_live_edges."""
    floor: Floor
    kl_mean: float
    """KL(full model || downstream site set to its mean over the ranking text), nats. It depends on the model, the site
    and the text, and on no SAE: faithfulness at a count is 1 - kl_model / kl_mean."""
    faithful_at: dict[Faithfulness, float | None]
    """Edges at which faithfulness first reaches 50, 80, 90 %; null where it never does."""
    faithful_from: dict[Faithfulness, float | None]
    """The smallest measured count from which faithfulness never falls below 50, 80, 90 % again."""
    faithful_live_at: dict[Faithfulness, float | None]
    """Live kept edges per token at `faithful_at`."""
    unfaithful_area: float
    """Mean of 1 - faithfulness over log n, from 1 to 2^18 edges whatever the pair. Above 1 where circuits are worse
    than the mean."""
    rank_halves: dict[str, tuple[float | None, float | None]] = {}
    """Scores, by name, under the orders of edges that the two halves of the ranking text give; null for a level that is
    not reached. Empty if they were not scored. Where they were, the intervals of these scores include the error of the
    ranking text."""
    ci: dict[str, Interval | list[Interval] | None]
    """95 % intervals by name of the score (`edges_at.90`, `floor.kl`), and per count for the curves. Intervals of
    scores that are interpolated between edge counts include the error of the grid. Null where fewer than 20 prompts
    were scored, which are not enough, and where some resamples never reach the level."""
    prompts: PromptCurves
    hashes: dict[str, str] = {}
    """Digests of the weights: `lm`, `up` and `down`; for a circuit `lm` and each site."""
    trained: dict[str, Trained] = {}
    """How long the SAEs were trained, by the same names; only for SAEs whose files say."""
    config: dict[str, Any]
    """Prompts, context, edge grid: everything that a rerun needs in addition to the SAEs."""
    versions: dict[str, str | None]
    data: dict[str, Any]
    """Source of the ranking and scoring texts, with fingerprints."""
    seconds: float
    """Wall-clock time of ranking and sweep."""

    @property
    def poor_full_circuit(self) -> bool:
        """Whether the floor is more than half of the KL of the circuit without edges. Recovery scores, which compare
        with the full circuit, then describe the smaller part of what splicing costs.
        """
        return self.floor.kl > self.kl_model[0] / 2

    @property
    def key(self) -> tuple[str, str, str, str | None]:
        """The fields that identify a record within a run."""
        return self.block, self.method, self.ranking, self.control

    def curve(self) -> Table:
        """The curve, one row per edge count.

        Returns:
            `edges` (counts; for local edges, per token), `recovery` (1 - kl_circuit / kl_circuit without any edge),
            `kl_model`, `kl_circuit`, `faithfulness` (1 - kl_model / kl_mean), `live_edges` and `l0_down`. The first
            four scores have the ends of their 95 % intervals over prompts as `recovery_low`, `recovery_high` and so
            on, or None if the record has no intervals.
        """
        recovered = recovery(np.array(self.edges), np.array(self.kl_circuit)).tolist()
        columns: dict[str, list[Any]] = {"edges": self.edges}
        faithful = [1 - kl / self.kl_mean if self.kl_mean > 0 else 0.0 for kl in self.kl_model]
        curves = {"recovery": recovered, "kl_model": self.kl_model, "kl_circuit": self.kl_circuit}
        for name, values in (curves | {"faithfulness": faithful}).items():
            bands: Any = self.ci.get(name) or [(None, None)] * len(values)
            columns |= {name: values, f"{name}_low": [low for low, _ in bands], f"{name}_high": [up for _, up in bands]}
        columns |= {"live_edges": self.live_edges, "l0_down": self.l0_down}
        return Table(dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))

    def plot(self, of: str = "faithfulness", ax: Any = None) -> Any:
        """Draw a column of the curve with Matplotlib, with its 95 % interval. Returns the axes.

        Args:
            of: `faithfulness`, `recovery`, `kl_model`, `kl_circuit`, `live_edges` or `l0_down`.
            ax: axes to draw on, such as those of another record; None creates new ones.

        Raises:
            UserError: Matplotlib is not installed, or the curve has no such column.
        """
        return draw(self.curve(), of, f"{self.method}, {self.ranking}", ax, per_token=self.scope == "local")

    def __str__(self) -> str:
        control = f", {self.control}" if self.control else ""
        n, interval = self.faithful_at["80"], self.ci.get("faithful_at.80")
        between = "" if not interval else " [{:,.0f}, {:,.0f}]".format(*interval)
        needed = "80 % faithfulness not reached" if n is None else f"80 % faithfulness at {n:,.0f}{between} edges"
        unit = " a token" if self.scope == "local" else f" of {self.n_edges:,}"
        return f"{self.block}, {self.method}, {self.ranking}{control}: {needed}{unit}"

    def __repr__(self) -> str:
        return f"Record({self})"


class Results(BaseModel):
    """The content of `results.json`."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[5] = SCHEMA_VERSION
    written_by: str = WRITER
    """The package and version that last wrote the file."""
    records: list[Record] = Field(default_factory=list[Record])
    saes: list[SaeFidelity] = Field(default_factory=list[SaeFidelity])
    spliced: list[SplicedFidelity] = Field(default_factory=list[SplicedFidelity])
    seeds: list[SeedAgreement] = Field(default_factory=list[SeedAgreement])
    duplicates: list[Duplicates] = Field(default_factory=list[Duplicates])
    absorption: list[SaeAbsorption] = Field(default_factory=list[SaeAbsorption])
    probes: list[SaeProbes] = Field(default_factory=list[SaeProbes])
    reading: list[SaeReading] = Field(default_factory=list[SaeReading])

    def under(self, ranking: str) -> list[Record]:
        """The records of pairs under one ranking, without controls."""
        return [record for record in self.records if record.ranking == ranking and record.control is None]

    def table(self) -> Table:
        """The scores, one row per record.

        Returns:
            The record's `block`, `method`, `ranking` and `control`; `faithful_at_50`, `faithful_at_80` with the ends of
            its 95 % interval, and `faithful_at_90`; `edges_at_50`, `edges_at_90` and `edges_at_99` (None where a level
            is not reached); `poor_full_circuit`, where `edges_at` means little; `unfaithful_area`, `log_area`,
            `absolute`, `relative`, `pure`, `n_edges`, `n_live_edges`, `lowest_recovery`, `floor_kl`,
            `largest_rise_mean` and `largest_rise_most` (nats). docs/results.md defines them.
        """
        rows = Table()
        for record in self.records:
            low, high = record.ci.get("faithful_at.80") or (None, None)
            of = {name: getattr(record, name) for name in ("block", "method", "ranking", "control")}
            at = {f"faithful_at_{q}": n for q, n in record.faithful_at.items()}
            at |= {"faithful_at_80_low": low, "faithful_at_80_high": high}
            at |= {f"edges_at_{q}": n for q, n in record.edges_at.items()}
            at |= {"poor_full_circuit": record.poor_full_circuit, "unfaithful_area": record.unfaithful_area}
            names = ("log_area", "absolute", "relative", "pure", "n_edges", "n_live_edges", "lowest_recovery")
            nats = {"floor_kl": record.floor.kl}
            nats |= {"largest_rise_mean": record.largest_rise.mean, "largest_rise_most": record.largest_rise.most}
            rows.append({**of, **at, **{n: getattr(record, n) for n in names}, **nats})
        return rows

    def __repr__(self) -> str:
        measured = {name: len(getattr(self, name)) for name in type(self).model_fields if name not in _NO_RECORDS}
        return f"Results({', '.join(f'{n} {name}' for name, n in measured.items() if n) or 'nothing yet'})"

    __str__ = __repr__

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        write_json(path, {**self.model_dump(mode="json"), "written_by": WRITER})

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read a results file.

        Raises:
            UserError: there is none, it is damaged, it has another version, or it does not follow the schema.
        """
        missing, older = "no results here; score or measure something first", "move it away, score and measure again"
        found = read_json(path, cls, missing, older)
        try:
            check(found)
        except UserError as error:
            raise UserError(f"{path}: {error}; {RESTORE}") from error
        return found

    @classmethod
    def read_if_there(cls, path: Path) -> "Results":
        """Read a results file; empty results if there is none.

        Raises:
            UserError: as `read`.
        """
        return cls.read(path) if os.path.lexists(path) else cls()

    @classmethod
    def update(cls, path: Path, change: Callable[["Results"], None]) -> "Results":
        """Change a results file under a lock, so that what other processes wrote is kept.

        Args:
            path: the file, which need not exist.
            change: called with the file's current content. No other process changes the file until it is written.

        Returns:
            The content that was written.

        Raises:
            UserError: as `read`, another process holds the file for a minute, or it cannot be written.
        """
        with held(path.parent, path.name, wait=60.0, remedy="run the command again when that one has ended"):
            results = cls.read_if_there(path)
            change(results)
            results.write(path)
        return results

    def put(self, records: Sequence[Record]) -> None:
        """Add records. They replace records with the same key."""
        new = {record.key for record in records}
        self.records = [old for old in self.records if old.key not in new] + list(records)
