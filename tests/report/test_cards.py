"""Cards of features against the tables that they are read from."""

from dataclasses import replace
from pathlib import Path

import pytest

from scalar_sae.evaluation.features.tables import read_examples
from scalar_sae.report.cards import Cards
from scalar_sae.report.text import token_text
from tests.explorer.subjects import small_subject


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    small_subject(run)
    return run / "features" / "m" / "resid_mid.0"


def test_labels_name_the_tokens_at_which_a_latent_fires_most_strongly(folder: Path):
    contexts, vocabulary = read_examples(folder)
    expected: dict[int, list[str]] = {}
    for row in contexts.to_pylist():
        token = token_text(vocabulary[row["tokens"][row["position"] - row["start"]]])
        if row["kind"] == "top" and token not in expected.setdefault(row["latent"], []):
            expected[row["latent"]].append(token)
    cards = Cards.read(folder)
    found = {latent: label["tokens"] for latent, label in cards.labels(range(cards.n_latents), n=100).items()}
    assert {latent: tokens for latent, tokens in found.items() if tokens} == expected
    assert expected


def test_examples_show_activations_to_three_digits(folder: Path):
    contexts, _ = read_examples(folder)
    cards = Cards.read(folder)
    for latent, card in cards.of(range(cards.n_latents)).items():
        rows = [row for row in contexts.to_pylist() if row["latent"] == latent and row["kind"] != "silent"]
        assert [row["acts"] for row in card["examples"]] == [
            [pytest.approx(a, abs=6e-4) for a in r["acts"]] for r in rows
        ]
        assert all(round(a, 3) == a for row in card["examples"] for a in row["acts"])


def test_latents_that_never_fire_have_labels_without_tokens(folder: Path):
    cards = Cards.read(folder)
    silent = replace(cards, contexts=cards.contexts.slice(0, 0))
    assert [label["tokens"] for label in silent.labels(range(3)).values()] == [[], [], []]
    assert silent.card(0)["examples"] == []
