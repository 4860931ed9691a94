"""The scores of a report as a table that a spreadsheet or pandas reads: a row a record."""

import base64
import csv
import io
from collections.abc import Sequence

from scalar_sae.records.results import Record

SCORES = (
    "faithful_at.80", "faithful_at.50", "faithful_at.90", "faithful_from.80", "faithful_live_at.80", "unfaithful_area",
    "edges_at.50", "edges_at.90", "edges_at.99", "live_edges_at.50", "live_edges_at.90", "live_edges_at.99", "log_area",
    "kl_mean", "floor.kl", "floor.ce_increase", "absolute", "relative", "pure",
)  # fmt: skip
"""Each gets three columns: its value and both ends of its interval."""
_NAMES = (
    "block",
    "method",
    "ranking",
    "control",
    "scope",
    "n_up",
    "n_down",
    "n_edges",
    "n_live_edges",
    "poor_full_circuit",
)


def as_csv(records: Sequence[Record]) -> str:
    """Every score of every record. A cell is empty where a curve never reaches the score, or has no interval."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow([*_NAMES, *(column for name in SCORES for column in (name, f"{name}.low", f"{name}.high"))])
    for record in records:
        row = [getattr(record, name) for name in _NAMES]
        for name in SCORES:
            row += [_value(record, name), *(record.ci.get(name) or (None, None))]
        table.writerow(row)
    return text.getvalue()


def as_address(text: str) -> str:
    """A text as a link that holds it."""
    return f"data:text/csv;base64,{base64.b64encode(text.encode()).decode()}"


def _value(record: Record, name: str) -> float | None:
    field, _, key = name.partition(".")
    found = getattr(record, field)
    if not key:
        return found
    return found[key] if isinstance(found, dict) else getattr(found, key)
