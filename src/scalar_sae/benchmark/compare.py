"""Are two sets of SAEs different? Ratios of a score, block by block and over blocks, with paired intervals.

Both were scored on the same prompts, so each resample draws the same prompts for both and the ratio's interval is
narrower than the scores' own. Over blocks the ratios are averaged geometrically: a sum would be its largest block.
"""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from scalar_sae.benchmark import scores
from scalar_sae.errors import UserError, unknown
from scalar_sae.results import Record
from scalar_sae.sae_results import Interval

FAMILY = re.compile(r"(.+?)-(?:k|lambda|l0-?)([0-9.e+-]+)$")
"""Names of SAEs of one method at several sparsities: `topk-k10`, `jacobian-lambda0.01`."""


@dataclass(frozen=True)
class Ratio:
    """A score of some SAEs over that of the baseline; NaN where neither reaches it."""

    block: str
    method: str
    value: float
    interval: Interval | None
    """95 % over prompts."""
    do_nothing: float | None
    """What two identical curves would give: not 1 where the score is divided by the number of possible edges."""
    paired: bool
    """Whether both were scored on the same prompts."""


def ratios(records: list[Record], base: str, score: str = "edges_at.90") -> list[Ratio]:
    """Every method against `base`, per block, and over blocks (`all ...`) where there are several of a kind.

    Args:
        records: of one ranking.
        base: name of the baseline's SAEs.
        score: a score's name, as in a record's `ci`.

    Raises:
        UserError: no such score, or no record of the baseline.
    """
    by_key = {(record.block, record.method): record for record in records}
    if len(by_key) < len(records):
        raise UserError("several records of one block and method; give one ranking and one file of each")
    methods = list(dict.fromkeys(record.method for record in records))
    if base not in methods:
        raise unknown("baseline", base, methods)
    found: list[Ratio] = []
    for method in methods:
        both = [(by_key[r.block, base], r) for r in records if r.method == method != base and (r.block, base) in by_key]
        for kind in dict.fromkeys(record.block.split(".")[0] for _, record in both):
            of_kind = [(b, r) for b, r in both if r.block.split(".")[0] == kind]
            logs = [_log_ratio(_resampled(r, score), _resampled(b, score)) for b, r in of_kind]
            fair = [b.n_edges / r.n_edges if score == "relative" else None for b, r in of_kind]
            paired = [_same_text(b, r) for b, r in of_kind]
            found += [
                _ratio(r.block, method, log, nothing, same)
                for (_, r), log, nothing, same in zip(of_kind, logs, fair, paired, strict=True)
            ]
            if len(of_kind) > 1:
                nothing = float(np.exp(np.mean(np.log([n for n in fair if n])))) if all(fair) else None
                found.append(_ratio(f"all {kind}", method, _mean(logs), nothing, all(paired)))
    return found


def at_matched_fidelity(records: list[Record], base: str, score: str = "edges_at.90") -> list[Ratio]:
    """Families over k or lambda (`topk-k5`, `topk-k10`, ...) against the baseline at the baseline's own floor.

    The logarithm of the score is interpolated linearly in KL(full model || full circuit) between the two members that
    enclose it; a block whose family does not reach that floor is left out.

    Raises:
        UserError: no such baseline, or no family that encloses its floor.
    """
    baseline = {record.block: record for record in records if record.method == base}
    if not baseline:
        raise unknown("baseline", base, [record.method for record in records])
    families: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        name = FAMILY.match(record.method)
        if name and record.method != base and record.block in baseline:
            families.setdefault((record.block, name[1]), []).append(record)
    found: list[Ratio] = []
    for (block, family), members in families.items():
        reference = baseline[block]
        floors = np.stack([_resampled(member, "floor.kl") for member in members])
        logs = np.stack([_log_ratio(_resampled(m, score), _resampled(reference, score)) for m in members])
        wanted = _resampled(reference, "floor.kl")
        if len(members) < 2 or not floors[:, 0].min() <= wanted[0] <= floors[:, 0].max():
            continue
        order = floors.argsort(0)
        floors, logs = np.take_along_axis(floors, order, 0), np.take_along_axis(logs, order, 0)
        at = np.array([np.interp(w, f, value) for w, f, value in zip(wanted, floors.T, logs.T, strict=True)])
        same = all(_same_text(reference, member) for member in members)
        found.append(_ratio(block, family, at, None, same))
    if not found:
        raise UserError(f"no family of SAEs (names such as topk-k5, topk-k10) encloses the fidelity of {base} anywhere")
    return found


def _log_ratio(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """log(a / b): infinite where a score was never reached, NaN where neither was."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(a) - np.log(b)


def _mean(logs: list[Float[np.ndarray, " n"]]) -> Float[np.ndarray, " n"]:
    with np.errstate(invalid="ignore"):  # one method never gets there in this block, the other in that
        return np.mean(logs, 0)


def _resampled(record: Record, score: str) -> Float[np.ndarray, " one_and_resamples"]:
    """A score of the record's prompts, then of each resample of them."""
    curves = record.prompts.arrays()
    n = len(record.prompts.floor_kl)
    draws = np.concatenate([np.arange(n)[None], scores.resamples(n, record.seed)])
    every = scores.every_score(np.array(record.edges), curves, record.n_live_edges, record.n_edges, draws)
    if score not in every:
        raise unknown("score", score, every)
    return every[score]


def _same_text(a: Record, b: Record) -> bool:
    same = ("fingerprint", "scored_on")
    prompts = ("prompts", "context")
    return (
        a.seed == b.seed
        and all(a.data.get(name) == b.data.get(name) for name in same)
        and all(a.config.get(name) == b.config.get(name) for name in prompts)
    )


def _ratio(block: str, method: str, logs: Float[np.ndarray, " n"], do_nothing: float | None, paired: bool) -> Ratio:
    with np.errstate(over="ignore"):
        value = np.exp(logs)
    interval = scores.interval(np.where(np.isnan(value[1:]), np.inf, value[1:]))
    return Ratio(block, method, float(value[0]), interval, do_nothing, paired)
