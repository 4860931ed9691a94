"""Interpretability of an SAE's latents: one record per SAE, from its feature tables and from judges' answers.

    record = reading(folder)      # FEATURES/METHOD/SITE, as `scalar features` writes it

Scores are means over latents, with a bootstrap over latents, because another SAE would have other latents.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from scalar_sae.evaluation.features.judged import Judged, read_judged
from scalar_sae.evaluation.features.tables import LENGTHS, read_counted, read_table
from scalar_sae.io import SETTINGS, read_plain
from scalar_sae.readers import checked
from scalar_sae.records.results import Results
from scalar_sae.records.sae_results import JudgedBy, MeanScore, SaeReading, TextRead
from scalar_sae.scoring.intervals import interval


def reading(folder: Path) -> SaeReading:
    """The scores of the SAE whose feature tables are in a folder."""
    f1, counted = np.stack(read_table(folder, "latents")["rule_f1"].to_pylist()), read_counted(folder)
    judges: dict[str, list[Judged]] = {}
    for row in read_judged(folder):
        judges.setdefault(json.dumps(row.judge, sort_keys=True), []).append(row)
    method, site = folder.resolve().parts[-2:]
    return SaeReading(
        method=method,
        site=site,
        text=_text(folder.resolve().parent / SETTINGS),
        n_tokens=counted.n_tokens,
        n_special=counted.n_special,
        rule_f1={n: _mean(f1[:, number]) for number, n in enumerate(LENGTHS)},
        judged=[
            JudgedBy(
                judge=rows[0].judge,
                detection=_mean(np.array([row.detection for row in rows], dtype=float)),
                fuzzing=_mean(np.array([row.fuzzing for row in rows], dtype=float)),
            )
            for rows in judges.values()
        ],
    )


def _text(settings: Path) -> TextRead | None:
    """The text that tables were made on, if a file beside them records it."""
    if not settings.is_file():
        return None
    text = read_plain(settings).get("text")
    return None if text is None else checked(settings, json.dumps(text), TextRead)


def keep_reading(path: Path, found: Sequence[SaeReading]) -> None:
    """Write records into a results file. They replace older records of the same SAEs."""
    new = {(record.method, record.site) for record in found}

    def put(results: Results) -> None:
        results.reading = [old for old in results.reading if (old.method, old.site) not in new] + list(found)

    Results.update(path, put)


def _mean(scores: Float[np.ndarray, " latent"], n_resamples: int = 1000) -> MeanScore:
    """Mean of the scores that exist. NaN marks a missing score."""
    there = scores[~np.isnan(scores)]
    n = len(there)
    rng = np.random.default_rng(0)
    drawn = np.array([there[rng.integers(n, size=n)].mean() for _ in range(n_resamples)]) if n > 1 else None
    return MeanScore(
        mean=float(there.mean()) if n else None,
        ci=None if drawn is None else interval(n, drawn),
        n=n,
        n_null=len(scores) - n,
    )
