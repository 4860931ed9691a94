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


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", WORKS)
def test_a_command_that_is_killed_at_a_random_moment_goes_on_to_the_same_bytes(storm: Storm, name: str, seed: int):
    assert storm.killed(name, seed) is None


WRITING = ["train", "train-lm", "cache", "score", "circuit", "features", "blind"]
"""Commands that keep what is done of their work."""


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("name", WRITING)
def test_a_full_disk_is_said_in_one_line_and_the_work_goes_on_when_there_is_room(storm: Storm, name: str, number: int):
    work = WORKS[name]
    folder = storm.folder(work)
    ended = storm.run(work, folder, "disk_full", number)
    assert ended.code == 2, ended
    assert "cannot be written (No space left on device); free space" in ended.err.splitlines()[-1]
    assert not [path for path in folder.rglob("*") if path.name.endswith(".partial") and path.name.startswith(".")]
    assert storm.finished(name, folder) is None


@pytest.mark.parametrize("size", [1500])
@pytest.mark.parametrize("name", WRITING)
def test_a_file_that_finds_room_for_its_first_bytes_only_is_not_left(storm: Storm, name: str, size: int):
    work = WORKS[name]
    folder = storm.folder(work)
    ended = storm.run(work, folder, "largest_file", size)
    assert ended.code == 2, ended
    assert "cannot be written" in ended.err.splitlines()[-1]
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
