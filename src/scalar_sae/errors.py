"""The one exception that is the user's to mend: what was wrong, and what to do about it."""

import difflib
from collections.abc import Iterable

from scalar_sae.redaction import redacted


class UserError(ValueError):
    """Bad input, reported as one line; the command line exits with code 2. No key or token is in its message."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


def unknown(kind: str, value: str, valid: Iterable[str]) -> UserError:
    """An error for a name that is not one of `valid`, with the nearest suggested."""
    names = list(valid)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {value!r}: expected one of {', '.join(names)}{hint}")
