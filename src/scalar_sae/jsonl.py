"""Files that grow by one JSON object per line, for results that are expensive: each is on disk before the next is
computed.

Every line is written with a line break before and after it. A process that dies while writing leaves one incomplete
line. Readers skip it, and the next line is intact. Any other line that is not JSON counts as damage.
"""

import json
import os
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from scalar_sae.errors import UserError
from scalar_sae.io import appending, unwritable
from scalar_sae.readers import checked, read_text

Row = TypeVar("Row", bound=BaseModel)


def append(path: Path, row: BaseModel) -> None:
    """Append a line. It is on disk when this returns. The folder is created if missing.

    Raises:
        UserError: the file cannot be written.
    """
    _write(path, f"\n{json.dumps(row.model_dump(mode='json'), allow_nan=False)}\n")


def check_appendable(path: Path) -> None:
    """Raise a UserError if lines cannot be appended to a file, before any cost is incurred."""
    missing = not path.exists()
    _write(path, "")
    if missing:
        path.unlink()


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    with appending(path, "ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, schema: type[Row]) -> list[Row]:
    """The lines of a file in order, without incomplete ones; empty if there is no file.

    Raises:
        UserError: the file cannot be read, a line is damaged, or a line does not follow the schema.
    """
    if not os.path.lexists(path):
        return []
    found: list[Row] = []
    for number, line in enumerate(read_text(path, "run the command again").splitlines(), start=1):
        where = f"{path}, line {number}"
        if _is_json(line):
            found.append(checked(where, line, schema))
        elif line and not _is_cut_short(line):
            raise UserError(f"{where}: damaged (it is not JSON); delete the line, or restore the file from a copy")
    return found


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_cut_short(line: str) -> bool:
    """Whether a line that is not JSON is an incomplete object."""
    return line.startswith("{") and line.count("{") > line.count("}")
