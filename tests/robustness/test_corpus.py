"""Hundreds of bad files and options: see corpus/. `python -m tests.robustness.corpus` plays all there are."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.robustness.corpus.files import FILES, chosen, file_cases
from tests.robustness.corpus.options import PLAIN, option_cases, verbs
from tests.robustness.corpus.player import Player
from tests.robustness.corpus.system import system_cases

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
CASES_OF_A_FILE = 14
CASES_OF_A_VERB = 20


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    with Player() as playing:
        yield playing


def play(cases: list[Any], how: Callable[[Any], str | None]) -> None:
    """All cases of a class; those that end as they should not are shown together."""
    assert cases
    wrong = [f"{case.name}\n    {found}" for case in cases if (found := how(case))]
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_refused_in_one_line_and_nothing_changes(player: Player, file: str):
    play(chosen(file_cases(player.world)[file], CASES_OF_A_FILE), player.file)


@pytest.mark.parametrize("verb", PLAIN)
def test_a_bad_value_of_an_option_is_refused_in_one_line_and_nothing_changes(player: Player, verb: str):
    cases = [case for case in option_cases() if case.verb == verb]
    play(cases[:: -(-len(cases) // CASES_OF_A_VERB)], player.option)


@pytest.mark.parametrize("stdout", ["closed", "full"])
def test_work_is_done_whole_when_nobody_takes_the_output(player: Player, stdout: str):
    play(system_cases(stdout), player.system)


def test_every_verb_is_among_them():
    assert set(PLAIN) == set(verbs())
