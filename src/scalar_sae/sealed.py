"""Files with a SHA-256 of their content, so that any change is detected when they are read.

A `.safetensors` file has the digest of its names, types, shapes and bytes in its metadata. A checkpoint is a file of
`torch.save`. It has the digest of all preceding bytes in the comment with which a zip archive may end; PyTorch ignores
the comment. The digests of other files are in a `sha256.json` beside them.
"""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from scalar_sae.console import say
from scalar_sae.errors import UserError, reason
from scalar_sae.io import write_json
from scalar_sae.readers import WRITER, open_regular, read_json

DIGESTS = "sha256.json"
_DIGEST = 64
"""Number of characters of a SHA-256."""
_CHUNK = 2**20


def digest_of(tensors: Mapping[str, Tensor], of: str = "") -> str:
    """SHA-256 of the names, types, shapes and bytes of tensors, and of the name of the work that they belong to."""
    found = hashlib.sha256(of.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        UserError: it is not a regular file.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digests(BaseModel):
    """The content of `sha256.json`, about the files beside it."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = 1
    written_by: str = WRITER
    files: dict[str, str]
    """SHA-256 of each file's bytes, by name."""


def seal(folder: Path, *names: str) -> None:
    """Record the digests of some files of a folder, in addition to those already recorded there.

    Raises:
        UserError: the existing digests are damaged, or cannot be written.
    """
    found = sealed(folder) | {name: digest_of_file(folder / name) for name in names}
    write_json(folder / DIGESTS, Digests(files=dict(sorted(found.items()))).model_dump())


def sealed(folder: Path) -> dict[str, str]:
    """The digests of a folder's files, by name; empty if no file is finished.

    Raises:
        UserError: they are damaged.
    """
    path = folder / DIGESTS
    return read_json(path, Digests, "no longer there; run the command again").files if os.path.lexists(path) else {}


def check_sealed(folder: Path, remedy: str) -> None:
    """Raise a UserError if any file of a folder with a recorded digest has changed."""
    files = sealed(folder)
    if not files:
        raise UserError(f"{folder}: has no {DIGESTS}, so it was not finished, or not by this version; {remedy}")
    for name, digest in files.items():
        check_digest(folder / name, digest, remedy)


def check_digest(path: Path, digest: str, remedy: str) -> None:
    """Raise a UserError if a file's bytes do not have the digest."""
    try:
        found = digest_of_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    if found != digest:
        raise UserError(f"{path}: damaged (its SHA-256 is not that of what was written); {remedy}")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], of: str = "") -> None:
    """Write a `.safetensors` file with its digest. `of` names the work that the tensors belong to."""
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(plain, path, {"sha256": digest_of(plain, of)})


def load_tensors(path: Path, remedy: str, of: str = "") -> dict[str, Tensor]:
    """Read a file of `save_tensors` to the CPU.

    Args:
        path: the file.
        remedy: what to do if it is damaged.
        of: the work that the tensors must belong to.

    Raises:
        UserError: it is not what was written, or belongs to other work.
    """
    try:
        open_regular(path).close()
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except UserError:
        raise
    except Exception as error:  # a damaged header can raise any error
        raise UserError(f"{path}: damaged ({reason(error)}); {remedy}") from error
    if metadata.get("sha256") != digest_of(tensors, of):
        raise UserError(f"{path}: damaged (its SHA-256 is not that of what was written); {remedy}")
    return tensors


def load_unfinished(path: Path, of: str) -> dict[str, Tensor]:
    """Read a file of `save_tensors` that holds a part of unfinished work.

    Returns:
        The tensors. None if there is no file, or if the file is damaged or belongs to other work. In the latter case
            the
        user is told, and the caller computes the tensors again.

    Raises:
        UserError: the path is a folder or a pipe, which the new file could not replace.
    """
    if not os.path.lexists(path):
        return {}
    open_regular(path).close()
    try:
        return load_tensors(path, "its part of the work is done again", of)
    except UserError as error:
        say(str(error))
        return {}


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write plain values and tensors, with their digest."""
    with path.open("w+b") as file:
        torch.save(content, file)
        file.seek(-2, os.SEEK_END)  # the last field of an archive is the length of the comment after it
        file.write(_DIGEST.to_bytes(2, "little"))
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0, os.SEEK_END)
        file.write(found.encode("ascii"))


def load_checkpoint(path: Path, device: str | torch.device, what: str, remedy: str) -> dict[str, Any]:
    """Read a file of `save_checkpoint`. Nothing in it is executed, and it is only parsed after its digest was checked.

    Args:
        path: the file.
        device: device for its tensors.
        what: what the file should be, for the message: `a checkpoint of these SAEs`.
        remedy: what to do otherwise.

    Raises:
        UserError: it is not what was written.
    """
    try:
        with open_regular(path) as file:
            if not _is_whole(file):
                why = "damaged or changed: its SHA-256 is not that of what was written"
                raise UserError(f"{path}: not {what} ({why}); {remedy}")
            file.seek(0)
            content = torch.load(file, map_location=device, weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except UserError:
        raise
    except Exception as error:  # another version of PyTorch, or no room on the device
        raise UserError(f"{path}: not {what} ({reason(error)}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not {what}; {remedy}")
    return content


def _is_whole(file: io.BufferedReader) -> bool:
    """Whether a file ends with the digest of everything before it."""
    left = os.fstat(file.fileno()).st_size - _DIGEST
    found = hashlib.sha256()
    while left > 0 and (chunk := file.read(min(_CHUNK, left))):
        found.update(chunk)
        left -= len(chunk)
    return file.read() == found.hexdigest().encode("ascii")
