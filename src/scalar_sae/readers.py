"""Read files that this package wrote: JSON, YAML and lists of settings, each checked against a schema.

    results = read_json(path, Results, "no results here; score something first")

A file is opened once. It is refused if it is not a regular file of UTF-8 text, if it is damaged or from a later version
of the package, or if it does not fit the schema. The error is one line with the file's name, the place in it and a
remedy. Numbers must be finite, integers must fit into 64 bits, keys must be unique, and nesting is limited to
`DEEPEST`.
"""

import io
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from scalar_sae._version import __version__
from scalar_sae.errors import LONGEST_VALUE, UserError, one_line, quoted, reason

Model = TypeVar("Model", bound=BaseModel)

DEEPEST = 50
"""Maximum nesting of lists and objects."""
MOST_BYTES = 2**31
"""Maximum size of our text files."""
MOST_VALUES = 100_000
"""Maximum number of values in a YAML file with aliases expanded, since a few aliases can expand to billions of
values.
"""
LARGEST_WITH_HOLES = 2**37
"""Maximum size of a file of which at most a sixteenth is on disk. A larger sparse file would take hours to read."""
RESTORE = "restore it from a copy, or move it away and run the command again"
_VERSIONS = ("schema_version", "format_version")
WRITER = f"scalar-sae {__version__}"
"""The writer recorded in our files."""


def read_bytes(path: Path, missing: str, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        missing: the message if there is none.
        most: maximum size in bytes.

    Raises:
        UserError: there is none, it cannot be read, it is not a regular file, or it is too large.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise UserError(f"{path}: {size:,} bytes, no file of this kind has more than {most:,}; {RESTORE}")
            return file.read()
    except FileNotFoundError as error:
        raise UserError(f"{path}: {missing}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading bytes. A pipe or a device does not block.

    Raises:
        UserError: it is a folder, a pipe or a device, or a huge sparse file.
        OSError: it cannot be opened.
    """
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    about = os.fstat(number)
    on_disk = 512 * getattr(about, "st_blocks", about.st_size)
    if stat.S_ISREG(about.st_mode) and (about.st_size < LARGEST_WITH_HOLES or about.st_size < 16 * on_disk):
        return os.fdopen(number, "rb")
    os.close(number)
    if stat.S_ISREG(about.st_mode):
        raise UserError(
            f"{path}: of its {about.st_size:,} bytes {on_disk:,} are on the disk, the rest are holes; {RESTORE}"
        )
    kind = "a folder" if stat.S_ISDIR(about.st_mode) else "a pipe or device"
    raise UserError(f"{path}: {kind}, expected a file; move it away")


def read_text(path: Path, missing: str, most: int = MOST_BYTES) -> str:
    """The content of a UTF-8 text file.

    Raises:
        UserError: as `read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, missing, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); {RESTORE}") from error


def read_json(path: Path, schema: type[Model], missing: str, older: str = RESTORE) -> Model:
    """Read one of our JSON files.

    Args:
        path: the file.
        schema: the schema of its content.
        missing: the message if there is no file.
        older: the remedy for a file of an earlier version.

    Raises:
        UserError: as `read_text`, it is not JSON, it was written by another version, or it does not follow the schema.
    """
    text = read_text(path, missing)
    check_version(path, parse_json(text, str(path)), schema, older)
    return checked(path, text, schema)


def checked(where: Path | str, text: str, schema: type[Model]) -> Model:
    """Validate JSON text that `parse_json` accepted. Strings are not converted to numbers.

    Raises:
        UserError: it does not follow the schema.
    """
    try:
        return schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {explained(error)}; {RESTORE}") from error


def parse_json(text: str, where: str) -> Any:
    """Parse JSON text into plain values.

    Raises:
        UserError: it is not JSON, or breaks the limits at the top of this file.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_different_keys, parse_constant=_no_number, parse_float=_finite, parse_int=_int64
        )
    except (ValueError, RecursionError) as error:  # a JSONDecodeError, or an error of one of the hooks
        deep = isinstance(error, RecursionError)
        raise UserError(f"{where}: damaged ({'nested too deeply' if deep else reason(error)}); {RESTORE}") from error
    check_plain(value, where)
    return value


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text into plain values, restricted to what JSON can represent.

    Raises:
        UserError: it is not a single YAML document, or contains dates, tags, duplicate keys, keys that are not text, or
            numbers that are not finite.
    """
    try:
        value = yaml.load(text, _PlainLoader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = one_line(error.problem or "", LONGEST_VALUE)
        raise UserError(f"{where}{line}: is not a YAML value ({problem})") from error
    # ValueError and TypeError: invalid dates and numbers
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        deep = isinstance(error, RecursionError)
        raise UserError(f"{where}: is not a YAML value ({'nested too deeply' if deep else reason(error)})") from error
    check_plain(value, where, MOST_VALUES)
    return value


def check_plain(value: Any, where: str, most: int | float = math.inf) -> None:
    """Raise a UserError unless a value is representable in JSON, not nested too deeply, and has at most `most`
    values.
    """
    n = 0
    todo: list[tuple[Any, tuple[str | int, ...]]] = [(value, ())]
    while todo:
        value, place = todo.pop()
        n += 1
        if len(place) > DEEPEST or n > most:
            too = "nested too deeply" if n <= most else "too many values"
            raise UserError(f"{where}: {'.'.join(map(str, place[:6]))}: {too}")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise UserError(f"{where}: the key {quoted(key)} is not text; write it in quotes")
            todo += [(inner, (*place, key)) for key, inner in value.items()]
        elif isinstance(value, list):
            n += len(value)
            todo += [(inner, (*place, i)) for i, inner in enumerate(value) if not _finite_float(inner)]
        elif problem := _not_plain(value):
            raise UserError(f"{where}: {'.'.join(map(str, place)) or 'the value'} = {quoted(value)}: {problem}")


def _finite_float(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _not_plain(value: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return "expected a finite number"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "too large: integers have 64 bits"
    if value is None or isinstance(value, str | int | float):
        return None
    return "expected text, a number, a list or an object; write text in quotes"


def check_version(where: Path | str, content: Any, schema: type[BaseModel], older: str = RESTORE) -> None:
    """Raise a UserError if a file follows a later or earlier schema than this version of the package."""
    for field in _VERSIONS:
        if isinstance(content, dict) and field in schema.model_fields:
            known = schema.model_fields[field].default
            found = content.get(field, known)
            if type(found) is int and found != known:
                age, remedy = (
                    ("a later", "upgrade with pip install --upgrade scalar-sae")
                    if found > known
                    else ("an earlier", older)
                )
                writer = content.get("written_by")
                by = quoted(writer).strip("'") if isinstance(writer, str) and writer != WRITER else f"{age} scalar-sae"
                raise UserError(
                    f"{where}: written by {by} ({field} {found}), this is {WRITER} ({field} {known}); {remedy}"
                )


def explained(error: ValidationError) -> str:
    """The first schema error in one line: its place, the value, and what was expected."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    said = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{place or 'it'} is missing"
    if first["type"] == "extra_forbidden":
        return f"{place} is not a field that this version knows"
    value = "" if isinstance(first["input"], dict | list | tuple) else f", not {quoted(first['input'])}"
    return f"{place + ': ' if place else ''}{said}{value}"


def _different_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in found if keys.count(key) > 1)!r} comes twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a finite number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _int64(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= 2**63:
        raise ValueError(f"{text[:40]} is too large: integers have 64 bits")
    return int(text)


class _PlainLoader(yaml.SafeLoader):
    """A loader that refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, refusing duplicate keys."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} comes twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)
