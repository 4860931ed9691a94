"""The feature tables of an SAE on disk: written with a SHA-256, and checked against a schema when they are read.

| table        | one row per                                                                  | written by    |
|--------------|------------------------------------------------------------------------------|---------------|
| `latents`    | latent: how often and how strongly it fires, its rule, effect on the logits  | `features.py` |
| `contexts`   | example: the tokens around it and the latent's activation at each            | `features.py` |
| `vocabulary` | token that occurs in the other two: its text                                 | `features.py` |
| `edges`      | edge between a latent and one of a neighbouring SAE                          | `edges.py`    |

A page that shows tables must not wait for PyTorch: this module does not import it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scalar_sae.errors import UserError, reason
from scalar_sae.readers import WRITER, check_version, open_regular
from scalar_sae.sites import Site

OCTAVES = range(-10, 11)
"""Activations are counted by powers of two from 2^-10 to 2^10. The outer bins include everything beyond them."""
LENGTHS = (1, 2, 3)
"""Numbers of tokens that the rules of latents look at (rules.py)."""
ROW_GROUP = 4096
"""Rows of a table that are read together."""
EDGES = pa.schema({"latent": pa.int32(), "side": pa.string(), "site": pa.string(), "other": pa.int32(),
                   "score": pa.float32()})  # fmt: skip
"""The schema of the table of edges."""
integer, real, text = pa.types.is_integer, pa.types.is_floating, pa.types.is_string


def integers(kind: Any) -> bool:
    """Whether an Arrow type is a list of integers."""
    return pa.types.is_list(kind) and (integer(kind.value_type) or pa.types.is_null(kind.value_type))


def reals(kind: Any) -> bool:
    """Whether an Arrow type is a list of floating-point numbers."""
    return pa.types.is_list(kind) and (real(kind.value_type) or pa.types.is_null(kind.value_type))


SCHEMAS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "latents": {
        "latent": integer, "density": real, "maximum": real, "mean": real, "octaves": integers, "rule_f1": reals,
        "rule_accuracy": reals, "rule_tokens": integers, "promoted": integers, "promoted_by": reals,
        "suppressed": integers, "suppressed_by": reals,
    },
    "contexts": {
        "latent": integer, "kind": text, "prompt": integer, "position": integer, "start": integer, "tokens": integers,
        "acts": reals,
    },
    "vocabulary": {"token": integer, "text": text},
    "edges": {"latent": integer, "side": text, "site": text, "other": integer, "score": real},
}  # fmt: skip
"""The columns of each table."""
_ONE_OF = {"kind": ("top", "random", "band", "silent"), "side": ("up", "down")}
_FINITE = ("density", "maximum", "mean", "acts", "score")
_COUNTED = ("latent", "prompt", "position", "start", "other")
_LENGTHS = {"octaves": len(OCTAVES), "rule_f1": len(LENGTHS), "rule_accuracy": len(LENGTHS)}
_TOGETHER = (("tokens", "acts"), ("promoted", "promoted_by"), ("suppressed", "suppressed_by"))
"""Pairs of list columns whose lists must have equal lengths."""


class Stamp(BaseModel):
    """What a table's metadata say about it."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = 1
    written_by: str = WRITER
    sha256: str
    """SHA-256 of the columns and of the other metadata."""


_STAMP = b"scalar_sae"


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table with a checksum, so that any change is detected."""
    stamp = Stamp(sha256=_digest(table)).model_dump_json()
    stamped = table.replace_schema_metadata({**(table.schema.metadata or {}), _STAMP: stamp})
    pq.write_table(stamped, path, row_group_size=ROW_GROUP, write_page_checksum=True)


def read_table(folder: Path, name: str) -> pa.Table:
    """Read a table of an SAE's folder by its name in SCHEMAS.

    Raises:
        UserError: there is none, it is damaged or of a later version, or its content does not fit its name.
    """
    path = folder / f"{name}.parquet"
    if not os.path.lexists(path):
        raise UserError(f"{folder}: no feature tables here ({path.name}); make them with scalar features")
    try:
        with open_regular(path) as file:
            opened = pq.ParquetFile(file, page_checksum_verification=True)
            table = opened.read(use_threads=False)
        table.validate(full=True)
        _check_stamp(path, table)
        problem = _problem(table, name) or _misplaced(opened.metadata, table, name)
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise any error
        raise _damaged(path, reason(error)) from error
    if problem:
        raise _damaged(path, problem)
    return table.select(list(SCHEMAS[name]))


def read_rows(folder: Path, name: str, latents: range, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of some latents, in the order of the latents, of a table that `read_table` has found whole.

    Only row groups that hold such rows are read: a page need not hold all examples to show a few.

    Args:
        folder: the folder of the tables.
        name: name of the table in SCHEMAS.
        latents: the latents.
        columns: names of columns, `latent` among them; None: all.

    Raises:
        UserError: the table has been damaged or moved away since.
    """
    path = folder / f"{name}.parquet"
    try:
        with open_regular(path) as opened:
            file = pq.ParquetFile(opened, page_checksum_verification=True)
            groups = [g for g in range(file.num_row_groups) if _may_hold(file.metadata.row_group(g), latents)]
            table = file.read_row_groups(groups, list(columns or SCHEMAS[name]), use_threads=False)
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise any error
        raise _damaged(path, reason(error)) from error
    latent = as_numpy(table["latent"])
    return by_latent(table.take(as_arrow(np.flatnonzero((latent >= latents.start) & (latent < latents.stop)))))


def by_latent(table: pa.Table) -> pa.Table:
    """A table in the order of the latents; rows of one latent stay in theirs."""
    return table.take(as_arrow(np.argsort(as_numpy(table["latent"]), kind="stable")))


def tables_in(folder: Path) -> set[str]:
    """The names of the tables that exist in an SAE's folder.

    Raises:
        UserError: one of them is damaged, or its content does not fit its name.
    """
    there = {name for name in SCHEMAS if os.path.lexists(folder / f"{name}.parquet")}
    for name in sorted(there):
        read_table(folder, name)
    return there


def _may_hold(group: Any, latents: range) -> bool:
    """Whether a row group can hold rows of some latents, by its statistics."""
    columns = [group.column(number) for number in range(group.num_columns)]
    found = next(column.statistics for column in columns if column.path_in_schema == "latent")
    return found is None or not found.has_min_max or (found.min < latents.stop and latents.start <= found.max)


def _misplaced(file: Any, table: pa.Table, name: str) -> str | None:
    """What `read_rows` would not find by the statistics of row groups, which no checksum covers; None if nothing."""
    if "latent" not in SCHEMAS[name]:
        return None
    rows, start = as_numpy(table["latent"]), 0
    for number in range(file.num_row_groups):
        group = file.row_group(number)
        some, start = rows[start : start + group.num_rows], start + group.num_rows
        ends = (int(some.min()), int(some.max())) if len(some) else ()
        if not all(_may_hold(group, range(latent, latent + 1)) for latent in ends):
            return "the statistics of a row group are not those of its rows"
    return None


def _check_stamp(path: Path, table: pa.Table) -> None:
    """Raise a UserError unless a table is exactly what `write_table` wrote."""
    stamp = (table.schema.metadata or {}).get(_STAMP)
    if stamp is None:
        raise UserError(
            f"{path}: not a table of scalar features (it has no SHA-256); move its folder away and run scalar features"
        )
    check_version(path, json.loads(stamp), Stamp)
    if Stamp.model_validate_json(stamp).sha256 != _digest(table):
        raise _damaged(path, "its SHA-256 is not that of what was written")


def _digest(table: pa.Table) -> str:
    """SHA-256 of a table's columns, and of its metadata except the stamp."""
    found = hashlib.sha256()
    for key, value in sorted((table.schema.metadata or {}).items()):
        if key != _STAMP:
            found.update(repr((key, value)).encode())
    for name in table.column_names:
        column = table[name]
        values = _flat(column)
        found.update(f"{name} {values.type} {table.num_rows} {len(values)}\n".encode())
        if pa.types.is_list(column.type):
            found.update(as_numpy(_lengths(column)).tobytes())
        plain = (integer(values.type) or real(values.type)) and not values.null_count
        if plain:
            found.update(as_numpy(values).tobytes())
        else:
            found.update(b"[")
            for start in range(0, len(values), ROW_GROUP):  # the list of all would take hundreds of bytes a row
                some = repr(values.slice(start, ROW_GROUP).to_pylist())[1:-1]
                found.update((", " * (start > 0) + some).encode())
            found.update(b"]")
    return found.hexdigest()


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(f"{path}: damaged ({problem}); move its folder away and run the command that made it again")


class Counted(BaseModel):
    """The positions at which the latents of a table were counted, stored in the metadata of `latents.parquet`."""

    model_config = ConfigDict(extra="forbid")

    n_tokens: int = Field(default=0, ge=0)
    """Number of positions counted; 0 if the table does not say."""
    n_special: int = Field(default=0, ge=0)
    """Number of positions with special tokens, which were not counted."""
    special: tuple[int | Literal["first"], ...] = ()
    """The special tokens: their ids, and `first` for the first token of every prompt."""


def read_counted(folder: Path) -> Counted:
    """The positions at which the latents of an SAE's tables were counted.

    Raises:
        UserError: as `read_table`.
    """
    metadata = read_table(folder, "latents").schema.metadata or {}
    try:
        return Counted.model_validate_json(metadata.get(b"counted", b"{}"))
    except ValidationError as error:
        raise _damaged(folder / "latents.parquet", reason(error)) from error


def read_vocabulary(folder: Path) -> dict[int, str]:
    """The text of each token of an SAE's tables."""
    table = read_table(folder, "vocabulary")
    return dict(zip(table["token"].to_pylist(), table["text"].to_pylist(), strict=True))


def read_examples(folder: Path) -> tuple[pa.Table, dict[int, str]]:
    """The examples of an SAE's latents, and the text of every token in them.

    Raises:
        UserError: as `read_table`, or a token has no text.
    """
    contexts, vocabulary = read_table(folder, "contexts"), read_vocabulary(folder)
    there = np.isin(as_numpy(contexts["tokens"]), np.fromiter(vocabulary, dtype=np.int64))
    if not there.all():
        raise UserError(
            f"{folder}: contexts.parquet has tokens that vocabulary.parquet lacks: the tables are not of one run; "
            "move the folder away and run the command that made it again"
        )
    return contexts, vocabulary


def as_numpy(column: Any) -> np.ndarray:
    """The numbers of a column without holes, those of all its lists concatenated.

    pyarrow's own conversion imports pandas if that is installed, which takes 40 MB and a quarter of a second.
    """
    flat = _flat(column)
    return np.from_dlpack(flat) if len(flat) else np.empty(0, flat.type.to_pandas_dtype())


def as_arrow(numbers: np.ndarray) -> Any:
    """Numbers as an Arrow array; as in `as_numpy`, pandas is not imported."""
    kind, numbers = pa.from_numpy_dtype(numbers.dtype), np.ascontiguousarray(numbers)
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def _flat(column: Any) -> Any:
    """The values of a column, with lists concatenated."""
    flat = pc.call_function("list_flatten", [column]) if pa.types.is_list(column.type) else column
    return flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat


def _lengths(column: Any) -> Any:
    return pc.call_function("list_value_length", [column])


def _problem(table: pa.Table, name: str) -> str | None:
    """What a table lacks that its schema requires; None if nothing."""
    for column, is_type in SCHEMAS[name].items():
        if column not in table.column_names:
            return f"no column {column}"
        if not is_type(table.schema.field(column).type):
            return f"column {column} is {table.schema.field(column).type}"
        values = _flat(table[column])
        if table[column].null_count or values.null_count:
            return f"column {column} has holes"
        if column in _ONE_OF and not set(values.unique().to_pylist()).issubset(_ONE_OF[column]):
            return f"column {column} holds more than {', '.join(_ONE_OF[column])}"
        if column in _FINITE and not np.isfinite(as_numpy(values)).all():
            return f"column {column} is not finite"
        if column in _COUNTED and len(values) and as_numpy(values).min() < 0:
            return f"column {column} has negative numbers"
    for column, n in _LENGTHS.items():
        if column in SCHEMAS[name] and _lengths(table[column]).unique().to_pylist() not in ([], [n]):
            return f"column {column} has lists that are not of {n} numbers"
    for one, other in _TOGETHER:
        if one in SCHEMAS[name] and not _lengths(table[one]).equals(_lengths(table[other])):
            return f"{one} and {other} differ in length"
    if "site" in SCHEMAS[name]:
        for site in table["site"].unique().to_pylist():
            try:
                Site.parse(site)
            except UserError as error:
                return str(error)
    if name == "contexts":
        at = as_numpy(table["position"]).astype(np.int64) - as_numpy(table["start"])
        if not ((at >= 0) & (at < as_numpy(_lengths(table["tokens"])))).all():
            return "an example lacks the token at its position"
    if name == "latents" and not np.array_equal(as_numpy(table["latent"]), np.arange(table.num_rows)):
        return "the latents are not numbered from 0"
    return None
