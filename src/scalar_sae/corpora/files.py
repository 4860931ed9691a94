"""The kind of a file, from its name and its first bytes, which must agree."""

import gzip
import io
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from safetensors import SafetensorError

from scalar_sae.errors import UserError, reason
from scalar_sae.readers import open_regular

Kind = Literal["text", "json", "csv", "parquet", "arrow", "ids"]

SUFFIXES: dict[str, Kind] = {
    ".txt": "text", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".arrow": "arrow", ".npy": "ids", ".bin": "ids", ".safetensors": "ids",
}  # fmt: skip
"""Kinds by suffix. A file with any other suffix is text if its content is."""
PACKED = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd"}
_REFUSED = {
    **dict.fromkeys((".pt", ".pth", ".pkl", ".pickle"), "could run code when it is read; save the ids as .npy"),
    **dict.fromkeys((".npz", ".h5", ".hdf5"), "is not read; save the ids as .npy"),
    **dict.fromkeys((".pdf", ".docx", ".epub"), "is no plain text; give the text in it as .txt"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar"), "is an archive; unpack it first"),
}
_MAGIC = {
    b"PAR1": ".parquet", b"ARROW1": ".arrow", b"\x93NUMPY": ".npy", b"PK\x03\x04": ".zip", b"\xfd7zXZ": ".xz",
    b"%PDF": ".pdf", b"\x89HDF": ".h5", **{magic: suffix for suffix, magic in PACKED.items()},
}  # fmt: skip
"""First bytes by kind, three or more. Raw token ids begin with one of these about once in ten million files."""
_MOST_PACKED = 100
"""Maximum expansion of a compressed file. Text compresses to a third or a tenth."""
_ALWAYS = {".parquet", ".npy"}
"""Kinds that can always be recognised by their first bytes. An Arrow stream may begin in other ways."""


class File(NamedTuple):
    """A file and its kind."""

    path: Path
    kind: Kind
    suffix: str
    """Suffix without that of the compression."""
    packed: str
    """`.gz`, `.zst`, or empty."""

    @contextmanager
    def open(self) -> Generator[io.BufferedIOBase]:
        """The uncompressed content as a stream. Errors while reading become UserErrors.

        Raises:
            UserError: the file cannot be read, or its content is damaged.
        """
        try:
            with _unpacked(self.path, self.packed) as stream:
                yield stream
        except UserError:
            raise
        except (OSError, EOFError, ValueError, zlib.error, pa.ArrowException, SafetensorError) as error:
            raise UserError(f"{self.path}: damaged, or not what its name says ({reason(error)})") from error

    @contextmanager
    def whole(self) -> Generator[Any]:
        """The content with random access: the path itself, or the content uncompressed in memory."""
        with self.open() as stream:
            yield io.BytesIO(self._all(stream)) if self.packed else self.path

    def content(self) -> bytes:
        """The whole uncompressed content.

        Raises:
            UserError: as `open`, or a compressed file would fill the memory.
        """
        with self.open() as stream:
            return self._all(stream)

    def _all(self, stream: io.BufferedIOBase) -> bytes:
        if not self.packed:
            return stream.read()
        most = max(2**30, _MOST_PACKED * self.path.stat().st_size)
        found = stream.read(most + 1)
        if len(found) > most:
            raise UserError(
                f"{self.path}: unpacks to more than {most:,} bytes, so it is no text; unpack and look at it"
            )
        return found


def named_kind(path: Path) -> Kind | None:
    """The kind that a file's name implies: text, a table or token ids; None if it implies none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return SUFFIXES.get(suffixes[-1 - (suffixes[-1] in PACKED and len(suffixes) > 1)]) if suffixes else None


def recognised(path: Path) -> File:
    """The kind of a file.

    Raises:
        UserError: its name and its content contradict each other, or its kind is not supported.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in PACKED else ""
    suffix = suffixes[-1] if suffixes else ""
    file = File(path, SUFFIXES.get(suffix, "text"), suffix, packed)
    if suffix in _REFUSED:
        raise UserError(f"{path}: {_REFUSED[suffix]}")
    with file._replace(packed="").open() as stream:
        outside = _magic(stream.read(8))
    if packed and outside != packed:
        raise UserError(f"{path}: is not a {packed} file by its content; name it after what it is")
    if not packed and outside in PACKED:
        raise UserError(f"{path}: is a {outside} file by its content; name it {path.name}{outside}")
    with file.open() as stream:
        inside = _magic(stream.read(8))
    if inside and inside != suffix:
        raise UserError(f"{path}: is a {inside} file by its content, not {suffix or 'a text'}; {_remedy(inside)}")
    if suffix in _ALWAYS and inside != suffix:
        raise UserError(f"{path}: is not a {suffix} file by its content; name it after what it is")
    return file


def _remedy(inside: str) -> str:
    return _REFUSED.get(inside, f"name it so, with {inside}" if inside in SUFFIXES else "give a text")


def _magic(start: bytes) -> str:
    """The suffix that the first bytes of a file imply; empty if none."""
    return next((suffix for magic, suffix in _MAGIC.items() if start.startswith(magic)), "")


@contextmanager
def _unpacked(path: Path, packed: str) -> Generator[io.BufferedIOBase]:
    try:
        raw = open_regular(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    with raw:
        if packed == ".gz":
            with gzip.GzipFile(fileobj=raw) as stream:
                yield stream
        elif packed == ".zst":
            with pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd") as stream:
                yield io.BufferedReader(stream)
        else:
            yield raw
