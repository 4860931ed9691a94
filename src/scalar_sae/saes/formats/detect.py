"""Find every SAE below a path, and recognise each folder's format by its files."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from scalar_sae.errors import UserError
from scalar_sae.saes.formats import (
    batch_topk,
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    gpt_circuits,
    jacobian,
    openai,
    openmoss,
    saelens,
    sparsify,
)
from scalar_sae.saes.formats.files import Folder, Format, Found, about, check_numbers

FORMATS: tuple[Format, ...] = tuple(
    module.FORMAT
    for module in (
        saelens, jacobian, sparsify, dictionary_learning, openmoss, gemma_scope, circuit_tracer, gpt_circuits,
        batch_topk, openai,
    )
)  # fmt: skip


class Located(NamedTuple):
    """An SAE, with its location and format."""

    found: Found
    format: str
    path: Path


def walk(path: Path, formats: tuple[Format, ...], seen: set[tuple[int, int]] | None = None) -> Iterator[Located]:
    """Yield every SAE in a folder and below it, or in a file. Nothing below a folder of a known format is read again.

    A folder that is reached by several links is read once, so circular links end. `seen` holds the device and inode
    numbers of the folders visited so far.

    Raises:
        UserError: the files of a folder of some format are damaged or contradict each other.
    """
    seen = set() if seen is None else seen
    about_path = path.stat()
    if (about_path.st_dev, about_path.st_ino) in seen:
        return
    seen.add((about_path.st_dev, about_path.st_ino))
    folder = Folder.of(path)
    with about(path):
        fitting = [format_ for format_ in formats if format_.here(folder)]
        if len(fitting) > 1:
            names = " and of ".join(f"{format_.name} ({format_.files})" for format_ in fitting)
            raise UserError(f"holds files of {names}: which of them is meant? Take the others out of a copy")
        for format_ in fitting:
            for found in format_.read(folder):
                folder.check_read()
                check_numbers(found)
                yield Located(found, format_.name, path)
    left = sorted(folder.names & {name for format_ in formats for name in format_.weights})
    if not fitting and path.is_dir() and left:
        raise UserError(f"{path}: holds {', '.join(left)}, and no config that says what it is ({understood(formats)})")
    if not fitting and path.is_dir():
        for entry in sorted(path.iterdir()):
            if entry.is_dir() and not entry.name.startswith("."):
                yield from walk(entry, formats, seen)


class NothingFoundError(UserError):
    """There are no SAEs at the given path."""


def nothing(path: Path, formats: tuple[Format, ...]) -> NothingFoundError:
    """The error for a path without SAEs. It names what was found and the formats that are understood."""
    folder = Folder.of(path)
    there = ", ".join(sorted(folder.names)[:8]) or "nothing"
    return NothingFoundError(f"{path}: holds no SAEs: found {there}; understood are {understood(formats)}")


def understood(formats: tuple[Format, ...]) -> str:
    """The formats and their files, for messages."""
    return "; ".join(f"{format_.name} ({format_.files})" for format_ in formats)
