"""Files that grow by one JSON object a line: what was expensive to get is on disk before the next of it is asked for.

A line is written with a line break on either side. A process that dies while it writes leaves one line that is not
JSON; readers leave that line out, and the next line is whole.
"""

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from scalar_sae.errors import UserError
from scalar_sae.io import unwritable

Row = TypeVar("Row", bound=BaseModel)


def append(path: Path, row: BaseModel) -> None:
    """Add a line, on disk when this returns; the folder is made if it is missing.

    Raises:
        UserError: the file cannot be written.
    """
    _write(path, f"\n{json.dumps(row.model_dump(mode='json'), allow_nan=False)}\n")


def check_appendable(path: Path) -> None:
    """Raise a UserError if lines cannot be added to a file, before anything is paid for."""
    missing = not path.exists()
    _write(path, "")
    if missing:
        path.unlink()


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


def read(path: Path, schema: type[Row]) -> list[Row]:
    """The lines of a file in their order; none where there is no file.

    Raises:
        UserError: the file cannot be read, or a line is JSON but not what the schema describes.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore it from a copy, or move it away") from error
    return [row for number, line in enumerate(lines, start=1) if (row := _parsed(path, number, line, schema))]


def _parsed(path: Path, number: int, line: str, schema: type[Row]) -> Row | None:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the line"
        raise UserError(f"{path}, line {number}: {where}: {first['msg']}; remove that line") from error
