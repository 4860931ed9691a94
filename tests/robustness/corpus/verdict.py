"""What a command may do with a bad input: refuse it in one line that names it, or do what it does without the damage.

Whatever happens, no file that was there changes but those that the command is to write, and after a refusal nothing new
is there.
"""

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalar_sae.errors import one_line
from tests.robustness.corpus.warm import Ended

VOLATILE = {"seconds", "train_seconds", "versions", "written_by", "time", "threads", "state"}
"""Fields that differ from run to run. `state` is a digest of the times of files (explorer/files.py)."""
LOGS = ("events.jsonl",)
_HEAD = 2**20


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it left."""

    ended: Ended
    before: dict[str, str]
    after: dict[str, str]

    @property
    def said(self) -> str:
        """The last line on the error stream."""
        return (self.ended.err.splitlines() or [""])[-1]


def tree(folder: Path) -> dict[str, str]:
    """Every path below a folder, with a digest of what is there."""
    found: dict[str, str] = {}
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where, name)
            found[path.relative_to(folder).as_posix()] = _digest(path)
    return found


def _digest(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"link {path.readlink()}"
    if not stat.S_ISREG(mode):
        return "folder" if stat.S_ISDIR(mode) else "pipe"
    size = path.stat().st_size
    with path.open("rb") as file:
        return f"{size} {hashlib.sha256(file.read(_HEAD) if size > 2**30 else file.read()).hexdigest()}"


def meaning(folder: Path, outcome: Outcome) -> Any:
    """What a command made, without what differs from run to run: its JSON document and the files that it wrote."""

    def parsed(text: str) -> Any:
        return steady(json.loads(text.replace(str(folder), "here")))

    try:
        said: Any = parsed(outcome.ended.out)
    except ValueError:
        said = outcome.ended.out
    made = {
        name: parsed((folder / name).read_text()) if name.endswith(".json") else digest
        for name, digest in outcome.after.items()
        if outcome.before.get(name) != digest and Path(name).name not in LOGS
    }
    return said, made


def steady(value: Any) -> Any:
    """Values without the fields that differ from run to run."""
    if isinstance(value, dict):
        return {key: steady(each) for key, each in value.items() if key not in VOLATILE}
    return [steady(each) for each in value] if isinstance(value, list) else value


def fault(outcome: Outcome, names: tuple[str, ...], writes: tuple[str, ...], keeps: tuple[str, ...] = ()) -> str | None:
    """What is wrong with how a command ended, beside a success that is wrong; None if nothing is.

    Args:
        outcome: of the command.
        names: one of them must be in the message of a refusal.
        writes: beginnings of the paths that it makes or changes when it succeeds.
        keeps: beginnings of the paths that a refusal may leave, since the command goes on from there.
    """
    ended = outcome.ended
    if ended.timed_out:
        return "hangs"
    if ended.code < 0:
        return f"dies of signal {-ended.code}"
    if "Traceback" in ended.err or ended.code == 70 or ended.code == 1:
        last = [line for line in ended.report.splitlines() if line.strip().startswith("File ")]
        return f"traceback: {outcome.said} {' '.join(last[-1:])}"
    if ended.code not in (0, 2):
        return f"exit code {ended.code}: {outcome.said}"
    lost = sorted(name for name in outcome.before if name not in outcome.after and not _temporary(name))
    changed = sorted(name for name, digest in outcome.after.items() if outcome.before.get(name, digest) != digest)
    new = sorted(name for name in outcome.after if name not in outcome.before)
    if ended.code == 0:
        touched = [name for name in (*lost, *changed, *new) if not name.startswith(writes or ("/",))]
        touched += filter(_temporary, new)
        return f"exit code 0, but it touched {', '.join(touched)}" if touched else None
    changed = [name for name in changed if Path(name).name not in LOGS]
    new = [name for name in new if not name.startswith(keeps or ("/",)) or _temporary(name)]
    if "executed" in new:
        return "runs what it reads"
    if lost or changed or new or ended.files:
        kinds = {"loses": lost, "changes": changed, "leaves": new, "leaves in TMPDIR": ended.files}
        what = [f"{verb} {', '.join(some[:4])}" for verb, some in kinds.items() if some]
        return f"refused, but {'; '.join(what)}: {outcome.said}"
    if not re.fullmatch(r"scalar: [^\n]+\n", ended.err) or not ended.err[:-1].isprintable():
        return f"not one line on the error stream: {ended.err[-300:]!r}"
    if not any(name and name in ended.err for name in names):
        return f"names none of {', '.join(map(repr, names))}: {outcome.said}"
    if not re.search(r"[;:,(]| or |see ", ended.err[8:]):
        return f"says no remedy: {outcome.said}"
    return None


def _temporary(name: str) -> bool:
    """Whether this is the name of a file that is there while a command works."""
    return name.endswith((".partial", ".lock", ".owner"))


def shown(value: str) -> tuple[str, ...]:
    """The ways in which a message may show a value, as far as it is short."""
    forms = (one_line(value), one_line(repr(value))[1:-1], value)
    return tuple(form[:40] for form in forms)
