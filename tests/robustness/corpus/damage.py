"""What happens to a file: on a disk, in an editor, on its way from elsewhere, or by somebody's ill will.

A damage is a function of the file's path. `damages` gives those that fit a file, by name: first what can happen to any
file, then what can happen to text, then what can happen to the values in it.
"""

import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.robustness.corpus.world import content_of

Damage = Callable[[Path], object]
DEEP = 10_000
HOSTILE = "a\nb\x1b[31m[/b]\u202e<script>\x00" + "n" * 300
"""A name that breaks lines, colours a terminal, closes markup, turns the direction of writing, and is too long."""


def damages(path: Path) -> dict[str, Damage]:
    """The damages that fit a file."""
    found = dict(ANY)
    if path.suffix in (".json", ".yaml", ".jsonl"):
        found |= TEXT
    if path.suffix in (".json", ".yaml"):
        found |= values(content_of(path))
    if path.suffix == ".yaml":
        found |= YAML
    if path.suffix in (".safetensors", ".npy", ".pt"):
        found |= ARRAYS
    return found


def _put(content: bytes) -> Damage:
    return lambda path: _replace(path, lambda: path.write_bytes(content))


def _replace(path: Path, make: Callable[[], Any]) -> None:
    path.unlink()
    make()


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _flip(seed: int, path: Path) -> None:
    content = bytearray(path.read_bytes())
    bit = random.Random(f"{seed} {path.name}").randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def _tail(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\x00garbage")


def _recode(coding: str, path: Path) -> None:
    text = path.read_text(encoding="utf-8") + ("\n# é\n" if path.suffix == ".yaml" else "é")
    path.write_bytes(text.encode(coding))


def _sparse(path: Path) -> None:
    os.truncate(path, 2**40)


class _Runs:
    """A pickle that makes a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def _bomb(path: Path) -> None:
    """An archive whose one entry is a gibibyte of zeros, and says so."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", bytes(2**24))
    content = bytearray(path.read_bytes())
    for at in (content.find(b"PK\x03\x04") + 22, content.rfind(b"PK\x01\x02") + 24):
        content[at : at + 4] = struct.pack("<I", 2**31)
    path.write_bytes(content)


def _npy(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape},), }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def _safetensors(header: Any) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


ANY: dict[str, Damage] = {
    "empty": _put(b""), "one byte": _put(b"{"), "half": _half, "zeros": _zeros, "garbage after it": _tail,
    "random bytes": _put(random.Random(0).randbytes(5000)),
    **{f"bit {seed} flipped": partial(_flip, seed) for seed in range(4)},
    "missing": Path.unlink,
    "a folder": lambda path: _replace(path, path.mkdir),
    "a pipe": lambda path: _replace(path, lambda: os.mkfifo(path)),
    "a link to itself": lambda path: _replace(path, lambda: path.symlink_to(path.name)),
    "a link to nothing": lambda path: _replace(path, lambda: path.symlink_to("nothing-there")),
    "a link to /dev/null": lambda path: _replace(path, lambda: path.symlink_to("/dev/null")),
    "a link to /dev/full": lambda path: _replace(path, lambda: path.symlink_to("/dev/full")),
    "a link to /proc/self/mem": lambda path: _replace(path, lambda: path.symlink_to("/proc/self/mem")),
    "a pickle that runs": _put(pickle.dumps(_Runs())),
    "a sparse terabyte": _sparse,
}  # fmt: skip
TEXT: dict[str, Damage] = {
    "latin-1": partial(_recode, "latin-1"), "utf-16": partial(_recode, "utf-16"),
    "nested deeply": _put(b"[" * DEEP + b"]" * DEEP),
    "objects nested deeply": _put(b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    "null": _put(b"null"), "a list": _put(b"[1, 2]"), "a number": _put(b"7"), "text": _put(b'"text"'),
    "NaN": _put(b"NaN"), "an empty object": _put(b"{}"), "huge integer": _put(b'{"a": ' + b"9" * 5000 + b"}"),
    "a lone surrogate": _put(b'{"a": "\\ud800"}'),
}  # fmt: skip
YAML: dict[str, Damage] = {
    "a tag that runs": _put(b"train: !!python/object/apply:os.mkdir [executed]\n"),
    "two documents": _put(b"train: {}\n---\ntrain: {}\n"), "a tab": _put(b"train:\n\ttokens: 1\n"),
    "keys of two types": _put(b"train: {1: 2, a: 3, null: 4}\n"), "an alias of itself": _put(b"train: &a [*a]\n"),
    "a billion laughs": _put(
        b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n".encode() for i in range(12)
        )
    ),
    "a date": _put(b"train: {tokens: 2020-01-01}\n"), "a colon too many": _put(b"train: a: b\n"),
}  # fmt: skip
ARRAYS: dict[str, Damage] = {
    "16 TiB by its header": lambda path: path.write_bytes(
        _npy(str(2**42)) if path.suffix == ".npy"
        else _safetensors({"W_enc": {"dtype": "F32", "shape": [2**21, 2**21], "data_offsets": [0, 2**44]}})
    ),
    "a header of terabytes": lambda path: path.write_bytes(struct.pack("<Q", 2**43) + b"{}"),
    "a header nested deeply": lambda path: path.write_bytes(_safetensors(b"[" * DEEP + b"]" * DEEP)),
    "a negative shape": lambda path: path.write_bytes(
        _npy("-1") if path.suffix == ".npy"
        else _safetensors({"W_enc": {"dtype": "F32", "shape": [-1, 4], "data_offsets": [0, 16]}}) + bytes(16)
    ),
    "a zip bomb": _bomb,
    "objects": _put(b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(127)
                    + b"\n" + pickle.dumps(_Runs())),
}  # fmt: skip


def values(content: Any) -> dict[str, Damage]:
    """Every key of nested values left out, and every value made another that it should not be."""
    found: dict[str, Damage] = {"an unknown key": partial(_rewrite, (), _added)}
    for number, (place, value) in enumerate(_places(content)):
        name = ".".join(map(str, place))
        found[f"{name} is missing"] = partial(_rewrite, place, None)
        wrong = _wrong(value)
        for kind in sorted(wrong)[number % 2 :: 2]:  # each value gets every other one, its neighbour the rest
            found[f"{name} is {kind}"] = partial(_rewrite, place, partial(_constant, wrong[kind]))
    later = {key: 99 for key in ("schema_version", "format_version") if isinstance(content, dict) and key in content}
    if later:
        found["a later version"] = partial(_rewrite, (), lambda old: {**old, **later, "written_by": "scalar-sae 9.0"})
    return found


def _added(old: Any) -> Any:
    return {**old, "nonsense": 1} if isinstance(old, dict) else [old]


def _constant(value: Any, _: Any) -> Any:
    return value


def _places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Where values stand: every key, and of a list the first entry."""
    inner: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value[:1]))
    for key, each in inner:
        yield (*place, key), each
        if len(place) < 5:
            yield from _places(each, (*place, key))


def _wrong(value: Any) -> dict[str, Any]:
    """Values of the wrong type or range, by what they are."""
    found: dict[str, Any] = {"null": None, "an object": {"nonsense": 1}, "hostile text": HOSTILE, "true": True}
    found |= {"a list of lists": [[[]]]}
    if isinstance(value, int | float):
        found |= {"NaN": float("nan"), "infinite": float("inf"), "negative": -1, "zero": 0, "2^63": 2**63}
    if isinstance(value, list):
        found |= {"cut": value[:-1], "empty": [], "longer": [*value, *value[-1:]]}
    if isinstance(value, str):
        found |= {"a path out": "../../../etc/passwd", "no text": "", "dots": ".."}
    return found


def _rewrite(place: tuple[str | int, ...], change: Callable[[Any], Any] | None, path: Path) -> None:
    content = content_of(path)
    if not place:
        assert change is not None
        content = change(content)
    else:
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        if change is None:
            del inner[place[-1]]
        else:
            inner[place[-1]] = change(inner[place[-1]])
    text = yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content)
    path.write_text(text, encoding="utf-8")
