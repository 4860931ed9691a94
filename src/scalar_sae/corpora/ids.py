"""Existing token ids: `.npy`, raw `.bin`, or one tensor of a `.safetensors`; running text or prompts that were cut
before.

Files are mapped into memory, so only the part that is needed is read.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from safetensors.numpy import load, load_file

from scalar_sae.corpora.address import Address
from scalar_sae.corpora.files import File, named_kind
from scalar_sae.errors import UserError, reason, unknown
from scalar_sae.readers import read_text

Array = Integer[np.ndarray, "..."]

_LLM_C = {20240520: ("<u2", 1), 20240801: ("<u4", 7)}
"""Magic numbers of llm.c's files, with the type of the ids and the version. The header has 256 integers of 4 bytes."""
_HEADER = 256
_SPLIT = re.compile(r"(?<![a-z])(train|val|valid|validation|dev|test|eval)(?![a-z])", re.IGNORECASE)
_LOOKED_AT = 2**20
"""Number of ids that are examined to see whether they are halves of larger integers."""


def array_of(file: File, address: Address) -> Array:
    """The token ids in a file: [n], or [n, length] if rows are prompts.

    Raises:
        UserError: they are not integers or have another shape, or the integer type of a raw file is not known.
    """
    if file.suffix != ".bin":
        address.refuse(f"a {file.suffix} file", "what")
    if file.suffix != ".safetensors":
        address.refuse(f"a {file.suffix} file", "column")
    address.refuse("a file", "split")
    with file.whole() as source:
        if file.suffix == ".npy":
            found = _saved(source, file.path)
        elif file.suffix == ".bin":
            found = _raw(source, file.path, address.what)
        else:
            found = _tensor(source, file.path, address.column)
    where = str(file.path)
    if found.dtype.kind not in "iu":
        raise UserError(f"{where}: holds {found.dtype}, not token ids; save them as whole numbers")
    if found.ndim not in (1, 2) or found.size == 0:
        raise UserError(f"{where}: of shape {found.shape}; token ids are [n], or [n, length] for prompts cut before")
    return found.reshape(-1) if 1 in found.shape else found


def shards_in(folder: Path) -> list[Path]:
    """The files of a folder that holds token ids and no text, sorted by name; none for any other folder.

    Raises:
        UserError: the names are those of several splits.
    """
    there = [path for path in sorted(folder.rglob("*")) if path.is_file() and named_kind(path) is not None]
    visible = [path for path in there if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    sidecars = {sidecar for path in visible if path.suffix == ".bin" for sidecar in _sidecars(path)}
    files = [path for path in visible if path not in sidecars]
    if not files or any(named_kind(path) != "ids" for path in files):
        return []
    splits = {found[1].lower(): path for path in files if (found := _SPLIT.search(path.relative_to(folder).as_posix()))}
    if len(splits) > 1:
        names = " and ".join(str(path.relative_to(folder)) for path in splits.values())
        raise UserError(f"{folder}: holds {names}, which are different splits; give the path of one")
    return files


def first_of(arrays: Sequence[Array], wanted: int, where: str) -> Array:
    """The first token ids of consecutive arrays, or the rows that contain them. No more are read.

    Raises:
        UserError: the arrays do not fit together.
    """
    kinds = {(array.dtype, array.shape[1:]): None for array in arrays}
    if len(kinds) > 1:
        described = " and ".join(f"{kind} [{', '.join(map(str, ('n', *shape)))}]" for kind, shape in kinds)
        raise UserError(f"{where}: its files hold {described}; give files of one kind")
    pieces: list[Array] = []
    for array in arrays:
        rows = math.ceil((wanted - sum(piece.size for piece in pieces)) / math.prod(array.shape[1:]))
        if rows <= 0:
            break
        pieces.append(array[:rows])
    return np.concatenate(pieces)


def checked(ids: Array, d_vocab: int, where: str) -> None:
    """Raise a UserError if an id is outside the tokenizer's vocabulary."""
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= d_vocab:
        raise UserError(
            f"{where}: holds the token id {least if least < 0 else most}, the model's tokenizer ends at {d_vocab - 1}: "
            "ids of another tokenizer, or integers of another type or byte order"
        )


def _saved(source: Any, path: Path) -> Any:
    """Read a numpy array. An array of Python objects could run code and is refused."""
    try:
        return np.load(source, "r" if isinstance(source, Path) else None, allow_pickle=False)
    except Exception as error:  # a damaged header can raise any error
        if isinstance(error, ValueError) and "object" in str(error).lower():
            raise UserError(f"{path}: holds Python objects, which are not read; save an array of integers") from error
        raise UserError(f"{path}: damaged, or not what its name says ({reason(error)})") from error


def _raw(source: Any, path: Path, said: str | None) -> Array:
    """The integers of a raw file. Their type is in the address, in a JSON file beside it, or in llm.c's header."""
    content = np.memmap(source, np.uint8, "r") if isinstance(source, Path) else np.frombuffer(source.read(), np.uint8)
    start, types = 0, {name: kind for name, kind in (("address", said), ("JSON file", _beside(path))) if kind}
    if content.size >= 4 * _HEADER:
        magic, version, n = content[:12].view("<i4").tolist()
        kind, wanted = _LLM_C.get(magic, ("", 0))
        if kind and version == wanted:
            start, types["header"] = 4 * _HEADER, kind
            if content.size - start != n * np.dtype(kind).itemsize:
                raise UserError(f"{path}: its header says {n} tokens, the file has another size; it was cut off")
    if not types:
        raise UserError(
            f"{path}: raw token ids, and nothing says of which type; write {path.name}:uint16 (or another type), or "
            f'{path.name}.json with {{"dtype": "uint16"}}'
        )
    kinds = {name: _integers(kind, path) for name, kind in types.items()}
    if len(set(kinds.values())) > 1:
        said_by = ", ".join(f"{kind} by its {of}" for of, kind in kinds.items())
        raise UserError(f"{path}: types of integers that contradict each other: {said_by}")
    kind = next(iter(kinds.values()))
    if content[start:].size % kind.itemsize:
        raise UserError(f"{path}: {content.size:,} bytes are no whole number of {kind}; it is of another type")
    ids = content[start:].view(kind)
    halves = ids[:_LOOKED_AT:2], ids[1:_LOOKED_AT:2]
    if kind.itemsize < 8 and ids.size > 3 and halves[0].any() != halves[1].any():
        raise UserError(f"{path}: every other id is 0 when it is read as {kind}; it is of a larger type")
    return ids


def _beside(path: Path) -> str | None:
    """The integer type that a JSON file beside a raw file states."""
    for sidecar in _sidecars(path):
        if sidecar.is_file():
            try:
                return str(json.loads(read_text(sidecar, "no longer there"))["dtype"])
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise UserError(f'{sidecar}: says no type of integers; expected {{"dtype": "uint16"}}') from error
    return None


def _sidecars(path: Path) -> tuple[Path, Path]:
    """Files that may state the integer type of a raw file: `ids.bin.json` and `ids.json`."""
    return path.with_name(f"{path.name}.json"), path.with_suffix(".json")


def _integers(name: str, path: Path) -> Any:
    try:
        kind = np.dtype(name)
    except TypeError as error:
        raise UserError(f"{path}: unknown type {name!r}; expected uint8, uint16, uint32, int32, int64") from error
    if kind.kind not in "iu":
        raise UserError(f"{path}: {kind} is no type of token ids; expected uint8, uint16, uint32, int32, int64")
    return kind


def _tensor(source: Any, path: Path, name: str | None) -> Any:
    tensors = load_file(source) if isinstance(source, Path) else load(source.read())
    if name is None and len(tensors) > 1:
        raise UserError(f"{path}: holds {', '.join(tensors)}; name one with #")
    name = name or next(iter(tensors), "")
    if name not in tensors:
        raise unknown(f"tensor of {path}", name, tensors)
    return tensors[name]
