"""Error messages for the user: one printable line that says what was wrong and what to do about it."""

import difflib
from collections.abc import Iterable

from scalar_sae.redaction import redacted

LONGEST = 2000
"""Maximum length of a message. A longer one is cut in the middle, because the remedy is at the end."""
LONGEST_VALUE = 200
"""Maximum length of a value quoted in a message."""


class UserError(ValueError):
    """Bad input, reported as one line; the command line exits with code 2. Keys and tokens are removed from its
    message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(redacted(message)))


def one_line(text: str, longest: int = LONGEST) -> str:
    """Convert a text to one line that a terminal shows unchanged.

    Line breaks, other control characters, marks that change the direction of writing, and undecodable bytes of file
    names are written as escapes. A text longer than `longest` is cut in the middle.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    if len(text) <= longest:
        return text
    tail = longest // 3
    return f"{text[: longest - tail - 5]} ... {text[-tail:]}"


def quoted(value: object) -> str:
    """A value as a message shows it: its repr, cut in the middle if it is long."""
    try:
        return one_line(repr(value), LONGEST_VALUE)
    except ValueError:  # an integer with thousands of digits
        return "a number of thousands of digits"


def reason(error: BaseException) -> str:
    """The message of a library's exception in one line, or its name if it has no message."""
    return one_line(" ".join(str(error).split()), LONGEST_VALUE) or type(error).__name__


def unknown(kind: str, value: str, valid: Iterable[str]) -> UserError:
    """The error for a name that is not one of `valid`. It suggests the nearest valid name."""
    names = list(valid)
    near = difflib.get_close_matches(value[:LONGEST_VALUE], names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {quoted(value)}: expected one of {', '.join(names)}{hint}")
