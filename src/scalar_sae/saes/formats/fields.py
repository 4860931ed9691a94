"""Configs of other people's SAEs, read by allow-list.

A format requests the fields that it understands, each with its type. It also lists the fields that cannot change what
the SAE computes, each with the reason (`Harmless`). `check_read` then refuses every other field, because a field that
this package does not know may change the SAE silently.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from scalar_sae.errors import UserError

T = TypeVar("T")

Harmless = Mapping[str, str]
"""From a reason to the names, separated by spaces, of fields or tensors that cannot change what an SAE computes."""


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A type of a field."""

    name: str
    """Name of the type, for messages."""
    read: Callable[[Any], T | None]
    """Returns the value of a field, or None if it has another type."""


def _integer(value: Any) -> int | None:
    number = _number(value)
    return None if number is None or not number.is_integer() else int(number)


def _number(value: Any) -> float | None:
    wrong = isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)
    return None if wrong else float(value)


def _texts(value: Any) -> list[str] | None:
    return value if isinstance(value, list) and all(isinstance(text, str) for text in value) else None


def _integers(value: Any) -> list[int] | None:
    if not isinstance(value, list) or any(_integer(number) is None for number in value):
        return None
    return [int(number) for number in value]


def _positions(value: Any) -> list[int | None] | None:
    whole = isinstance(value, list) and len(value) <= 3
    return value if whole and all(bound is None or _integer(bound) is not None for bound in value) else None


FLAG = Kind[bool]("true or false", lambda value: value if isinstance(value, bool) else None)
INTEGER = Kind[int]("a whole number", _integer)
NUMBER = Kind[float]("a number", _number)
TEXT = Kind[str]("a text", lambda value: value if isinstance(value, str) else None)
TEXTS = Kind[list[str]]("a list of texts", _texts)
INTEGERS = Kind[list[int]]("a list of whole numbers", _integers)
POSITIONS = Kind["list[int | None]"]("a slice: a list of at most three whole numbers or null", _positions)


def choice(*words: str) -> Kind[str]:
    """The type of a field whose value is one of a few words."""
    name = f"one of {', '.join(words)}" if words[1:] else ", ".join(words)
    return Kind(name, lambda value: value if isinstance(value, str) and value in words else None)


DTYPE = choice(*(prefix + name for name in ("float32", "float64", "float16", "bfloat16") for prefix in ("", "torch.")))


class Fields:
    """An object in a config file. Fields that are null count as missing."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._values = values
        self._source = source
        self._asked: set[str] = set()
        self._inner: dict[str, Fields] = {}

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def mentions(self, key: str) -> bool:
        """Whether the field is present, even as null."""
        return key in self._values

    def get(self, key: str, kind: Kind[T]) -> T | None:
        """A field, or None if it is missing.

        Raises:
            UserError: it has another type.
        """
        self._asked.add(key)
        if key not in self:
            return None
        found = kind.read(self._values[key])
        if found is None:
            raise UserError(f"{self._source}: {key} = {shown(self._values[key])}: expected {kind.name}")
        return found

    def need(self, key: str, kind: Kind[T]) -> T:
        """A required field.

        Raises:
            UserError: it is missing or has another type.
        """
        found = self.get(key, kind)
        if found is None:
            raise UserError(f"{self._source}: the config gives no {key}")
        return found

    def one(self, keys: Iterable[str], kind: Kind[T]) -> T | None:
        """A field that has had several names.

        Raises:
            UserError: two of the names are present with different values.
        """
        found = {key: value for key in keys if (value := self.get(key, kind)) is not None}
        if any(value != next(iter(found.values())) for value in found.values()):
            differing = ", ".join(f"{key} = {shown(value)}" for key, value in found.items())
            raise UserError(f"{self._source}: {differing}: these contradict each other")
        return next(iter(found.values()), None)

    def same(self, key: str, kind: Kind[T], actual: T, where: str = "the tensors have") -> None:
        """Check that a field, if present, agrees with what is known from elsewhere.

        Raises:
            UserError: it does not agree.
        """
        found = self.get(key, kind)
        if found is not None and found != actual:
            raise UserError(f"{self._source}: the config says {key} = {shown(found)}, {where} {shown(actual)}")

    def absent(self, key: str, why: str) -> None:
        """Refuse a field that is present and not false, zero or empty, for the given reason.

        Raises:
            UserError: there is such a field.
        """
        self._asked.add(key)
        if self._values.get(key):
            raise UserError(f"{self._source}: {key} = {shown(self._values[key])}: {why}")

    def inside(self, key: str) -> "Fields":
        """The object in a field. It has no fields if the field is missing.

        Raises:
            UserError: the field holds something else.
        """
        self._asked.add(key)
        value = self._values.get(key)
        if value is not None and not isinstance(value, dict):
            raise UserError(f"{self._source}: {key} = {shown(value)}: expected an object")
        return self._inner.setdefault(key, Fields(value or {}, f"{self._source}: {key}"))

    def harmless(self, table: Harmless) -> None:
        """Mark fields that may have any value."""
        for names in table.values():
            self._asked.update(names.split())

    def check_read(self) -> None:
        """Raise a UserError if a field was not requested."""
        for key, value in self._values.items():
            if key not in self._asked and value is not None:
                raise UserError(
                    f"{self._source}: {key} = {shown(value)} is not known here and may change the SAE; "
                    "if it does not, take it out of a copy of the file"
                )
        for inner in self._inner.values():
            inner.check_read()


def shown(value: Any) -> str:
    """A value for a message, short and on one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
