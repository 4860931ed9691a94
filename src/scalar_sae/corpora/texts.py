"""Plain text: the characters of a file, and the paper's split into training and validation parts."""

import json
from pathlib import Path
from typing import NamedTuple

from scalar_sae.corpora.files import File
from scalar_sae.errors import UserError

VAL_SHARE = 0.1
BLOCK = 256
"""The size of the training part is a multiple of this number of characters or tokens."""
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class Texts(NamedTuple):
    """The two parts of a text, each in pieces."""

    name: str
    train: list[str]
    val: list[str]


def split(name: str, text: str) -> Texts:
    """The paper's split: the first 90 % of the text, rounded down to a multiple of 256 characters, is the training
    part.
    """
    n_train = first_part(len(text))
    return Texts(name, [text[:n_train]], [text[n_train:]])


def first_part(n: int) -> int:
    """Number of training characters or tokens out of n."""
    return int((1 - VAL_SHARE) * n) // BLOCK * BLOCK


def read_text(file: File) -> str:
    """Read a text file, with Unix line breaks and without a byte order mark.

    Raises:
        UserError: it is not UTF-8 text, or it is JSON.
    """
    if file.kind != "text":
        raise UserError(f"{file.path}: a {file.suffix} file is no plain text")
    content = file.content()
    if mark := _MARKS.get(content[:2]):
        raise UserError(f"{file.path}: {mark}, not UTF-8; convert it: {_iconv(mark, file.path)}")
    if (place := content.find(b"\0")) >= 0:
        raise UserError(
            f"{file.path}: byte {place} is NUL, so it is no text; token ids are read from FILE.bin:uint16 or FILE.npy, "
            f"UTF-16 is converted with {_iconv('UTF-16LE', file.path)}"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file.path}: not a UTF-8 text file (byte {error.start}); if it is text in Latin-1, convert it: "
            f"{_iconv('LATIN1', file.path)}"
        ) from error
    if _is_json(text):
        raise UserError(f"{file.path}: is JSON by its content; name it .jsonl, so that the text of its rows is read")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _iconv(encoding: str, path: Path) -> str:
    return f"iconv -f {encoding} -t UTF-8 {path.name} > utf8.txt"


def _is_json(text: str) -> bool:
    """Whether the first line is a JSON object, or the whole text a JSON list or object."""
    start = text.lstrip()
    if not start.startswith(("{", "[")):
        return False
    for some in (start.partition("\n")[0], start):
        try:
            found = json.loads(some)
        except (ValueError, RecursionError):
            continue
        if found and (isinstance(found, dict) or some is start):
            return True
    return False
