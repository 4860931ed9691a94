"""A command that is killed is given again until it ends, and what it leaves is what it leaves when nobody kills it.

`python -m tests.robustness.corpus.storm 200` kills two hundred times.
"""

import json
import random
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.robustness.corpus import world
from tests.robustness.corpus.player import Player
from tests.robustness.corpus.verdict import LOGS, steady, tree
from tests.robustness.corpus.warm import Ended

SITE = "run/features/topk/resid_mid.0"
CACHED = ["train", "small.yaml", "--out", "new", "--cache", "newcache"]


@dataclass(frozen=True)
class Work:
    """A command that writes, from a folder where nothing of it is done."""

    argv: list[str]
    needs: tuple[str, ...]
    removed: tuple[str, ...] = ()
    """Of what it needs, what it makes itself."""
    fault: tuple[str, ...] = ()


WORKS = {
    "train": Work(["train", "small.yaml", "--out", "new"], ("small.yaml", "lm")),
    "train-lm": Work([*world.LM_JOB[:-1], "newlm"], ("text.txt",)),
    "cache": Work(CACHED, ("small.yaml", "lm")),
    "quickstart": Work(["quickstart", "--preset", "small.yaml", "--out", "new"], ("small.yaml", "lm")),
    "measure": Work(world.JOBS["measure"].argv, ("run", "text.txt")),
    "score": Work(world.JOBS["score"].argv, ("run", "text.txt")),
    "circuit": Work([*world.JOBS["circuit"].argv, "--out", "new.json"], ("run", "text.txt")),
    "features": Work(world.JOBS["features"].argv, ("run",), ("run/features",)),
    "judge": Work([*world.JOBS["judge"].argv[:-1], "4"], ("run",), (f"{SITE}/judged.jsonl",)),
    "report": Work(world.JOBS["report"].argv, ("run",)),
    "blind": Work(world.JOBS["blind"].argv, ("run", "text.txt"), (), ("nobody_visits",)),
}


class Storm:
    """Commands that something happens to, and what they leave in the end."""

    def __init__(self, player: Player) -> None:
        self._player = player
        self._usual: dict[str, tuple[Any, float]] = {}
        self._n = 0

    def folder(self, work: Work) -> Path:
        """A new folder with what a command needs."""
        self._n += 1
        folder = self._player.root / f"storm-{self._n:04d}" / "here"
        folder.mkdir(parents=True)
        world.copy(self._player.world, world.Job(work.argv, work.needs), folder)
        for name in work.removed:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        return folder

    def run(self, work: Work, folder: Path, *fault: Any, kill_after: float | None = None) -> Ended:
        """Give the command once; checkpoints are written at every opportunity."""
        words = ["TEXT" if word == "text.txt" else word for word in work.argv]  # records name it by its absolute path
        faults = ["together", ["eager"], *([one] for one in work.fault), *([[*fault]] if fault else [])]
        return self._player.run(words, folder, {}, fault=faults, kill_after=kill_after).ended

    def usual(self, name: str) -> tuple[Any, float]:
        """What a command leaves that nothing happens to, and how long it takes."""
        if name not in self._usual:
            folder = self.folder(WORKS[name])
            ended = self.run(WORKS[name], folder)
            assert ended.code == 0, (name, ended)
            self._usual[name] = left(folder), ended.seconds
            shutil.rmtree(folder.parent)
        return self._usual[name]

    def finished(self, name: str, folder: Path) -> str | None:
        """Give the command again, to its end; what is wrong with what it leaves."""
        ended = self.run(WORKS[name], folder)
        over = "new.json: exists already" in ended.err  # it was killed when its result was there
        if ended.code != 0 and not over:
            return f"cannot be continued: exit code {ended.code}: {ended.err[-500:]}"
        found, usual = left(folder), self.usual(name)[0]
        shutil.rmtree(folder.parent)
        differing = sorted(path for path in {*found, *usual} if found.get(path) != usual.get(path))
        remains = ("new.json.partial", ".new.json.lock", ".new.json.owner") if over else ()
        differing = [path for path in differing if not path.startswith(remains)]
        return f"leaves others than usual: {', '.join(differing)}" if differing else None

    def killed(self, name: str, seed: int) -> str | None:
        """Kill a command once or twice at random moments; what is wrong with what it leaves in the end."""
        rng = random.Random(f"{seed} {name}")
        folder, seconds = self.folder(WORKS[name]), self.usual(name)[1]
        for _ in range(rng.choice((1, 1, 2))):
            self.run(WORKS[name], folder, kill_after=rng.uniform(0.01, seconds))
        return self.finished(name, folder)


def left(folder: Path) -> dict[str, Any]:
    """All files below a folder but logs: JSON by its values, without what differs from run to run, others by digest."""
    found: dict[str, Any] = {}
    for name, digest in tree(folder).items():
        if Path(name).name not in LOGS:
            parsed = name.endswith(".json") and digest != "folder"
            found[name] = steady(json.loads((folder / name).read_text())) if parsed else digest
    found.pop("new/report.html", None)  # of a quickstart: it shows how long the scoring took
    return found


def main(kills: int) -> int:
    """Kill so many times; returns how many commands left something else."""
    start, failed = time.monotonic(), 0
    with Player() as player:
        storm = Storm(player)
        for number in range(kills):
            name = [*WORKS][number % len(WORKS)]
            if wrong := storm.killed(name, number):
                failed += 1
                sys.stdout.write(f"{name} {number}: {wrong}\n")
                sys.stdout.flush()
    sys.stdout.write(f"{kills} commands killed, {failed} left something else, {time.monotonic() - start:.0f} s\n")
    return failed


if __name__ == "__main__":
    sys.exit(min(1, main(int(sys.argv[1]))))
