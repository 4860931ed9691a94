"""Are two sets of SAEs different? Ratios of a score, block by block and over blocks, with paired intervals.

Both sets were scored on the same prompts, so each resample (resampled.py) draws the same prompts for both. The interval
of the ratio is therefore narrower than the intervals of the two scores. Over blocks, ratios are averaged geometrically:
an arithmetic mean would mostly show the block with the largest ratio.

The error of the grid of edge counts is part of the interval. In every resample and at every block, the least ratio is
the least score over the most that the baseline's score could be. A ratio is unknown in a resample where a curve never
reaches the score. If it is unknown in more resamples than lie beyond an end of the interval, this end is not known.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from scalar_sae.errors import UserError, unknown
from scalar_sae.lm.special import listed
from scalar_sae.records.results import Record
from scalar_sae.scoring import metrics
from scalar_sae.scoring.intervals import FEW_PROMPTS
from scalar_sae.scoring.resampled import (
    LEAST,
    MOST,
    VALUE,
    Ends,
    Resampled,
    Reseeding,
    interval_of_exponential,
    logarithm,
    mean_over_blocks,
    of_halves,
    over_seeds,
)

HEADLINE = "faithful_at.80"
"""The score that is compared if none is named."""

RECOVERY = ("log_area", *(f"{kind}.{q}" for kind in ("edges_at", "live_edges_at", "dip") for q, _ in metrics.QUANTILES))
"""Scores that compare with the full circuit of the pair itself."""


EDGE_COUNTS = ("edges_at.", "faithful_at.", "faithful_from.")
"""What the names of scores begin with that are numbers of edges."""


@dataclass(frozen=True)
class Ratio:
    """A score of some SAEs over that of the baseline; infinite where only the baseline reaches it, NaN where neither
    does.
    """

    block: str
    method: str
    value: float
    interval: Ends | None
    """95 % over prompts, over SAE seeds where there are several, and over what the grid of edge counts leaves open.
    None where neither end is known, or where there are fewer than 20 prompts.
    """
    do_nothing: float | None
    """What two identical curves would give: not 1 where the score is divided by the number of possible edges."""
    paired: bool
    """Whether both were scored on the same prompts."""
    base_never: bool
    """Whether the baseline never reaches the score: the value is no ratio then."""
    n_prompts: int
    """The fewest prompts that one of the records was scored on."""
    n_blocks: int = 1
    """Blocks that the ratio is over."""
    poor_full_circuit: bool = False
    """Whether a recovery score of one of the records means little, because its floor is large."""

    @property
    def never(self) -> bool:
        """Whether one of the two never reaches the score, so that the value is no ratio."""
        return self.base_never or not np.isfinite(self.value)

    @property
    def few_prompts(self) -> bool:
        """Whether there are not enough prompts for an interval."""
        return self.n_prompts < FEW_PROMPTS


@dataclass(frozen=True)
class MethodScore:
    """A score of some SAEs at a block, or its geometric mean over blocks (`all ...`)."""

    block: str
    method: str
    value: float | None
    """Mean over SAE seeds; None where a block or a seed never reaches the score."""
    interval: Ends | None
    """95 %, as in `Ratio`."""
    n_seeds: int
    """The fewest seeds at one of the blocks."""


class Ratios(NamedTuple):
    """Ratios, and what could not be compared."""

    rows: list[Ratio]
    left_out: list[str]
    """Blocks and SAEs that are in no ratio, a sentence each that says why."""


@dataclass(frozen=True, eq=False)
class LogRatio:
    """The logarithm of the ratio of some SAEs to the baseline at one block, resample by resample."""

    block: str
    method: str
    logs: Resampled
    halves: Float[np.ndarray, " two"]
    """Logarithm of the ratio under the orders of either half of the ranking text; the ratio itself where they were not
    scored, or where no order moves the score.
    """
    reseeding: Reseeding
    """How uncertain it is over seeds."""
    nothing: float
    """The same of what two identical curves would give in `relative`."""
    paired: bool
    base_never: bool
    n_prompts: int
    poor_full_circuit: bool

    @property
    def kind(self) -> str:
        """The kind of the block, such as `ff_block`."""
        return self.block.split(".")[0]


Seeds = dict[tuple[str, str], list[Record]]
"""Records by block and method: those of one are of SAEs from several seeds."""


def ratios(records: list[Record], base: str, score: str = HEADLINE) -> Ratios:
    """Every method against `base`, per block, and over blocks (`all ...`) where there are several of a kind.

    Args:
        records: of one ranking; several of one block and method are of SAEs from several seeds.
        base: name of the baseline's SAEs.
        score: a score's name, as in a record's `ci`.

    Raises:
        UserError: no such score or too few prompts for it, no record of the baseline, no block in common with it, or
            records that do not compare.
    """
    seeds = by_block_and_method(records, base)
    found = [
        log_ratio(mine, seeds[block, base], score)
        for (block, method), mine in seeds.items()
        if method != base and (block, base) in seeds
    ]
    if not found:
        here, there = (", ".join(sorted({b for b, m in seeds if (m == base) is own})) for own in (True, False))
        raise UserError(f"no block in common with {base}: it has {here}, the others have {there or 'none'}")
    return Ratios(table(found, score), without_partner(seeds, base))


def method_scores(records: list[Record], score: str) -> list[MethodScore]:
    """A score of every method, per block, and over blocks where there are several of a kind.

    Args:
        records: of one ranking; several of one block and method are of SAEs from several seeds.
        score: a score's name, as in a record's `ci`.

    Raises:
        UserError: no records, no such score or too few prompts for it, or records that do not compare.
    """
    if not records:
        raise UserError(f"no records to take {score} from")
    seeds = by_block_and_method(records, records[0].method)
    with np.errstate(divide="ignore", invalid="ignore"):  # infinite where never reached
        over = {key: over_seeds(mine, score, logarithm) for key, mine in seeds.items()}
        halves = {key: of_halves(mine, score) for key, mine in seeds.items()}
    rows: list[MethodScore] = []
    for method, kind in dict.fromkeys((method, block.split(".")[0]) for block, method in seeds):
        blocks = [block for block, name in seeds if name == method and block.split(".")[0] == kind]
        groups = {block: [block] for block in blocks} | ({f"all {kind}": blocks} if len(blocks) > 1 else {})
        for where, some in groups.items():
            mean = np.mean([over[block, method][0] for block in some], 0)
            value = float(np.exp(mean[VALUE, 0]))
            n_prompts = min(len(one.prompts.floor_kl) for block in some for one in seeds[block, method])
            interval = interval_of_exponential(
                mean,
                np.mean([halves[block, method] for block in some], 0),
                mean_over_blocks([over[block, method][1] for block in some]),
                n_prompts,
            )
            n_edges = max(one.n_edges for block in some for one in seeds[block, method])
            rows.append(
                MethodScore(
                    block=where,
                    method=method,
                    value=value if np.isfinite(value) else None,
                    interval=_possible(interval, n_edges) if score.startswith(EDGE_COUNTS) else interval,
                    n_seeds=min(len(seeds[block, method]) for block in some),
                )
            )
    return rows


def _possible(interval: Ends | None, n_edges: int) -> Ends | None:
    """An interval of an edge count. An end above all possible edges is not known: such a pair never gets there."""
    if interval is None:
        return None
    low, high = interval
    return (low, None) if high is not None and high > n_edges else interval


def without_partner(seeds: Seeds, base: str) -> list[str]:
    """Blocks at which the baseline or another method of the same kind of block has no record."""
    said = [f"{block} of {method}: {base} has no record there" for block, method in seeds if (block, base) not in seeds]
    for method in dict.fromkeys(method for _, method in seeds if method != base):
        mine = {block for block, name in seeds if name == method}
        kinds = {block.split(".")[0] for block in mine}
        said += [
            f"{block} of {base}: {method} has no record there"
            for block, name in seeds
            if name == base and block not in mine and block.split(".")[0] in kinds
        ]
    return said


def by_block_and_method(records: list[Record], base: str) -> Seeds:
    """The records that are compared.

    Raises:
        UserError: they were scored in different ways, one of them is there twice, or none is of the baseline.
    """
    for setting in ("conventions", "ablation", "rank_halves"):
        values = list(dict.fromkeys(str(record.config.get(setting)) for record in records))
        if len(values) > 1:
            raise UserError(f"records with {setting} {' and '.join(values)} do not compare; score them alike")
    left_out = list(dict.fromkeys(tuple(record.special) if record.n_special else () for record in records))
    if len(left_out) > 1:
        said = " and ".join(f"with {listed(ids)} left out" if ids else "with none left out" for ids in left_out)
        raise UserError(f"records {said} do not compare; score them with one rule for special tokens (--special)")
    methods = list(dict.fromkeys(record.method for record in records))
    if base not in methods:
        raise unknown("baseline", base, methods)
    found: Seeds = {}
    for record in records:
        others = found.setdefault((record.block, record.method), [])
        if not all(_seeds(other, record) for other in others):
            raise UserError(
                f"several records of one block and method, {record.block} {record.method}, that are not SAEs of "
                "several seeds on one model; give one ranking and one file of each"
            )
        others.append(record)
    return found


def _seeds(a: Record, b: Record) -> bool:
    """Whether two records of one block and method are of different SAEs, as wide and on the same model."""
    alike = a.hashes.get("lm") == b.hashes.get("lm") and (a.n_up, a.n_down) == (b.n_up, b.n_down)
    return alike and a.hashes != b.hashes


def log_ratio(mine: list[Record], base: list[Record], score: str) -> LogRatio:
    """The ratio of two means over seeds, resample by resample."""
    with np.errstate(divide="ignore", invalid="ignore"):  # infinite where never reached, NaN where neither is
        reference, of_base = over_seeds(base, score, logarithm)
        logs, of_mine = over_seeds(mine, score, logarithm)
        logs = logs - reference[[VALUE, MOST, LEAST]]
        halves = of_halves(mine, score) - of_halves(base, score)
    nothing = [np.mean([np.log(record.n_edges) for record in records]) for records in (base, mine)]
    return LogRatio(
        block=mine[0].block,
        method=mine[0].method,
        logs=logs,
        halves=halves,
        reseeding=np.concatenate([of_mine, of_base]),
        nothing=float(nothing[0] - nothing[1]),
        paired=all(_same_text(base[0], record) for record in base + mine),
        base_never=bool(np.isposinf(reference[VALUE, 0])),
        n_prompts=min(len(record.prompts.floor_kl) for record in base + mine),
        poor_full_circuit=any(record.poor_full_circuit for record in base + mine),
    )


def table(found: list[LogRatio], score: str) -> list[Ratio]:
    """Method by method and kind by kind: the blocks, and where there are several their geometric mean."""
    rows: list[Ratio] = []
    for method in dict.fromkeys(one.method for one in found):
        of_method = [one for one in found if one.method == method]
        for kind in dict.fromkeys(one.kind for one in of_method):
            some = [one for one in of_method if one.kind == kind]
            rows += [_ratio(one.block, [one], score) for one in some]
            if len(some) > 1:
                rows.append(_ratio(f"all {kind}", some, score))
    return rows


def _ratio(block: str, some: list[LogRatio], score: str) -> Ratio:
    with np.errstate(invalid="ignore", over="ignore"):  # one never gets there in this block, the other in that
        logs = np.mean([one.logs for one in some], 0)
        value = np.exp(logs[VALUE, 0])
        halves = np.mean([one.halves for one in some], 0)
    parts = mean_over_blocks([one.reseeding for one in some])
    base_never, n_prompts = any(one.base_never for one in some), min(one.n_prompts for one in some)
    return Ratio(
        block=block,
        method=some[0].method,
        value=float(value),
        interval=None if base_never else interval_of_exponential(logs, halves, parts, n_prompts),
        do_nothing=float(np.exp(np.mean([one.nothing for one in some]))) if score == "relative" else None,
        paired=all(one.paired for one in some),
        base_never=base_never,
        n_prompts=n_prompts,
        n_blocks=len(some),
        poor_full_circuit=any(one.poor_full_circuit for one in some),
    )


def _same_text(a: Record, b: Record) -> bool:
    same = ("fingerprint", "scored_on", "prompts")
    prompts = ("prompts", "context")
    return (
        a.seed == b.seed
        and all(a.data.get(name) == b.data.get(name) for name in same)
        and all(a.config.get(name) == b.config.get(name) for name in prompts)
    )
