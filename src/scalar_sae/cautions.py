"""Cautions: sentences on why the scores of a record may be unreliable. scoring/README.md has the limits and reasons."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from scalar_sae.records.results import Record
from scalar_sae.saes.methods.unverified import REMARK
from scalar_sae.scoring import metrics
from scalar_sae.scoring.intervals import FEW_PROMPTS, enough

LARGE_FLOOR = 1.0
"""Limit in nats."""
FEW_STEPS = 1000
FEW_TOKENS = 100
"""Limit in tokens per latent."""
DEEP = 0.01
"""Fall of recovery below 90 %, or of faithfulness below 80 %, from which it is reported."""
SHORT = 2
"""Times as many edges under the order of half of the ranking text, from which the text is reported as short."""
POOR = "†"
"""Marks recovery scores that are measured against a poor full circuit."""
WORSE = -0.1
"""Recovery below which circuits are reported as worse than no edges."""


def cautions(record: Record) -> list[str]:
    """Reasons why the scores of a record may be unreliable; empty if none is known."""
    return [*_of_text(record), *_of_ranking(record), *_of_floor(record), *_of_curve(record), *_of_training(record)]


def dips(record: Record) -> bool:
    """Whether faithfulness falls clearly below 80 % after it first reached it."""
    faithful = metrics.faithfulness(np.array(record.kl_model), record.kl_mean)
    return float(metrics.dip(faithful, 0.8)) > DEEP


def cautions_of(records: Sequence[Record]) -> list[str]:
    """The cautions of a table's records, each once, with the SAEs and blocks that it applies to."""
    found: dict[str, list[Record]] = {}
    for record in records:
        for sentence in cautions(record):
            found.setdefault(sentence, []).append(record)
    if len(records) == 1:
        return list(found)
    return [f"{sentence} ({_which(some, records)})" for sentence, some in found.items()]


def _of_text(record: Record) -> Iterator[str]:
    n = len(record.prompts.floor_kl)
    if n < FEW_PROMPTS:
        were = "prompt was" if n == 1 else "prompts were"
        yield f"Only {n} {were} scored: not enough prompts for 95 % intervals, which need {FEW_PROMPTS}."
    if record.data.get("seen") == "trained on":
        yield "The SAEs were trained on the text that was ranked or scored: scores on new text may be worse."


def _of_ranking(record: Record) -> Iterator[str]:
    edges, halves = record.faithful_at["80"], record.rank_halves.get("faithful_at.80", ())
    if edges is not None and any(half is None or half > SHORT * edges for half in halves):
        yield (
            f"Half of the ranking text gives more than {SHORT} times as many edges: the ranking text is short, and a "
            "longer one would give fewer edges."
        )


def _of_floor(record: Record) -> Iterator[str]:
    if record.poor_full_circuit:
        yield (
            f"The floor is more than half of the KL of the circuit without edges: the full circuit, against which "
            f"recovery scores (marked {POOR}) are measured, is itself poor."
        )
    if record.floor.kl > LARGE_FLOOR:
        yield f"The floor is above {LARGE_FLOOR:g} nat: even the circuit with all edges predicts unlike the model."


def _of_curve(record: Record) -> Iterator[str]:
    if record.faithful_at["80"] is None:
        most = "because of the floor" if record.floor.kl > 0.2 * record.kl_mean else "at any count of the curve"
        yield f"Faithfulness never reaches 80 %, {most}."
    if dips(record):
        yield "Faithfulness falls below 80 % again at a larger count than faithful@80."
    n_prompts = len(record.prompts.floor_kl)
    missed = [q for q, edges in record.edges_at.items() if edges is None and enough(f"edges_at.{q}", n_prompts)]
    if missed:
        yield f"Recovery never reaches {min(missed, key=int)} %, however many of the curve's edges are kept."
    if record.edges[-1] < record.n_edges:
        yield "The curve stops before all edges: what more edges recover is not known."
    if record.dip["90"] is not None and record.dip["90"] > DEEP:
        yield "Recovery falls below 90 % again at a larger count than edges@90."
    if record.lowest_recovery < WORSE:
        yield f"Recovery falls below {WORSE:g}: some sub-circuits are worse than the circuit without any edge."


def _of_training(record: Record) -> Iterator[str]:
    if not record.trained:
        return
    if any(one.unverified for one in record.trained.values()):
        yield f"The method {REMARK}: its score may differ from that of the paper's method."
    for one in dict.fromkeys(one for one in record.trained.values() if one.missed):
        yield f"An SAE has an L0 of {one.l0:.1f} on training text where {one.wanted_l0:g} was asked for."
    steps = min(one.steps for one in record.trained.values())
    tokens = min(one.tokens / one.latents for one in record.trained.values())
    if steps < FEW_STEPS:
        yield f"The SAEs were trained for {steps:,} steps: below {FEW_STEPS:,} a score says little about the method."
    if tokens < FEW_TOKENS:
        yield (
            f"The SAEs were trained on {tokens:,.1f} tokens a latent: below {FEW_TOKENS} a score says little about the "
            "method."
        )


def _which(some: Sequence[Record], records: Sequence[Record]) -> str:
    """Describe some rows of a table by their SAEs, and by ranking and blocks if only some rows of these SAEs are
    meant.
    """
    if len(some) == len(records):
        return "all rows"
    words: list[str] = []
    for method in dict.fromkeys(record.method for record in some):
        mine, every = ([record for record in rows if record.method == method] for rows in (some, records))
        if len(mine) == len(every):
            words.append(method)
            continue
        for ranking in dict.fromkeys(map(_ranking, mine)):
            blocks, there = ([row.block for row in rows if _ranking(row) == ranking] for rows in (mine, every))
            name = f"{method}, {ranking}" if len(set(map(_ranking, records))) > 1 else method
            words.append(name if len(blocks) == len(there) else f"{name} at {', '.join(dict.fromkeys(blocks))}")
    return "; ".join(words)


def _ranking(record: Record) -> str:
    return ", ".join([Path(record.ranking).name, *filter(None, [record.control])])
