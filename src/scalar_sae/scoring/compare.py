"""Are two sets of SAEs different? Ratios of a score, block by block and over blocks, with paired intervals.

Both were scored on the same prompts, so each resample draws the same prompts for both and the ratio's interval is
narrower than the scores' own. Over blocks the ratios are averaged geometrically: a sum would be its largest block.
SAEs of one method from several seeds count as one entry, the mean of its log scores; a resample draws seeds too.

What a grid of edge counts leaves open is part of the interval: the least ratio is the least score over the baseline's
most, in every resample, at every block.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from scalar_sae.errors import UserError, unknown
from scalar_sae.lm.special import listed
from scalar_sae.records.results import Record
from scalar_sae.records.sae_results import Interval
from scalar_sae.scoring import metrics

FAMILY = re.compile(r"(.+?)-(?:k|lambda|l0-?)([0-9.e+-]+)$")
"""Names of SAEs of one method at several sparsities: `topk-k10`, `jacobian-lambda0.01`."""

Resampled = Float[np.ndarray, "3 one_and_resamples"]
"""A score, the least and the most that it could be on a finer grid; of all prompts, then of each resample of them."""
VALUE, LEAST, MOST = 0, 1, 2
"""Rows of `Resampled`."""


@dataclass(frozen=True)
class Ratio:
    """A score of some SAEs over that of the baseline; infinite where only the baseline reaches it, NaN where neither
    does.
    """

    block: str
    method: str
    value: float
    interval: Interval | None
    """95 % over prompts, over SAE seeds where there are several, and over what the grid of edge counts leaves open."""
    do_nothing: float | None
    """What two identical curves would give: not 1 where the score is divided by the number of possible edges."""
    paired: bool
    """Whether both were scored on the same prompts."""
    base_never: bool
    """Whether the baseline never reaches the score: the value is no ratio then."""


@dataclass(frozen=True, eq=False)
class _Beside:
    """Some SAEs beside the baseline at one block."""

    block: str
    method: str
    logs: Resampled
    """Logarithm of the ratio."""
    nothing: float
    """The same of what two identical curves would give in `relative`."""
    paired: bool
    base_never: bool

    @property
    def kind(self) -> str:
        """Of the block."""
        return self.block.split(".")[0]


Seeds = dict[tuple[str, str], list[Record]]
"""Records by block and method: those of one are of SAEs from several seeds."""


def ratios(records: list[Record], base: str, score: str = "edges_at.90") -> list[Ratio]:
    """Every method against `base`, per block, and over blocks (`all ...`) where there are several of a kind.

    Args:
        records: of one ranking; several of one block and method are of SAEs from several seeds.
        base: name of the baseline's SAEs.
        score: a score's name, as in a record's `ci`.

    Raises:
        UserError: no such score, no record of the baseline, no block in common with it, or records that do not compare.
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
    return _table(found, score)


def at_matched_fidelity(records: list[Record], base: str, score: str = "edges_at.90") -> list[Ratio]:
    """Families over k or lambda (`topk-k5`, `topk-k10`, ...) against the baseline at the baseline's own floor.

    The logarithm of the score is interpolated linearly in KL(full model || full circuit) between the two members that
    enclose it; a block whose family does not reach that floor is left out.

    Raises:
        UserError: no such baseline, no family that encloses its floor, or records that do not compare.
    """
    seeds = _by_block_and_method(records, base)
    families: dict[tuple[str, str], list[list[Record]]] = {}
    for (block, method), mine in seeds.items():
        name = FAMILY.match(method)
        if name and method != base and (block, base) in seeds:
            families.setdefault((name[1], block), []).append(mine)
    found: list[_Beside] = []
    for (family, block), members in families.items():
        one = _interpolated(family, members, seeds[block, base], score)
        if one is not None:
            found.append(one)
    if not found:
        raise UserError(f"no family of SAEs (names such as topk-k5, topk-k10) encloses the fidelity of {base} anywhere")
    return _table(found, score)


def _by_block_and_method(records: list[Record], base: str) -> Seeds:
    """The records that are compared.

    Raises:
        UserError: they were scored in different ways, one of them is there twice, or none is of the baseline.
    """
    for setting in ("conventions", "ablation"):
        values = list(dict.fromkeys(str(record.config.get(setting)) for record in records))
        if len(values) > 1:
            raise UserError(f"records with {setting} {' and '.join(values)} do not compare; score them alike")
    left_out = list(dict.fromkeys(tuple(record.special) if record.n_special else () for record in records))
    if len(left_out) > 1:
        said = " and ".join(f"with tokens {listed(ids)} left out" if ids else "with none left out" for ids in left_out)
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
    nothing = [np.mean([np.log(record.n_edges) for record in records]) for records in (base, mine)]
    return _Beside(
        block=mine[0].block,
        method=mine[0].method,
        logs=logs,
        nothing=float(nothing[0] - nothing[1]),
        paired=all(_same_text(base[0], record) for record in base + mine),
        base_never=bool(np.isposinf(reference[VALUE, 0])),
    )


def _interpolated(family: str, members: list[list[Record]], base: list[Record], score: str) -> _Beside | None:
    """A family at the baseline's floor; None where it does not enclose it."""
    wanted = _over_seeds(base, "floor.kl", _resampled)[VALUE]
    floors = np.stack([_over_seeds(member, "floor.kl", _resampled)[VALUE] for member in members])
    if len(members) < 2 or not floors[:, 0].min() <= wanted[0] <= floors[:, 0].max():
        return None
    each = [_beside(member, base, score) for member in members]
    logs, nothing = np.stack([one.logs for one in each]), np.array([one.nothing for one in each])
    order = floors.argsort(0)
    nothing, floors = nothing[order[:, 0]], np.take_along_axis(floors, order, 0)
    logs = np.take_along_axis(logs, order[:, None], 0)
    return replace(
        each[0],
        method=family,
        logs=np.array(
            [
                [np.interp(w, f, value) for w, f, value in zip(wanted, floors.T, some.T, strict=True)]
                for some in logs.swapaxes(0, 1)
            ]
        ),
        nothing=float(np.interp(wanted[0], floors[:, 0], nothing)),
        paired=all(one.paired for one in each),
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
        value, least, most = np.exp(np.mean([one.logs for one in some], 0))
    least, most = (np.where(np.isnan(end[1:]), np.inf, end[1:]) for end in (least, most))
    base_never = any(one.base_never for one in some)
    return Ratio(
        block=block,
        method=some[0].method,
        value=float(value[0]),
        interval=None if base_never else metrics.interval(least, most),
        do_nothing=float(np.exp(np.mean([one.nothing for one in some]))) if score == "relative" else None,
        paired=all(one.paired for one in some),
        base_never=base_never,
    )


def _over_seeds(records: list[Record], score: str, of: Callable[[Record, str], Resampled]) -> Resampled:
    """Mean over SAE seeds of a score or its logarithm; in a resample over as many seeds, drawn with replacement, the
    same ones at every block.
    """
    each = np.stack([of(record, score) for record in records], -1)
    n = len(records)
    draws = np.random.default_rng([records[0].seed, n]).integers(n, size=(each.shape[1] - 1, n))
    return np.take_along_axis(each, np.concatenate([np.arange(n)[None], draws])[None], -1).mean(-1)


def _resampled(record: Record, score: str) -> Resampled:
    """A score of the record's prompts, then of each resample of them."""
    curves = record.prompts.arrays()
    n = len(record.prompts.floor_kl)
    draws = np.concatenate([np.arange(n)[None], metrics.resamples(n, record.seed)])
    every = metrics.every_score(np.array(record.edges), curves, record.n_live_edges, record.n_edges, draws)
    if score not in every:
        raise unknown("score", score, every)
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
