"""Commands that are killed, that find the disk full, or that are told twice to end while they write."""

import sys
from collections.abc import Iterator

import pytest

from tests.robustness.corpus.player import Player
from tests.robustness.corpus.storm import WORKS, Storm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


@pytest.fixture(scope="module")
def storm() -> Iterator[Storm]:
    with Player() as player:
        yield Storm(player)


@pytest.mark.parametrize("name", WORKS)
def test_a_command_that_is_killed_at_a_random_moment_goes_on_to_the_same_bytes(storm: Storm, name: str):
    assert storm.killed(name, seed=0) is None


WRITING = ["train", "train-lm", "cache", "score", "circuit", "features", "blind"]
"""Commands that keep what is done of their work."""


NO_ROOM = [
    ("disk_full", 0, "cannot be written (No space left on device); free space"),
    ("disk_full", 3, "cannot be written (No space left on device); free space"),
    ("largest_file", 1500, "cannot be written"),
]
"""What goes wrong, from which write or byte on, and what is said."""


@pytest.mark.parametrize(("fault", "limit", "said"), NO_ROOM)
@pytest.mark.parametrize("name", WRITING)
def test_a_lack_of_room_is_one_line_and_the_work_goes_on_when_there_is_room(
    storm: Storm, name: str, fault: str, limit: int, said: str
):
    work = WORKS[name]
    folder = storm.folder(work)
    ended = storm.run(work, folder, fault, limit)
    assert ended.code == 2, ended
    assert said in ended.err.splitlines()[-1]
    assert not [path for path in folder.rglob("*") if path.name.endswith(".partial") and path.name.startswith(".")]
    assert storm.finished(name, folder) is None


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("name", WRITING)
def test_two_signals_while_a_checkpoint_is_written_lose_nothing(storm: Storm, name: str, number: int):
    work = WORKS[name]
    folder = storm.folder(work)
    ended = storm.run(work, folder, "ended_twice", number)
    assert ended.code in (143, -15), ended
    assert "Traceback" not in ended.err
    assert storm.finished(name, folder) is None
