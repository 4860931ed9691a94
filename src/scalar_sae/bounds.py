"""Limits for user input in configs: names that become folders, seeds, sizes and numbers, checked where they enter."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

LONGEST_NAME = 200
"""Maximum length of a name in bytes. File systems allow 255, but suffixes are added to some names."""


def folder_name(text: str) -> str:
    """Check a name of SAEs from other people's files, which becomes the name of a folder.

    Raises:
        ValueError: it is not the name of a single visible folder.
    """
    if not text or not text.isprintable() or set(text) & set("/\\"):
        raise ValueError("expected printable characters without slashes")
    if text.startswith("."):
        raise ValueError("expected a name that does not begin with a dot: it would be hidden, or lead out")
    if len(text.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        raise ValueError(f"expected at most {LONGEST_NAME} bytes")
    return text


def _name(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", folder_name(text)) is None:
        raise ValueError("expected up to 100 letters, digits, '_', '-' and '.'")
    return text


def _address(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("expected printable characters")
    return text


Name = Annotated[str, AfterValidator(_name)]
"""A name that a config gives to a group of SAEs."""
Address = Annotated[str, AfterValidator(_address)]
"""A name, a path or an address of the Hub."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Seed of a random generator."""
Count = Annotated[int, Field(gt=0, le=10**12)]
"""Number of things that are processed piece by piece."""
Size = Annotated[int, Field(gt=0, le=2**24)]
"""Number of things that are held in memory together."""
Rate = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
"""A learning rate, a norm or a factor above 0."""
