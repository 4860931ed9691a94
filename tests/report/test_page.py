"""The report: its arithmetic, and the page in a real browser."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from scalar_sae.records.results import Floor, PromptCurves, Record, Results
from scalar_sae.records.sae_results import SaeFidelity
from scalar_sae.report.page import compare, controls, headline_ratios, render


def record(block: str, method: str, ranking: str, n_down: int, edges_90: float | None, absolute: float) -> Record:
    curve = [2.0, 1.0, 0.5, 0.1]
    of_prompt = [[y] for y in curve]
    interval = (0.9, 1.1)
    ci: dict = {
        name: interval for name in ("absolute", "relative", "pure", "log_area", "floor.kl", "floor.ce_increase")
    }
    ci |= {f"{kind}.{q}": interval for kind in ("edges_at", "live_edges_at") for q in ("50", "90", "99")}
    ci |= {name: [(0.9 * y, 1.1 * y) for y in curve] for name in ("kl_model", "kl_circuit", "recovery")}
    return Record(
        block=block, method=method, ranking=ranking, seed=0, n_up=512, n_down=n_down, n_edges=512 * n_down,
        n_live_edges=1000, n_tokens=16, edges=[0, 1, 100, 262144], kl_model=curve, kl_circuit=curve,
        live_edges=[0, 1, 2, 3], l0_down=[0, 1, 2, 10], absolute=absolute, relative=absolute / (512 * n_down), pure=5.0,
        edges_at={"50": 10, "90": edges_90, "99": None}, live_edges_at={"50": 1, "90": 2, "99": None},
        dip={"50": 0, "90": 0, "99": 0}, log_area=0.3, floor=Floor(kl=0.1, ce_increase=0.05), ci=ci,
        config={"prompts": 2, "rank_prompts": 2, "context": 16, "edges": "full"}, versions={"torch": "x"},
        data={"corpus": "c", "fingerprint": "f", "ranked_on": "a", "scored_on": "b"}, seconds=1.0,
        prompts=PromptCurves(kl_model=of_prompt, kl_circuit=of_prompt, live_edges=of_prompt, l0_down=of_prompt,
                             floor_kl=[0.1], floor_ce=[0.1], n_tokens=[16], n_targets=[15]),
    )  # fmt: skip


def fidelity(method: str, site: str, chunks: Sequence[float] = (10,)) -> SaeFidelity:
    return SaeFidelity(
        method=method, site=site, d_sae=512, activation="TopK 10", l0=10, loss=1, fvu=0.1, fvu_token_mean=0.1,
        fvu_residual_variance=0.1, cosine=0.9, shrinkage=0.95, ce_increase=0.2, kl=0.3,
        ce_recovered={"zero": 0.9, "mean": 0.8}, kl_recovered={"zero": 0.9, "mean": None}, dead=0.1, rarest=0.03,
        density=[0] * 12, dense={"0.01": 0.2, "0.1": 0.1, "0.5": 0.0}, l0_per_chunk=list(chunks), n_tokens=100,
        n_prompts=2, ci={},
    )  # fmt: skip


@pytest.fixture
def results() -> Results:
    records = [
        record(block, method, ranking, n_down, edges, absolute)
        for ranking in ("ablation", "published")
        for block in ("ff_block.0", "ff_block.1", "transformer_block.0")
        for method, n_down, edges, absolute in (("topk", 512, 1000.0, 100.0), ("staircase", 1024, 4000.0, 80.0))
    ]
    saes = [
        fidelity("topk", "resid_mid.0"), fidelity("staircase", "resid_mid.0"),
        fidelity("staircase", "resid_post.0", [4, 6]),
    ]  # fmt: skip
    return Results(records=records, saes=saes)


def test_reductions_and_the_do_nothing_value(results: Results):
    published = [r for r in results.records if r.ranking == "published"]
    topk, staircase = compare(published)[:2]
    assert topk.relative is None
    assert staircase.absolute == pytest.approx(0.2)
    assert staircase.relative == pytest.approx(1 - 0.8 / 2)
    assert staircase.do_nothing == pytest.approx(0.5)


def test_identical_curves_score_exactly_the_do_nothing_value(results: Results):
    same = [record("ff_block.0", m, "published", n, 1.0, 70.0) for m, n in (("topk", 512), ("staircase", 1024))]
    comparison = compare(same)[1]
    assert comparison.absolute == 0
    assert comparison.relative == comparison.do_nothing


def test_headline_ratios_are_geometric_means_over_layers(results: Results):
    assert headline_ratios([r for r in results.records if r.ranking == "ablation"]) == [
        ("ff_block", "staircase", pytest.approx(4.0), 2),
        ("transformer_block", "staircase", pytest.approx(4.0), 1),
    ]


def test_controls_stand_beside_their_pair(results: Results):
    assert controls(results) == []
    first = results.records[0]
    padded = first.model_copy(update={"control": "padded", "relative": first.relative / 4})
    random = record("ff_block.0", "topk", "random", 512, 200_000.0, 300.0)
    local = record("ff_block.0", "topk", "local", 512, 77.0, 300.0)
    more = results.model_copy(update={"records": [*results.records, padded, random, local]})
    (control,) = controls(more)
    assert (control.record, control.random, control.padded, control.shuffled) == (first, random, padded, None)
    page = render(more, {}, "run")
    assert 'id="controls"' in page
    assert "<td>77.0<small>" in page
    assert "random order" in page
    assert "Shuffled" not in page


def test_text_from_files_cannot_inject_markup(results: Results):
    page = render(results, {"train": {"lm": "<script>alert(1)</script>", "tokens": 5}}, "x")
    assert "<script>alert(1)" not in page


@pytest.mark.browser
def test_the_page_in_a_browser(results: Results, tmp_path: Path, browser: Any):
    from selenium.webdriver.common.by import By

    page = tmp_path / "report.html"
    page.write_text(render(results, {"train": {"lm": "toy", "tokens": 5}}, "run"), encoding="utf-8")
    browser.set_window_size(1280, 1000)
    browser.get(page.as_uri())
    rows = browser.find_elements(By.CSS_SELECTOR, "#headline tbody tr")
    assert len(rows) == 6
    assert "ff_block.0" in rows[0].text
    assert "1,000" in rows[0].text
    published = browser.find_element(By.CSS_SELECTOR, "#published table").text
    assert "+60.0 %" in published
    assert "+50.0 %" in published
    assert len(browser.find_elements(By.CSS_SELECTOR, ".js-plotly-plot .main-svg")) >= 6
    linear = browser.find_elements(By.CSS_SELECTOR, "#curves .updatemenu-button")[1]
    kind = "return document.querySelector('#curves .js-plotly-plot').layout.xaxis.type"
    assert browser.execute_script(kind) == "log"
    linear.click()
    assert browser.execute_script(kind) == "linear"
    too_wide = "return document.documentElement.scrollWidth > window.innerWidth"
    assert not browser.execute_script(too_wide)
