"""Tables of documents, read row by row: JSON lines, CSV, Parquet, Arrow and everything that `datasets` reads."""

import csv
import io
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Integer

from scalar_sae.corpora.files import File
from scalar_sae.errors import UserError, reason, unknown

Row = dict[str, Any]
Document = str | Integer[np.ndarray, " n"]
"""A text, or its token ids."""

COLUMNS = ("text", "input_ids", "tokens")
"""Default columns; the first one that exists is read."""
MASK = "attention_mask"
ANOTHER = "name another #COLUMN"
PEEKED = 1000
"""Number of rows that are examined first in a file without a schema."""
BATCH = 256
"""Number of rows in memory at a time for a file with a schema."""


class Table(NamedTuple):
    """A table whose rows are read lazily."""

    place: str
    columns: list[str]
    rows: Callable[[list[str]], Iterator[Row]]
    """Returns the rows with some of the columns."""


@dataclass
class Tally:
    """Counts of what was left out or changed while documents were read."""

    skipped: int = 0
    """Number of rows without text."""
    broken: int = 0
    """Number of lone surrogates, which no Unicode encoding can represent."""
    unread: list[str] = field(default_factory=list[str])
    """Files of a folder that belong to none of its splits."""

    def notes(self) -> list[str]:
        """Notes for the user, apart from the number of rows without text."""
        found: list[str] = []
        if self.broken:
            found.append(f"{self.broken:,} broken characters became U+FFFD")
        if self.unread:
            names = ", ".join(self.unread[:3]) + (", ..." if len(self.unread) > 3 else "")
            found.append(f"files that are in none of its splits are not read: {names}")
        return found


def documents(table: Table, column: str | None, tally: Tally) -> Iterator[Document]:
    """Yield the documents in one column of a table.

    A column may be nested in another one: `doc.text`. A list of texts is one document whose parts are joined by line
    breaks. Token ids at which the table's attention mask is 0 are padding and are left out.

    Raises:
        UserError: there is no such column, or it holds neither text nor token ids.
    """
    path, some = _path(table, column), False
    masked = [MASK] if MASK in table.columns and path[-1] in COLUMNS[1:] else []
    for number, row in enumerate(table.rows([path[0], *masked]), start=1):
        value = _inside(row, path)
        if value is None or value == "" or value == []:
            tally.skipped += 1
            if number == PEEKED and not some:
                raise UserError(f"{table.place}: no text in {'.'.join(path)!r} of the first {PEEKED:,} rows; {ANOTHER}")
            continue
        some = True
        document = _document(value, f"{table.place}, row {number}: {'.'.join(path)!r}")
        if isinstance(document, str) and column is None and path[0] in COLUMNS[1:]:
            raise UserError(
                f"{table.place}, row {number}: {path[0]!r} holds text, not token ids; if it is the text that is meant, "
                f"say so with #{path[0]}"
            )
        if isinstance(document, str):
            document, broken = _mended(document)
            tally.broken += broken
        elif masked and row.get(MASK) is not None:
            document = _unmasked(document, row[MASK], f"{table.place}, row {number}")
        if len(document):
            yield document
        else:
            tally.skipped += 1


def _path(table: Table, column: str | None) -> list[str]:
    """The names that lead to a column, outermost first."""
    if column is None:
        column = next((name for name in COLUMNS if name in table.columns), None)
        if column is None:
            there = ", ".join(table.columns) or "none"
            raise UserError(f"{table.place}: no column {COLUMNS[0]!r}; name one with #, there are {there}")
    if column in table.columns:
        return [column]
    path = column.split(".")
    if path[0] not in table.columns:
        raise unknown(f"column of {table.place}", path[0], table.columns)
    return path


def _inside(value: Any, path: Sequence[str]) -> Any:
    """The value at a path. For a list, the values at that path in each entry."""
    for number, name in enumerate(path):
        if isinstance(value, list):
            found = [_inside(entry, path[number:]) for entry in value]
            return [entry for entry in found if entry not in (None, "")]
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _document(value: Any, where: str) -> Document:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    if isinstance(value, list) and all(type(part) is int for part in value):
        if max(map(abs, value)) >= 2**63:
            raise UserError(f"{where} holds integers of more than 64 bits, which are no token ids; {ANOTHER}")
        return np.array(value, dtype=np.int64)
    first = value[0] if isinstance(value, list) else value
    if isinstance(first, dict):
        names = ", ".join(map(str, first))
        raise UserError(f"{where} holds {names}; name one of them with a dot, such as #COLUMN.{next(iter(first))}")
    kinds = " and ".join(sorted({type(part).__name__ for part in (value if isinstance(value, list) else [value])}))
    several = "a list of " if isinstance(value, list) else ""
    raise UserError(f"{where} holds {several}{kinds}, neither text nor token ids; {ANOTHER}")


def _unmasked(ids: Integer[np.ndarray, " n"], mask: Any, where: str) -> Integer[np.ndarray, " kept"]:
    """The token ids where an attention mask is 1."""
    if not isinstance(mask, list) or len(mask) != len(ids) or any(part not in (0, 1) for part in mask):
        raise UserError(f"{where}: the {MASK} is no list of 0 and 1, one for each token id")
    return ids[np.array(mask, dtype=bool)]


def _mended(text: str) -> tuple[str, int]:
    """A text with surrogate pairs joined and lone surrogates replaced by U+FFFD, and the number of replacements."""
    try:
        text.encode()
        return text, 0
    except UnicodeEncodeError:
        pass
    mended = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return mended, mended.count("\ufffd") - text.count("\ufffd")


@contextmanager
def table_of(file: File) -> Generator[Table]:
    """The table in a file.

    Raises:
        UserError: the file is damaged, or its content does not fit its name.
    """
    if file.kind == "json":
        with file.open() as stream:
            yield peeked(str(file.path), _json(stream, str(file.path)))
    elif file.kind == "csv":
        with file.open() as stream:
            yield _csv(stream, str(file.path), "\t" if file.suffix == ".tsv" else ",")
    elif file.kind == "parquet":
        with file.whole() as source, pq.ParquetFile(source) as parquet:
            yield _parquet(parquet, str(file.path))
    else:
        with file.whole() as source:
            yield _arrow(pa.memory_map(str(source)) if isinstance(source, Path) else source, str(file.path))


def peeked(place: str, rows: Iterable[Row]) -> Table:
    """A table whose columns are taken from its first rows."""
    rows = iter(rows)
    first = list(islice(rows, PEEKED))
    columns = list(dict.fromkeys(name for row in first for name in row))

    def all_rows(names: list[str]) -> Iterator[Row]:
        return chain(first, rows)

    return Table(place, columns, all_rows)


def _json(stream: io.BufferedIOBase, place: str) -> Iterator[Row]:
    """Yield the objects of a JSON list, or of a file with one object per line."""
    is_first = True
    for number, line in enumerate(stream, start=1):
        text = _utf8(line, f"{place}, line {number}").removeprefix("\ufeff").strip()
        if is_first and text.startswith("["):
            yield from _json_list(text + _utf8(stream.read(), place), place)
            return
        if text:
            yield _object(text, f"{place}, line {number}")
            is_first = False


def _json_list(text: str, place: str) -> Iterator[Row]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not a JSON list ({reason(error)})") from error
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise UserError(f'{place}, entry {number}: not an object such as {{"text": ...}}')
        yield entry


def _object(text: str, where: str) -> Row:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: not JSON ({reason(error)}); expected one object a line, or one list of objects"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f'{where}: not an object such as {{"text": ...}}')
    return row


def _utf8(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason}); convert the file with iconv -t UTF-8") from error


def _csv(stream: Any, place: str, separator: str) -> Table:
    csv.field_size_limit(sys.maxsize)
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    reader = csv.reader(lines, delimiter=separator, strict=True)

    def row_of(fields: list[str]) -> Row:
        if fields and len(fields) != len(columns):
            where = f"{place}, line {reader.line_num}"
            raise UserError(f"{where}: {len(fields)} fields, the first line names {len(columns)} columns")
        return dict(zip(columns, fields, strict=False))

    def rows(names: list[str]) -> Iterator[Row]:
        found = map(row_of, _csv_rows(reader, place))
        first = list(islice(found, PEEKED))
        if first and all(_is_number(row.get(names[0])) for row in first):
            raise UserError(f"{place}: column {names[0]!r} holds numbers, not text; {ANOTHER}")
        return chain(first, found)

    columns = next(_csv_rows(reader, place), [])
    return Table(place, columns, rows)


def _csv_rows(reader: Any, place: str) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise UserError(f"{place}, line {reader.line_num}: not CSV ({error})") from error


def _is_number(field: str | None) -> bool:
    try:
        float(field or "")
    except ValueError:
        return False
    return True


def _parquet(parquet: pq.ParquetFile, place: str) -> Table:
    def rows(columns: list[str]) -> Iterator[Row]:
        for batch in parquet.iter_batches(BATCH, columns=columns):
            yield from batch.to_pylist()

    return Table(place, parquet.schema_arrow.names, rows)


def _arrow(source: Any, place: str) -> Table:
    """Read a file or a stream in Arrow's format."""
    try:
        table = pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        table = pa.ipc.open_stream(source).read_all()

    def rows(columns: list[str]) -> Iterator[Row]:
        for batch in table.select(columns).to_batches(BATCH):
            yield from batch.to_pylist()

    return Table(place, table.column_names, rows)
