"""docs/paper.md: the paper's aggregates follow from its printed tables, and the page says what the arithmetic gives."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
TABLES: dict[str, Any] = json.loads((DOCS / "paper_tables.json").read_text(encoding="utf-8"))
PAGE = (DOCS / "paper.md").read_text(encoding="utf-8")
AGGREGATES = [(block, score) for block, scores in TABLES["aggregates"].items() if block != "about" for score in scores]


@pytest.fixture(scope="module")
def paper() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_paper", DOCS / "make_paper.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("block", "score"), AGGREGATES)
def test_every_published_aggregate_is_the_sum_of_the_printed_numbers(paper: ModuleType, block: str, score: str):
    published = TABLES["aggregates"][block][score][0]
    assert paper.as_printed(block, score) == pytest.approx(published, abs=0.031 if block.startswith("gpt2") else 0.006)


@pytest.mark.parametrize(("block", "score"), AGGREGATES)
def test_a_published_aggregate_holds_in_edge_nats_only_where_the_columns_share_a_unit(
    paper: ModuleType, block: str, score: str
):
    real, published = paper.aggregate(block, score), TABLES["aggregates"][block][score][0]
    one_unit = len(set(TABLES["areas"][block]["unit"])) == 1
    assert (abs(real.value - published) < 0.05) == one_unit
    if not one_unit:
        assert abs(real.value - published) > 1.96 * real.error


@pytest.mark.parametrize(("block", "score"), AGGREGATES)
def test_propagated_errors_agree_with_drawing_the_tables_again(paper: ModuleType, block: str, score: str):
    rng = np.random.default_rng(0)
    edges = np.array(TABLES["areas"][block]["edges"] if score == "relative" else 1)

    def drawn(method: str) -> np.ndarray:
        value, error = np.array(TABLES["areas"][block][method]).T
        return (value + error * rng.standard_normal((20_000, len(value)))) * np.array(TABLES["areas"][block]["unit"])

    reductions = 100 * (1 - (drawn(paper.method_of(block)) / edges).sum(1) / drawn("topk").sum(1))
    assert paper.aggregate(block, score).error == pytest.approx(reductions.std(), rel=0.05)
    assert paper.aggregate(block, score).value == pytest.approx(reductions.mean(), abs=0.3)


def test_printed_reductions_per_layer(paper: ModuleType):
    for block, scores in TABLES["reductions"].items():
        if block == "about":
            continue
        method = paper.areas(block, paper.method_of(block))
        for score, values in scores.items():
            mine = paper.relative(method, TABLES["areas"][block]["edges"]) if score == "relative" else method
            found = [paper.reduction([t], [m]).value for t, m in zip(paper.areas(block, "topk"), mine, strict=True)]
            assert found == pytest.approx(values, abs=0.4)  # the tables' areas have three digits


def test_the_rule_behind_the_printed_errors(paper: ModuleType):
    def rule(block: str, score: str) -> float:
        method = paper.printed(block, paper.method_of(block))
        if score == "relative":
            method = paper.relative(method, TABLES["areas"][block]["edges"])
        return paper.printed_error(TABLES["aggregates"][block][score][0], paper.printed(block, "topk"), method)

    toy = {names: rule(*names) for names in AGGREGATES if not names[0].startswith("gpt2")}
    assert [round(value, 2) for value in toy.values()] == [0.38, 0.71, 1.83, 0.90, 1.30]
    rows = zip(TABLES["reductions"]["ff_layer"]["absolute"], *(paper.areas("ff_layer", m) for m in ("topk", "jsae")),
               strict=True)  # fmt: skip
    assert [round(paper.printed_error(value, [t], [m]), 2) for value, t, m in rows] == [341.87, 1.57, 0.52, 0.96]


def test_equal_areas_score_the_do_nothing_value(paper: ModuleType):
    assert paper.do_nothing("ff_block", "absolute") == 0
    assert paper.do_nothing("ff_block", "relative") == pytest.approx(50)
    assert paper.do_nothing("transformer_block", "relative") == pytest.approx(76.90, abs=0.01)


def test_table_7_is_the_best_of_the_sweep(paper: ModuleType):
    best = paper.sweep_best("full_model")
    assert [coefficient for coefficient, _ in best] == ["1.8", "1.2", "3.3", "2.2"]
    assert [area for _, area in best] == pytest.approx(
        [area.value for area in paper.areas("ff_layer", "jsae")], rel=0.004
    )


def test_the_page_holds_the_tables_and_figures_of_the_arithmetic(paper: ModuleType):
    assert paper.aggregate_table() in PAGE
    assert paper.layer_table() in PAGE
    for block in paper.BLOCKS:
        assert f"{paper.mean_over_layers(block):.2f}" in PAGE
    start = paper.sweep_total("full_circuit", "0")
    best = sum(area for _, area in paper.sweep_best("full_circuit"))
    for cut in (1 - paper.sweep_total("full_circuit", "10") / start, 1 - best / start):
        assert f"{100 * cut:.1f} %" in PAGE


def test_the_two_lines_anyone_can_check():
    lines = re.findall(r"^(1 - [\d.e+()/ ]+?)\s+# ([\d.]+):", PAGE, re.MULTILINE)
    assert len(lines) == 2
    for expression, value in lines:
        assert eval(expression, {"__builtins__": {}}) == pytest.approx(float(value), abs=5e-5)


def test_blind_comparison_shows_no_preference():
    topk, staircase = TABLES["blind"]["topk"], TABLES["blind"]["staircase"]
    share = staircase / (topk + staircase)
    error = (share * (1 - share) / (topk + staircase)) ** 0.5
    assert f"{100 * share:.1f} ± {100 * error:.1f} %" in PAGE
