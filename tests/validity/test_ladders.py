"""No step that makes SAEs worse improves the headline, and nonsense is said to be nonsense."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from scalar_sae.scoring.rankings.registry import rank
from scalar_sae.scoring.texts import Texts
from tests.validity.circuits import Planted, orthonormal
from tests.validity.readings import LEVELS, headline, improvements, permuted_labels, scored
from tests.validity.worse import dictionaries, ladders

LADDERS = ("noise on the weights", "latents deleted", "decoders shrunk", "L0 multiplied at the same loss")


@cache
def small() -> tuple[Planted, Texts]:
    """A planted circuit and a few of its prompts."""
    circuit = orthonormal(3)
    return circuit, Texts(circuit.texts.ranking[:6], circuit.texts.scoring[:6], {})


@pytest.mark.parametrize("ladder", LADDERS)
def test_no_step_that_makes_the_saes_worse_improves_the_headline(ladder: str):
    circuit, texts = small()
    steps = ladders(circuit.pair())[ladder]
    records = [scored(pair, texts, edges="coarse") for pair in steps.values()]
    assert not list(improvements(records))
    assert headline(records[-1], "80") > 1.5 * headline(records[0], "80")


def test_a_ranking_with_permuted_labels_is_as_bad_as_a_random_one(tmp_path: Path):
    circuit, texts = small()
    pair = circuit.pair()
    np.save(tmp_path / "permuted.npy", permuted_labels(rank(pair, texts.ranking, "leave_one_out", 0)).numpy())
    true, permuted, by_chance = (
        scored(pair, texts, edges="coarse", ranking=name)
        for name in ("leave_one_out", str(tmp_path / "permuted.npy"), "random")
    )
    for level in LEVELS:
        assert headline(permuted, level) > headline(by_chance, level) / 1.5
        assert headline(permuted, level) > 2 * headline(true, level)


def test_random_saes_and_a_shuffled_model_are_never_faithful():
    circuit, texts = small()
    nonsense = scored(dictionaries(circuit)["random directions at both ends"], texts, edges="coarse")
    shuffled = scored(circuit.pair(), texts, edges="coarse", control="shuffled")
    assert {headline(record, level) for record in (nonsense, shuffled) for level in LEVELS} == {math.inf}
