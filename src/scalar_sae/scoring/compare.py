"""Are two sets of SAEs different? Ratios of a score, block by block and over blocks, with paired intervals.

Both were scored on the same prompts, so each resample draws the same prompts for both and the ratio's interval is
narrower than the scores' own. Over blocks the ratios are averaged geometrically: a sum would be its largest block.
SAEs of one method from several seeds count as one entry, the mean of its log scores; a resample draws seeds too.

What a grid of edge counts leaves open is part of the interval: the least ratio is the least score over the baseline's
most, in every resample, at every block. A resample may leave a ratio open altogether, since a curve never reaches the
score or a family does not reach the baseline's floor. If more resamples do than an interval leaves out, its end is not
known.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from scalar_sae.errors import UserError, unknown
from scalar_sae.lm.special import listed
from scalar_sae.records.results import Record
from scalar_sae.scoring import metrics
from scalar_sae.scoring.intervals import FEW_FOR_99, FEW_PROMPTS, ends, enough, resamples, widen

FAMILY = re.compile(r"(.+?)-(?:k|lambda|l0-?)([0-9.e+-]+)$")
"""Names of SAEs of one method at several sparsities: `topk-k10`, `jacobian-lambda0.01`."""

HEADLINE = "faithful_at.80"
"""The score that is compared if none is named."""

RECOVERY = ("log_area", *(f"{kind}.{q}" for kind in ("edges_at", "live_edges_at", "dip") for q, _ in metrics.QUANTILES))
"""Scores that compare with the full circuit of the pair itself."""

Resampled = Float[np.ndarray, "3 one_and_resamples"]
"""A score, the least and the most that it could be on a finer grid; of all prompts, then of each resample of them."""
VALUE, LEAST, MOST = 0, 1, 2
"""Rows of `Resampled`."""

Ends = tuple[float | None, float | None]
"""Both ends of an interval; None for one that is not known."""


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
class Level:
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
class _Beside:
    """Some SAEs beside the baseline at one block."""

    block: str
    method: str
    logs: Resampled
    """Logarithm of the ratio."""
    halves: Float[np.ndarray, " two"]
    """Logarithm of the ratio under the orders of either half of the ranking text; the ratio itself where they were not
    scored, or where no order moves the score.
    """
    nothing: float
    """The same of what two identical curves would give in `relative`."""
    paired: bool
    base_never: bool
    n_prompts: int
    poor_full_circuit: bool

    @property
    def kind(self) -> str:
        """Of the block."""
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
    seeds = _by_block_and_method(records, base)
    found = [
        _beside(mine, seeds[block, base], score)
        for (block, method), mine in seeds.items()
        if method != base and (block, base) in seeds
    ]
    if not found:
        here, there = (", ".join(sorted({b for b, m in seeds if (m == base) is own})) for own in (True, False))
        raise UserError(f"no block in common with {base}: it has {here}, the others have {there or 'none'}")
    return Ratios(_table(found, score), _without_partner(seeds, base))


def levels(records: list[Record], score: str) -> list[Level]:
    """A score of every method, per block, and over blocks where there are several of a kind.

    Args:
        records: of one ranking; several of one block and method are of SAEs from several seeds.
        score: a score's name, as in a record's `ci`.

    Raises:
        UserError: no records, no such score or too few prompts for it, or records that do not compare.
    """
    if not records:
        raise UserError(f"no records to take {score} from")
    seeds = _by_block_and_method(records, records[0].method)
    with np.errstate(divide="ignore", invalid="ignore"):  # infinite where never reached
        logs = {key: _over_seeds(mine, score, _logarithm) for key, mine in seeds.items()}
        halves = {key: _of_halves(mine, score) for key, mine in seeds.items()}
    rows: list[Level] = []
    for method, kind in dict.fromkeys((method, block.split(".")[0]) for block, method in seeds):
        blocks = [block for block, name in seeds if name == method and block.split(".")[0] == kind]
        groups = {block: [block] for block in blocks} | ({f"all {kind}": blocks} if len(blocks) > 1 else {})
        for where, some in groups.items():
            mean = np.mean([logs[block, method] for block in some], 0)
            value = float(np.exp(mean[VALUE, 0]))
            n_prompts = min(len(one.prompts.floor_kl) for block in some for one in seeds[block, method])
            rows.append(
                Level(
                    block=where,
                    method=method,
                    value=value if np.isfinite(value) else None,
                    interval=_ends(mean, np.mean([halves[block, method] for block in some], 0), n_prompts),
                    n_seeds=min(len(seeds[block, method]) for block in some),
                )
            )
    return rows


def _without_partner(seeds: Seeds, base: str) -> list[str]:
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


def at_matched_fidelity(records: list[Record], base: str, score: str = HEADLINE) -> Ratios:
    """Families over k or lambda (`topk-k5`, `topk-k10`, ...) against the baseline at the baseline's own floor.

    The logarithm of the score is interpolated linearly in KL(full model || full circuit) between the two members that
    enclose it. A block whose family does not enclose that floor is left out. In a resample of the prompts where it does
    not, the ratio is not known.

    Raises:
        UserError: no such baseline, no family that encloses its floor, or records that do not compare.
    """
    seeds = _by_block_and_method(records, base)
    families: dict[tuple[str, str], list[list[Record]]] = {}
    for (block, method), mine in seeds.items():
        name = FAMILY.match(method)
        if name and method != base and (block, base) in seeds:
            families.setdefault((name[1], block), []).append(mine)
    left_out = _without_partner(seeds, base)
    others = dict.fromkeys(method for _, method in seeds if method != base and not FAMILY.match(method))
    left_out += [f"{method}: its name says no k, lambda or l0, so it is in no family" for method in others]
    found: list[_Beside] = []
    for (family, block), members in families.items():
        floors, wanted = [_floor(member) for member in members], _floor(seeds[block, base])
        if len(members) > 1 and min(floors) <= wanted <= max(floors):
            found.append(_interpolated(family, members, seeds[block, base], score))
        else:
            there = f"{min(floors):.3g}" + (f" to {max(floors):.3g}" if len(members) > 1 else " alone")
            left_out.append(f"{block} of {family}: floors of {there} nats do not enclose that of {base}, {wanted:.3g}")
    if not found:
        raise UserError(
            f"no family of SAEs (names such as topk-k5, topk-k10) encloses the fidelity of {base} anywhere: "
            + "; ".join(left_out)
        )
    return Ratios(_table(found, score), left_out)


def _floor(records: list[Record]) -> float:
    """Mean over seeds of KL(full model || full circuit)."""
    return fmean(np.average(record.prompts.floor_kl, weights=record.prompts.n_tokens) for record in records)


def _by_block_and_method(records: list[Record], base: str) -> Seeds:
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


def _beside(mine: list[Record], base: list[Record], score: str) -> _Beside:
    """The ratio of two means over seeds, resample by resample."""
    with np.errstate(divide="ignore", invalid="ignore"):  # infinite where never reached, NaN where neither is
        reference = _over_seeds(base, score, _logarithm)
        logs = _over_seeds(mine, score, _logarithm) - reference[[VALUE, MOST, LEAST]]
        halves = _of_halves(mine, score) - _of_halves(base, score)
    nothing = [np.mean([np.log(record.n_edges) for record in records]) for records in (base, mine)]
    return _Beside(
        block=mine[0].block,
        method=mine[0].method,
        logs=logs,
        halves=halves,
        nothing=float(nothing[0] - nothing[1]),
        paired=all(_same_text(base[0], record) for record in base + mine),
        base_never=bool(np.isposinf(reference[VALUE, 0])),
        n_prompts=min(len(record.prompts.floor_kl) for record in base + mine),
        poor_full_circuit=any(record.poor_full_circuit for record in base + mine),
    )


def _interpolated(family: str, members: list[list[Record]], base: list[Record], score: str) -> _Beside:
    """A family at the baseline's floor; NaN in resamples where it does not enclose it."""
    wanted = _over_seeds(base, "floor.kl", _resampled)[VALUE]
    floors = np.stack([_over_seeds(member, "floor.kl", _resampled)[VALUE] for member in members])
    each = [_beside(member, base, score) for member in members]
    logs, nothing = np.stack([one.logs for one in each]), np.array([one.nothing for one in each])
    order = floors.argsort(0)
    halves = np.stack([one.halves for one in each])[order[:, 0]]
    nothing, floors = nothing[order[:, 0]], np.take_along_axis(floors, order, 0)
    logs = np.take_along_axis(logs, order[:, None], 0)
    return replace(
        each[0],
        method=family,
        logs=np.array(
            [
                [np.interp(w, f, value, np.nan, np.nan) for w, f, value in zip(wanted, floors.T, some.T, strict=True)]
                for some in logs.swapaxes(0, 1)
            ]
        ),
        halves=np.array([np.interp(wanted[0], floors[:, 0], half) for half in halves.T]),
        nothing=float(np.interp(wanted[0], floors[:, 0], nothing)),
        paired=all(one.paired for one in each),
        n_prompts=min(one.n_prompts for one in each),
        poor_full_circuit=any(one.poor_full_circuit for one in each),
    )


def _table(found: list[_Beside], score: str) -> list[Ratio]:
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


def _ratio(block: str, some: list[_Beside], score: str) -> Ratio:
    with np.errstate(invalid="ignore", over="ignore"):  # one never gets there in this block, the other in that
        logs = np.mean([one.logs for one in some], 0)
        value = np.exp(logs[VALUE, 0])
        halves = np.mean([one.halves for one in some], 0)
    base_never, n_prompts = any(one.base_never for one in some), min(one.n_prompts for one in some)
    return Ratio(
        block=block,
        method=some[0].method,
        value=float(value),
        interval=None if base_never else _ends(logs, halves, n_prompts),
        do_nothing=float(np.exp(np.mean([one.nothing for one in some]))) if score == "relative" else None,
        paired=all(one.paired for one in some),
        base_never=base_never,
        n_prompts=n_prompts,
        n_blocks=len(some),
        poor_full_circuit=any(one.poor_full_circuit for one in some),
    )


def _ends(logs: Resampled, halves: Float[np.ndarray, " two"], n_prompts: int) -> Ends | None:
    """The interval of a ratio from its logarithm, NaN where that is not known."""
    one, two = halves
    if n_prompts < FEW_PROMPTS or not (one == two or np.isfinite([one, two, logs[VALUE, 0]]).all()):
        return None
    least, most = logs[[LEAST, MOST], 1:]
    found = ends(np.where(np.isnan(least), -np.inf, least), np.where(np.isnan(most), np.inf, most), n_prompts)
    found = widen(found, logs[VALUE, 0], one, two)
    low, high = (float(np.exp(end)) if np.isfinite(end) else None for end in found)
    return None if low is None and high is None else (low, high)


def _of_halves(records: list[Record], score: str) -> Float[np.ndarray, " two"]:
    """Mean over seeds of the logarithm of a score under the orders of either half of the ranking text; zero where no
    half moves it. Infinite where one never reaches it.
    """
    each = [record.rank_halves.get(score, (1.0, 1.0)) for record in records]
    return np.log([[np.inf if value is None else value for value in both] for both in each]).mean(0)


def _over_seeds(records: list[Record], score: str, of: Callable[[Record, str], Resampled]) -> Resampled:
    """Mean over SAE seeds of a score or its logarithm; in a resample over as many seeds, drawn with replacement, the
    same ones at every block.
    """
    each = np.stack([of(record, score) for record in records], -1)
    n = len(records)
    draws = np.random.default_rng([records[0].seed, n]).integers(n, size=(each.shape[1] - 1, n))
    return np.take_along_axis(each, np.concatenate([np.arange(n)[None], draws])[None], -1).mean(-1)


def _resampled(record: Record, score: str) -> Resampled:
    """A score of the record's prompts, then of each resample of them.

    Raises:
        UserError: no such score, or not enough prompts for it.
    """
    curves = record.prompts.arrays()
    n = len(record.prompts.floor_kl)
    draws = np.concatenate([np.arange(n)[None], resamples(n, record.seed)])
    every = metrics.every_score(np.array(record.edges), curves, record.n_live_edges, record.n_edges, draws)
    if score not in every:
        raise unknown("score", score, every)
    if not enough(score, n):
        raise UserError(
            f"{score} of {record.block} {record.method}: {n} prompts are not enough prompts, it needs {FEW_FOR_99}; "
            "score more prompts, or compare another score"
        )
    return np.stack(every[score])


def _logarithm(record: Record, score: str) -> Resampled:
    """Of the score.

    Raises:
        UserError: it has none.
    """
    values = _resampled(record, score)
    if values[VALUE, 0] <= 0:
        where = f"{record.block} {record.method}"
        raise UserError(f"{score} of {where} is {values[VALUE, 0]:.3g}: there are ratios of positive scores only")
    return np.log(values)


def _same_text(a: Record, b: Record) -> bool:
    same = ("fingerprint", "scored_on", "prompts")
    prompts = ("prompts", "context")
    return (
        a.seed == b.seed
        and all(a.data.get(name) == b.data.get(name) for name in same)
        and all(a.config.get(name) == b.config.get(name) for name in prompts)
    )
