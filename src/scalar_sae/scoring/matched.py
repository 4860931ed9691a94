"""Ratios at equal fidelity: families of SAEs over k or lambda, interpolated to the floor of the baseline."""

import re
from dataclasses import replace
from statistics import fmean

import numpy as np

from scalar_sae.errors import UserError
from scalar_sae.records.results import Record
from scalar_sae.scoring.compare import (
    HEADLINE,
    LogRatio,
    Ratios,
    by_block_and_method,
    log_ratio,
    table,
    without_partner,
)
from scalar_sae.scoring.resampled import VALUE, error_of_reseeding, over_seeds, resampled

FAMILY = re.compile(r"(.+?)-(?:k|lambda|l0-?)([0-9.e+-]+)$")
"""Names of SAEs of one method at several sparsities: `topk-k10`, `jacobian-lambda0.01`."""


def at_matched_fidelity(records: list[Record], base: str, score: str = HEADLINE) -> Ratios:
    """Families over k or lambda (`topk-k5`, `topk-k10`, ...) against the baseline at the baseline's own floor.

    The logarithm of the score is interpolated linearly in KL(full model || full circuit) between the two members that
    enclose it. A block whose family does not enclose that floor is left out. In a resample of the prompts where it does
    not, the ratio is not known.

    Raises:
        UserError: no such baseline, no family that encloses its floor, or records that do not compare.
    """
    seeds = by_block_and_method(records, base)
    families: dict[tuple[str, str], list[list[Record]]] = {}
    for (block, method), mine in seeds.items():
        name = FAMILY.match(method)
        if name and method != base and (block, base) in seeds:
            families.setdefault((name[1], block), []).append(mine)
    left_out = without_partner(seeds, base)
    others = dict.fromkeys(method for _, method in seeds if method != base and not FAMILY.match(method))
    left_out += [f"{method}: its name says no k, lambda or l0, so it is in no family" for method in others]
    found: list[LogRatio] = []
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
    return Ratios(table(found, score), left_out)


def _floor(records: list[Record]) -> float:
    """Mean over seeds of KL(full model || full circuit)."""
    return fmean(np.average(record.prompts.floor_kl, weights=record.prompts.n_tokens) for record in records)


def _interpolated(family: str, members: list[list[Record]], base: list[Record], score: str) -> LogRatio:
    """A family at the baseline's floor; NaN in resamples where it does not enclose it."""
    wanted = over_seeds(base, "floor.kl", resampled)[0][VALUE]
    floors = np.stack([over_seeds(member, "floor.kl", resampled)[0][VALUE] for member in members])
    each = [log_ratio(member, base, score) for member in members]
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
        reseeding=max((one.reseeding for one in each), key=error_of_reseeding),
        nothing=float(np.interp(wanted[0], floors[:, 0], nothing)),
        paired=all(one.paired for one in each),
        n_prompts=min(one.n_prompts for one in each),
        poor_full_circuit=any(one.poor_full_circuit for one in each),
    )
