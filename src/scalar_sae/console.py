"""What the user sees while a command works: progress bars and messages, on the error stream."""

from functools import cache

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

from scalar_sae.errors import one_line
from scalar_sae.io import leads


class Bar:
    """A progress bar with elapsed time and an estimate of what is left; silent when not at a terminal's side."""

    def __init__(self, what: str, total: int | float, *, done: int = 0) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(bar_width=32),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            Remaining(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            disable=not leads(),
            speed_estimate_period=120,
        )
        self._task: TaskID = self._progress.add_task(one_line(what), total=total, completed=done, note="")

    def __enter__(self) -> "Bar":
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()

    def step(self, n: int | float = 1, note: str | None = None) -> None:
        """Advance by `n`, optionally with a new note at the end of the line."""
        if note is None:
            self._progress.update(self._task, advance=n)
        else:
            self._progress.update(self._task, advance=n, note=one_line(note))


def say(text: str) -> None:
    """One line for the user, beside the progress bars."""
    if leads():
        Console(stderr=True).print(one_line(text), highlight=False, markup=False, emoji=False, soft_wrap=True)


def tell(*lines: str) -> None:
    """Lines of a command's result, on the output stream."""
    for line in lines:
        print(one_line(line))  # noqa: T201


@cache
def say_once(text: str) -> None:
    """One line for the user, the first time that it is said in this process."""
    say(text)
