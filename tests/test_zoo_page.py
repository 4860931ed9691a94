"""docs/make_zoo.py: from records of several seeds to the tables of docs/zoo.md."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from scalar_sae.records.results import Record, Results
from scalar_sae.records.sae_results import SaeFidelity
from scalar_sae.scoring.compare import method_scores, ratios
from tests.scoring.test_compare import record

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def zoo() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "make_zoo.py"))


def run(seed: int, **edges_90: float) -> Results:
    """A run with a record per method and two blocks, and its SAEs."""
    records: list[Record] = []
    saes: list[SaeFidelity] = []
    for method, edges in edges_90.items():
        for layer in (1, 2):
            made = record(f"ff_block.{layer}", method, edges * layer)
            records.append(made.model_copy(update={"hashes": {"lm": "m", "up": f"{method}{seed}"}}))
            for kind in ("resid_mid", "resid_post", "mlp_in"):
                fvu = {"resid_mid": 0.1, "resid_post": 0.3, "mlp_in": 9.0}[kind] + 0.1 * seed
                fields = {"fvu": fvu, "l0": 10.0, "dead": 0.25, "ce_increase": 0.5}
                saes.append(SaeFidelity.model_construct(method=method, site=f"{kind}.{layer}", **fields))
    return Results.model_construct(records=records, saes=saes)


@pytest.fixture(scope="module")
def runs() -> list[Results]:
    return [run(0, topk=20, other=1e9, wide=40), run(1, topk=30, other=40, wide=60)]


@pytest.fixture(scope="module")
def content(zoo: dict[str, Any], runs: list[Results]) -> dict[str, Any]:
    return json.loads(json.dumps(zoo["collected"](runs)))


def test_the_tables_are_those_of_compare_with_never_and_intervals(
    zoo: dict[str, Any], runs: list[Results], content: dict[str, Any]
):
    records = [one for run in runs for one in run.records]
    found = {row.method: row for row in method_scores(records, "faithful_at.80") if row.block == "all ff_block"}
    beside = {row.method: row for row in ratios(records, "topk", "faithful_at.80").rows if row.n_blocks == 2}
    lines = [line for line in zoo["tables"](content).splitlines() if line.startswith("| ")]
    topk, other, wide = lines[1:4]
    (low, high), (least, most) = found["topk"].interval, beside["wide"].interval
    assert topk.startswith(f"| topk | {found['topk'].value:,.0f} [{low:,.0f}, {high:,.0f}] | 1 | 0.11")
    assert topk.endswith("| 0.250 | 10.0 | 25% | 0.500 |"), "the SAEs of these blocks alone, over both seeds"
    assert other.startswith("| other | never | never | 0.11"), "one seed never reaches it"
    assert f"| {beside['wide'].value:.2g} [{least:.2g}, {most:.2g}] |" in wide
    assert [line.split(" | ")[1] for line in lines[5:7]] == ["ff_block.1", "ff_block.2"]


def test_the_page_keeps_what_is_around_the_tables(zoo: dict[str, Any], content: dict[str, Any]):
    text = (DOCS / "zoo.md").read_text(encoding="utf-8")
    for name in zoo["TABLES"]:
        made = zoo["page"](text, name, content)
        assert zoo["page"](made, name, content) == made
        start, end = f"<!-- made by make_zoo.py: {name} -->", f"<!-- end of {name} -->"
        assert text.count(start) == text.count(end) == 1
        assert text.partition(start)[0] == made.partition(start)[0]
        assert text.partition(end)[2] == made.partition(end)[2] != ""
        assert zoo["tables"](content) in made


def test_the_page_shows_the_tables_that_are_checked_in(zoo: dict[str, Any]):
    text = (DOCS / "zoo.md").read_text(encoding="utf-8")
    for name, file in zoo["TABLES"].items():
        assert zoo["page"](text, name, json.loads(file.read_text(encoding="utf-8"))) == text
