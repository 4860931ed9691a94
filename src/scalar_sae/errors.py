"""Messages for the user: one printable line that names what was wrong and what to do about it."""

import difflib
from collections.abc import Iterable

from scalar_sae.redaction import redacted

LONGEST = 2000
"""Characters of a message; what is longer is cut in the middle, since the remedy stands at the end."""
LONGEST_VALUE = 200
"""Characters of a value that a message quotes."""


class UserError(ValueError):
    """Bad input, reported as one line; the command line exits with code 2. No key or token is in its message."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(redacted(message)))


def one_line(text: str, longest: int = LONGEST) -> str:
    """A text as one line that a terminal shows as it is.

    Line breaks, other control characters, marks that change the direction of writing, and bytes of a file name that are
    no text are written as escapes. A text longer than `longest` is cut in the middle.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    if len(text) <= longest:
        return text
    tail = longest // 3
    return f"{text[: longest - tail - 5]} ... {text[-tail:]}"


def quoted(value: object) -> str:
    """A value as a message shows it: its repr, cut in the middle when it is long."""
    try:
        return one_line(repr(value), LONGEST_VALUE)
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"


def reason(error: BaseException) -> str:
    """What an exception of a library says, in one line; its name where it says nothing."""
    return one_line(" ".join(str(error).split()), LONGEST_VALUE) or type(error).__name__


def unknown(kind: str, value: str, valid: Iterable[str]) -> UserError:
    """An error for a name that is not one of `valid`, with the nearest suggested."""
    names = list(valid)
    near = difflib.get_close_matches(value[:LONGEST_VALUE], names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {quoted(value)}: expected one of {', '.join(names)}{hint}")
