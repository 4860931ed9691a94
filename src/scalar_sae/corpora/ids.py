"""Token ids that exist already: `.npy`, raw `.bin`, one tensor of a `.safetensors`; running text or prompts cut before.

Files are mapped into memory: only what is needed of them is read.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from safetensors.numpy import load, load_file

from scalar_sae.corpora.address import Address
from scalar_sae.corpora.files import File
from scalar_sae.errors import UserError, unknown

Array = Integer[np.ndarray, "..."]

_LLM_C = {20240520: ("<u2", 1), 20240801: ("<u4", 7)}
"""Magic numbers of llm.c's files: the type of their ids, and their version. 256 integers of 4 bytes, then the ids."""
_HEADER = 256
_LOOKED_AT = 2**20
"""Ids that are looked at to see whether they are halves of larger integers."""


def array_of(file: File, address: Address) -> Array:
    """The token ids in a file: [n], or [n, length] where rows are prompts.

    Raises:
        UserError: not integers, of another shape, or a raw file of which nobody says what integers it holds.
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


def checked(ids: Array, d_vocab: int, where: str) -> None:
    """Raise a UserError if an id is none of the tokenizer's."""
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= d_vocab:
        raise UserError(
            f"{where}: holds the token id {least if least < 0 else most}, the model's tokenizer ends at {d_vocab - 1}: "
            "ids of another tokenizer, or integers of another type or byte order"
        )


def _saved(source: Any, path: Path) -> Any:
    """An array of numpy's; one of Python objects could run code and is not read."""
    try:
        return np.load(source, "r" if isinstance(source, Path) else None, allow_pickle=False)
    except ValueError as error:
        if "object" in str(error).lower():
            raise UserError(f"{path}: holds Python objects, which are not read; save an array of integers") from error
        raise


def _raw(source: Any, path: Path, said: str | None) -> Array:
    """The integers of a raw file: their type is said in the address, in a JSON file beside it, or in llm.c's header."""
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
    """What a JSON file beside a raw one says: `ids.bin.json`, or `ids.json`."""
    for sidecar in (path.with_name(f"{path.name}.json"), path.with_suffix(".json")):
        if sidecar.is_file():
            try:
                return str(json.loads(sidecar.read_text(encoding="utf-8"))["dtype"])
            except (OSError, ValueError, LookupError, TypeError) as error:
                raise UserError(f'{sidecar}: says no type of integers; expected {{"dtype": "uint16"}}') from error
    return None


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
