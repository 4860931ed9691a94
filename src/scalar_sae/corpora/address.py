"""Addresses of texts: a name such as `python-stdlib`, a path, or a data set on the Hub, and the part of it to read.

    PLACE[:WHAT][@SPLIT][#COLUMN][?revision=REVISION]

    stories.jsonl#body                      the field `body` of each row
    pile.bin:uint16                         token ids, two bytes each
    hf://owner/name:english@test#doc.text   configuration, split, and the field `text` of the column `doc`
    hf://owner/name?revision=v1.0           the data set at a tag, a branch or a commit

The parts in brackets are optional. A path that contains one of the marks is still found if it exists as written.
"""

import errno
import os
from dataclasses import dataclass, replace
from pathlib import Path

from scalar_sae.errors import UserError, unknown

HUB = "hf://"
NAMES = ("python-stdlib", "python-docs", "tiny-shakespeare")
"""Texts that have names of their own."""
_PARTS = {"#": "column", "@": "split", ":": "what"}
_REVISION = "?revision="
_EXPECTED = "hf://owner/name[:config][@split][#column][?revision=...]"


@dataclass(frozen=True)
class Address:
    """A place and the part of it to read."""

    place: str
    """A path, or the name of a data set on the Hub."""
    on_hub: bool = False
    what: str | None = None
    """The part after the colon: a configuration of a data set, or the integer type of a raw file."""
    split: str | None = None
    column: str | None = None
    revision: str | None = None
    """For a data set on the Hub: a tag, a branch or a commit."""

    @classmethod
    def parse(cls, spec: str) -> "Address":
        """Parse an address. A mark that belongs to an existing path is not split off.

        Raises:
            UserError: a local path does not exist.
        """
        place = spec.removeprefix(HUB)
        if spec.startswith(HUB) and not place.startswith(("/", "./", "../", "~")):
            return _hub(spec, place)
        # os.path's version leaves the name of an unknown user unchanged
        found = _local(cls(str(Path(os.path.expanduser(place)))), list(_PARTS))  # noqa: PTH111
        if found is None:
            raise unknown("corpus", spec, [*NAMES, "a path that exists", "hf://owner/name:config@split#column"])
        return found

    def __str__(self) -> str:
        """The address in a form that works from any folder."""
        place = f"{HUB}{self.place}" if self.on_hub else str(Path(self.place).absolute())
        parts = {":": self.what, "@": self.split, "#": self.column}
        revision = f"{_REVISION}{self.revision}" if self.revision else ""
        return place + "".join(f"{mark}{part}" for mark, part in parts.items() if part) + revision

    def refuse(self, what: str, *parts: str) -> None:
        """Raise a UserError if the address has a part that this kind of place does not have."""
        for mark, name in _PARTS.items():
            part = getattr(self, name)
            if part and name in parts:
                raise UserError(f"{self}: {what} has no {mark}{part}; leave it out")


def absolute(spec: str) -> str:
    """The same text, named so that it is found from any folder.

    Raises:
        UserError: a local path does not exist.
    """
    return spec if spec in NAMES else str(Address.parse(spec))


def _hub(spec: str, place: str) -> Address:
    place, query, revision = place.partition(_REVISION)
    if query and not revision:
        raise UserError(f"{spec}: nothing follows {query!r}; expected {_EXPECTED}")
    address = Address(place, on_hub=True, revision=revision or None)
    for mark, name in _PARTS.items():
        place, found, part = address.place.partition(mark)
        if found:
            address = replace(address, place=place, **{name: part})
        if found and not part:
            raise UserError(f"{spec}: nothing follows {mark!r}; expected {_EXPECTED}")
    if not address.place:
        raise UserError(f"{spec}: names no data set; expected {_EXPECTED}")
    if _exists(address.place):
        raise UserError(f"{spec}: a folder {address.place} lies here; write ./{address.place} to read that one")
    return address


def _local(address: Address, marks: list[str]) -> Address | None:
    """The address whose place exists, with as few parts as possible split off at its end."""
    if _exists(address.place):
        return address
    for number, mark in enumerate(marks):
        place, _, part = address.place.rpartition(mark)
        if place and part and "/" not in part:
            shorter = replace(address, place=place, **{_PARTS[mark]: part})
            if (found := _local(shorter, marks[number + 1 :])) is not None:
                return found
    return None


def _exists(place: str) -> bool:
    """Whether a path exists. A path that is too long for the file system does not."""
    try:
        return Path(place).exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False
