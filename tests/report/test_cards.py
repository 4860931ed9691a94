"""Cards of features against the tables that they are read from."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.tables import EDGES, read_examples, read_table, write_table
from scalar_sae.report.cards import Cards
from scalar_sae.report.text import token_text
from tests.explorer.subjects import small_subject


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    small_subject(run)
    folder = run / "features" / "m" / "resid_mid.0"
    latent = np.arange(read_table(folder, "latents").num_rows, dtype=np.int32).repeat(2)
    columns = {"latent": latent, "side": ["up", "down"] * (len(latent) // 2), "site": ["resid_post.0"] * len(latent)}
    edges = columns | {"other": latent % 3, "score": np.linspace(1, 2, len(latent), dtype=np.float32)}
    write_table(pa.table(edges, schema=EDGES), folder / "edges.parquet")
    return folder


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


def test_latents_that_never_fire_have_labels_without_tokens(tmp_path: Path, folder: Path):
    shutil.copytree(folder, tmp_path / "sae")
    contexts = read_table(folder, "contexts")
    write_table(contexts.slice(0, 0), tmp_path / "sae" / "contexts.parquet")
    silent = Cards.read(tmp_path / "sae")
    assert [label["tokens"] for label in silent.labels(range(3)).values()] == [[], [], []]
    assert silent.card(0)["examples"] == []


@pytest.mark.parametrize("rows", [1, 7, 10**6])
@pytest.mark.parametrize("order", ["by latent", "backwards"])
def test_cards_do_not_depend_on_how_a_table_is_cut_and_ordered(
    tmp_path: Path, folder: Path, rows: int, order: str, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(folder, tmp_path / "sae")
    monkeypatch.setattr("scalar_sae.evaluation.features.tables.ROW_GROUP", rows)
    for name in ("contexts", "edges"):
        table = read_table(folder, name)
        if order == "backwards":  # the order within a latent stays
            table = table.take(np.argsort(-table["latent"].to_numpy(), kind="stable"))
        write_table(table, tmp_path / "sae" / f"{name}.parquet")
    found, expected = Cards.read(tmp_path / "sae"), Cards.read(folder)
    for some in (range(3, 4), range(2, 9), range(expected.n_latents)):
        assert found.of(some) == expected.of(some)
    assert found.labels(range(expected.n_latents)) == expected.labels(range(expected.n_latents))


def test_examples_are_written_in_the_order_of_the_latents(folder: Path):
    latent = read_table(folder, "contexts")["latent"].to_numpy()
    assert len(latent)
    assert (np.diff(latent) >= 0).all()


def test_a_table_that_goes_away_while_its_page_is_open_is_named(tmp_path: Path, folder: Path):
    shutil.copytree(folder, tmp_path / "sae")
    cards = Cards.read(tmp_path / "sae")
    (tmp_path / "sae" / "contexts.parquet").unlink()
    with pytest.raises(UserError, match=r"contexts\.parquet"):
        cards.card(0)
