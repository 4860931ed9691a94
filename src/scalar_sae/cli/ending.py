"""How a command ends: an exit code, and at most one line on the error stream.

| exit code | when |
|---|---|
| 0 | the work is done, also where nobody reads its output any more |
| 2 | the user can mend it: an option, a file, the disk, memory |
| 70 | nobody foresaw it: the traceback is in a file, to be reported |
| 128 + n | signal n |
"""

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

import typer

from scalar_sae._version import __version__
from scalar_sae.errors import UserError, one_line, quoted, reason
from scalar_sae.redaction import redacted

USER, BUG, INTERRUPTED = 2, 70, 130
_OF_THE_SYSTEM = {
    errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS,
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOTEMPTY,
    errno.EEXIST, errno.ENXIO, errno.ENODEV,
}  # fmt: skip
"""What paths, disks and limits do to a program; other errors are its own."""
_USAGE: Any = typer.BadParameter.__mro__[2]  # ClickException, of the click that comes with this typer


def ended(work: Callable[[], Any]) -> int:
    """Do the work of a command and return its exit code, having said what went wrong."""
    with _streams() as output:
        code = _code(work)
        output.flush()
        if code == 0 and output.failure is not None and output.failure.errno != errno.EPIPE:
            code = _complain(
                f"standard output: cannot be written ({output.failure.strerror}); what is on disk is whole"
            )
        return code


def _code(work: Callable[[], Any]) -> int:
    try:
        code = work()
        return code if isinstance(code, int) else 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except UserError as error:
        return _complain(str(error))
    except _USAGE as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("stopped; the same command goes on from here", INTERRUPTED)
    except Exception as error:
        return _unforeseen(error)


def _complain(text: str, code: int = USER) -> int:
    print(f"scalar: {one_line(redacted(text))}", file=sys.stderr)  # noqa: T201
    return code


def _usage(error: Any) -> int:
    """An option or argument that typer itself refuses; without any, the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return USER
    verb = error.ctx.command_path if getattr(error, "ctx", None) else "scalar"
    said, options = error.message.rstrip("."), getattr(getattr(error, "param", None), "opts", [])
    given = _given(options)
    said = error.format_message().rstrip(".") if given is None else f"{options[0]} {quoted(given)}: {said}"
    return _complain(f"{said}; see {verb} --help")


def _given(options: list[str]) -> str | None:
    """The value that the command line gives to an option, by its names."""
    for argument, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in options and name.startswith("-"):
            return value if equals else following
    return None


def _unforeseen(error: Exception) -> int:
    said = reason(error)
    memory = isinstance(error, MemoryError) or "can't allocate memory" in said or "out of memory" in said
    if memory:
        return _complain(
            f"not enough memory ({said}); lower the memory budget, batch sizes or prompts, or take less data"
        )
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        name = error.filename if error.filename is not None else "the system"
        name = os.fsdecode(name) if isinstance(name, bytes) else name
        return _complain(f"{name}: {error.strerror}; check the path, its permissions and the room on its disk")
    where = _kept(error)
    return _complain(f"{type(error).__name__}: {said}; a fault of scalar-sae: please report it{where}", BUG)


def _kept(error: Exception) -> str:
    """Write the traceback down; says where."""
    text = "".join([f"scalar-sae {__version__}\n{sys.argv}\n", *traceback.format_exception(error)])
    try:
        with tempfile.NamedTemporaryFile("w", prefix="scalar-sae-", suffix=".txt", delete=False, encoding="utf-8",
                                         errors="backslashreplace") as file:  # fmt: skip
            file.write(redacted(text))
    except OSError:
        return ""
    return f" with {file.name}"


class _Stream:
    """A standard stream whose reader may leave and whose disk may be full: the work goes on without it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write, unless that failed before."""
        return self._tried(lambda: self._inner.write(text), len(text))

    def flush(self) -> None:
        """Flush, unless writing failed before."""
        self._tried(lambda: self._inner.flush(), 0)

    def _tried(self, do: Callable[[], Any], otherwise: int) -> int:
        if self.failure is None:
            try:
                return do() or otherwise
            except OSError as error:
                self.failure = error
        return otherwise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@contextmanager
def _streams() -> Generator[_Stream]:
    """Standard streams that can take any text and never end the work; yields the one for output."""
    for number in (0, 1, 2):  # one that is closed would be the number of the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    for stream in before:
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    output, errors = (_Stream(stream or open(os.devnull, "w")) for stream in before)  # noqa: PTH123, SIM115
    sys.stdout, sys.stderr = output, errors  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield output
    finally:
        sys.stdout, sys.stderr = before
        for stream in (output, errors):
            stream.flush()
            if stream.failure is not None:  # what is left in its buffer cannot be written at exit either
                with suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
