"""Plays cases: a job's files are put into a folder, which serves the next case too unless this one has changed it."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.robustness.corpus import world
from tests.robustness.corpus.files import FileCase
from tests.robustness.corpus.options import OptionCase
from tests.robustness.corpus.system import SystemCase
from tests.robustness.corpus.verdict import Outcome, fault, meaning, tree
from tests.robustness.corpus.warm import Command, Warm
from tests.smoke import Guesser


class Player:
    """A warm process, its world, and a judge; a context."""

    def __enter__(self) -> "Player":
        self.root = Path(tempfile.mkdtemp(prefix="scalar-corpus-"))
        self.root.chmod(0o755)
        self._judge = ThreadingHTTPServer(("127.0.0.1", 0), Guesser)
        self._judge.daemon_threads = True
        threading.Thread(target=self._judge.serve_forever, daemon=True).start()
        self.judge = f"http://127.0.0.1:{self._judge.server_port}/v1"
        self.world = self.root / "world"
        self.warm = Warm()
        self.warm.build(self.world, self.judge)
        self._ready: dict[str, tuple[Path, dict[str, str]]] = {}
        self._usual: dict[str, Any] = {}
        self._n = 0
        return self

    def __exit__(self, *_: object) -> None:
        self.warm.close()
        self._judge.shutdown()
        self._judge.server_close()
        shutil.rmtree(self.root, ignore_errors=True)

    def place(self, name: str, job: world.Job) -> tuple[Path, dict[str, str]]:
        """A folder with what a job needs, and its tree."""
        if name not in self._ready:
            self._n += 1
            folder = self.root / f"{self._n:04d}" / "here"
            folder.mkdir(parents=True)
            world.copy(self.world, job, folder)
            if not (folder / "text.txt").exists():
                shutil.copyfile(self.world / "text.txt", folder / "text.txt")
            (folder / "loop").symlink_to("loop")
            (folder / "dangling").symlink_to("nothing-there")
            os.mkfifo(folder / "pipe")
            self._ready[name] = folder, tree(folder)
        return self._ready[name]

    def leave(self, name: str, folder: Path, outcome: Outcome, *restored: str) -> None:
        """The folder of a case serves the next one if nothing but some restored files has changed in it."""
        for file in restored:
            path = folder / file
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)
            else:
                shutil.rmtree(path)
            shutil.copyfile(self.world / file, path)
        if outcome.after != outcome.before:
            self._ready.pop(name, None)
            shutil.rmtree(folder.parent, ignore_errors=True)

    def run(self, words: Iterable[str], folder: Path, before: dict[str, str], **how: Any) -> Outcome:
        """Run a command in a folder."""
        scratch = folder.parent / "scratch"
        command = Command(world.argv([*words], self.world, self.judge), str(folder), str(scratch), **how)
        ended = self.warm.run(command)
        shutil.rmtree(scratch)
        return Outcome(ended, before, tree(folder))

    def usual(self, name: str) -> Any:
        """What a job makes of files that are not damaged."""
        if name not in self._usual:
            job = world.JOBS[name]
            place = f"{name} without damage"
            folder, before = self.place(place, job)
            outcome = self.run(job.argv, folder, before, fault=list(job.fault))
            assert outcome.ended.code == 0, (name, outcome.ended)
            assert fault(outcome, (), job.writes) is None, (name, fault(outcome, (), job.writes))
            self._usual[name] = meaning(folder, outcome)
            self.leave(place, folder, outcome)
        return self._usual[name]

    def file(self, case: FileCase) -> str | None:
        """Play a case of a file; what is wrong with how it ended."""
        job = world.JOBS[case.job]
        folder, _ = self.place(case.job, job)
        case.apply(folder / case.file)
        outcome = self.run(job.argv, folder, tree(folder), fault=list(job.fault))
        wrong = fault(outcome, case.names, job.writes, job.keeps)
        if wrong is None and outcome.ended.code == 0 and not case.may_differ:
            found, usual = meaning(folder, outcome), self.usual(case.job)
            wrong = None if found == usual else "exit code 0 with another result"
        self.leave(case.job, folder, outcome, case.file)
        return wrong

    def option(self, case: OptionCase) -> str | None:
        """Play a case of an option; what is wrong with how it ended."""
        name = f"options of {case.verb}"
        folder, before = self.place(name, case.job)
        outcome = self.run(case.argv, folder, before, fault=list(case.job.fault))
        writes = () if case.option.endswith(("out", "cache")) else case.job.writes
        wrong = fault(outcome, case.names, writes, case.job.keeps)
        if wrong is None and outcome.ended.code == 0 and not case.free:
            wrong = "exit code 0: the value is taken"
        self.leave(name, folder, outcome)
        return wrong

    def system(self, case: SystemCase) -> str | None:
        """Play a case of the system; what is wrong with how it ended."""
        job = world.JOBS[case.job]
        folder, before = self.place(case.job, job)
        outcome = self.run(job.argv, folder, before, fault=list(job.fault), stdout=case.stdout)
        ended = outcome.ended
        # a document that nobody takes is said; what is on disk is the same in any case
        said = (
            ended.err
            == "scalar: standard output: cannot be written (No space left on device); what is on disk is whole\n"
        )
        wrong = fault(replace(outcome, ended=replace(ended, code=0, err="")), (), job.writes)
        if wrong is None and ended.code != (2 if case.stdout == "full" else 0):
            wrong = f"exit code {ended.code}: {outcome.said}"
        elif wrong is None and case.stdout == "full" and not said:
            wrong = f"not one line on the error stream: {ended.err!r}"
        elif wrong is None and meaning(folder, outcome)[1] != self.usual(case.job)[1]:
            wrong = "other files than with an output that somebody takes"
        self.leave(case.job, folder, outcome)
        return wrong
