"""The report: its arithmetic, and the page in a real browser."""

import csv
import math
import random
import re
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest

from scalar_sae.records.results import Floor, PromptCurves, Record, Results, Rise
from scalar_sae.records.sae_results import SaeFidelity
from scalar_sae.report.chart import Axis, linear_axis, log_axis
from scalar_sae.report.environment import asset, viewer
from scalar_sae.report.page import Links, compare, controls, render, write_report
from scalar_sae.report.ratios import Claim, Claims, claims, sentence
from scalar_sae.report.scores_csv import as_csv
from scalar_sae.scoring.compare import Ratio
from scalar_sae.scoring.config import counts_of
from tests.scoring.test_compare import FAITHFUL, few

LEVELS = ("50", "80", "90")
BANDS = ("kl_model", "kl_circuit", "recovery", "faithfulness")
"""Curves that have an interval at every count."""


def record(
    block: str,
    method: str,
    ranking: str,
    n_down: int,
    edges: float | None,
    absolute: float,
    curve: Sequence[float] = (2.0, 1.0, 0.5, 0.1),
) -> Record:
    """A record whose faithfulness is 80 % where its recovery is 90 %: the mean costs half of what no edges cost."""
    curve, kl_mean = list(curve), curve[0] / 2
    of_prompt = [[y] * 20 for y in curve]
    interval = (0.9, 1.1)
    ci: dict = {
        name: interval for name in ("absolute", "relative", "pure", "log_area", "floor.kl", "floor.ce_increase")
    }
    ci |= {f"{kind}.{q}": interval for kind in ("edges_at", "live_edges_at") for q in ("50", "90", "99")}
    kinds = ("faithful_at", "faithful_from", "faithful_live_at")
    ci |= {"kl_mean": interval, "unfaithful_area": interval} | {f"{k}.{q}": interval for k in kinds for q in LEVELS}
    ci |= {name: [(0.9 * y, 1.1 * y) for y in curve] for name in BANDS}
    return Record(
        block=block, method=method, ranking=ranking, seed=0, n_up=512, n_down=n_down, n_edges=512 * n_down,
        n_live_edges=1000, n_tokens=16, edges=[0, 1, 100, 262144], kl_model=curve, kl_circuit=curve,
        live_edges=[0, 1, 2, 3], l0_down=[0, 1, 2, 10], absolute=absolute, relative=absolute / (512 * n_down), pure=5.0,
        edges_at={"50": 10, "90": edges, "99": None}, live_edges_at={"50": 1, "90": 2, "99": None},
        dip={"50": 0, "90": 0, "99": 0}, log_area=0.3, lowest_recovery=0.0,
        largest_rise=Rise(mean=0.0, most=0.0), floor=Floor(kl=0.1, ce_increase=0.05), ci=ci, kl_mean=kl_mean,
        **FAITHFUL | {"faithful_at": {"50": 10, "80": edges, "90": None}},
        config={"prompts": 2, "rank_prompts": 2, "context": 16, "edges": "full"}, versions={"torch": "x"},
        data={"corpus": "c", "fingerprint": "f", "ranked_on": "a", "scored_on": "b"}, seconds=1.0,
        prompts=PromptCurves(kl_model=of_prompt, kl_circuit=of_prompt, live_edges=of_prompt, l0_down=of_prompt,
                             floor_kl=[0.1] * 20, floor_ce=[0.1] * 20, kl_mean=[kl_mean] * 20, n_tokens=[16] * 20,
                             n_targets=[15] * 20),
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
        for ranking in ("leave_one_out", "published")
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


def test_a_ratio_over_blocks_is_the_geometric_mean_of_the_blocks():
    """Curves pass the level between two counts: the score is interpolated in log n there, here by hand."""
    curves = {("ff_block.0", "topk"): [1, 0.5, 0.05, 0], ("ff_block.0", "x"): [1, 0.5, 0.2, 0],
              ("ff_block.1", "topk"): [1, 0.4, 0.1, 0], ("ff_block.1", "x"): [1, 0.05, 0.0, 0]}  # fmt: skip
    records = [record(block, method, "r", 512, 1.0, 1.0, curve) for (block, method), curve in curves.items()]
    n = {
        ("ff_block.0", "topk"): 100 ** (0.4 / 0.45),
        ("ff_block.0", "x"): math.exp(math.log(100) + 0.5 * math.log(262144 / 100)),
        ("ff_block.1", "topk"): 100.0,
        ("ff_block.1", "x"): 1.0,
    }
    first, second = (n[block, "x"] / n[block, "topk"] for block in ("ff_block.0", "ff_block.1"))
    rows = claims(records).rows
    assert [(row.block, row.edges.n_blocks) for row in rows] == [
        ("ff_block.0", 1),
        ("ff_block.1", 1),
        ("all ff_block", 2),
    ]
    for of in (lambda row: row.edges, lambda row: row.recovered):
        assert [of(row).value for row in rows] == pytest.approx([first, second, math.sqrt(first * second)])
    assert [row.block for row in claims(records).overall] == ["all ff_block"]


def ratio(block: str, method: str, value: float, interval: tuple[float, float] | None) -> Claim:
    found = Ratio(block, method, value, interval, None, True, False, n_prompts=20, n_blocks=4)
    return Claim(block, method, found, found, found)


def test_the_sentence_says_no_more_than_the_intervals(results: Results):
    records = results.under("leave_one_out")
    fewer = ratio("all ff_block", "matryoshka", 0.24, (0.12, 0.5))
    more = ratio("all transformer_block", "staircase", 2.2, (1.3, 3.5))
    undecided = ratio("all ff_block", "staircase", 1.72, (0.9, 3.61))
    never = ratio("all ff_block", "relu", math.inf, None)
    aim = "For 80 % faithfulness to the model's own output, "
    assert sentence(records, Claims([undecided], "")) == (
        f"{aim}it is undecided whether staircase at FF blocks (1.72 times as many, 95 % interval 0.9 to 3.61) needs "
        "more or fewer edges than topk."
    )
    assert sentence(records, Claims([fewer, more, undecided, never], "")) == (
        f"{aim}matryoshka at FF blocks (0.24 times as many, 95 % interval 0.12 to 0.5) needs fewer edges than topk; "
        "staircase at transformer blocks (2.2 times as many, 95 % interval 1.3 to 3.5) needs more edges than topk; "
        "for staircase at FF blocks (1.72 times as many, 95 % interval 0.9 to 3.61) this is undecided; "
        "for relu at FF blocks there is no ratio, because not every curve reaches 80 %."
    )


def test_a_block_that_never_reaches_80_percent_is_not_left_out_of_the_ratio_over_blocks():
    low = (2.0, 1.9, 1.8, 1.7)
    records = [record(f"ff_block.{i}", "topk", "r", 512, 50.0, 1.0, (2.0, 1.0, 0.1, 0.0)) for i in (0, 1)]
    records += [record("ff_block.0", "x", "r", 512, 50.0, 1.0, (2.0, 1.0, 0.1, 0.0))]
    records += [record("ff_block.1", "x", "r", 512, None, 1.0, low)]
    found = claims(records)
    assert [row.verdict for row in found.rows] == ["undecided", "never reached", "never reached"]
    assert "for x at FF blocks there is no ratio" in sentence(records, found) or "x" in sentence(records, found)
    page = render(Results(records=records), {}, "run")
    assert page.count("no ratio<small>not every curve gets there") == 4


def test_without_a_baseline_the_sentence_is_about_the_first_pair():
    one = record("ff_block.0", "mine", "r", 512, 1000.0, 1.0)
    one.ci["faithful_at.80"] = (900.0, 1100.0)
    assert sentence([one], claims([one])) == (
        "The SAEs mine at ff_block.0 need 1,000 of 262,144 possible edges (95 % interval 900 to 1,100) for 80 % "
        "faithfulness to the model's own output."
    )
    assert "There are no two sets of SAEs to compare" in render(Results(records=[one]), {}, "run")
    never = record("ff_block.0", "mine", "r", 512, None, 1.0)
    assert sentence([never], claims([never])) == (
        "The SAEs mine at ff_block.0 never reach 80 % faithfulness to the model's own output."
    )
    assert sentence([], claims([])) == "No pair of SAEs has been scored here."


def test_pairs_with_a_poor_full_circuit_are_marked_where_recovery_stands():
    good, poor = (record("ff_block.0", method, "r", 512, 1000.0, 1.0) for method in ("topk", "x"))
    poor = poor.model_copy(update={"floor": Floor(kl=1.01, ce_increase=1.0)})
    assert (good.poor_full_circuit, poor.poor_full_circuit) == (False, True)
    page = render(Results(records=[good, poor]), {}, "run")
    assert page.count("1,000 †<small>") == 1
    assert page.count("1.00 †<small>") == 1
    assert "the full circuit, against which recovery scores (marked †) are measured, is itself poor. (x)" in page


def test_with_few_prompts_the_sentence_and_the_table_say_so():
    records = [few(record("ff_block.0", method, "r", 512, 1000.0, 1.0), 3) for method in ("topk", "x")]
    assert sentence(records, claims(records)) == (
        "For 80 % faithfulness to the model's own output, for x at ff_block.0 (1 times as many) there are not enough "
        "prompts to decide."
    )
    assert "from too few prompts for an interval" in sentence(records[:1], claims(records[:1]))
    page = render(Results(records=records), {}, "run")
    assert page.count("not enough prompts</small>") == 3
    assert page.count("Only 3 prompts were scored: not enough prompts for 95 % intervals, which need 20.") == 1


def test_records_that_do_not_compare_have_a_reason_in_the_place_of_ratios():
    topk = record("ff_block.0", "topk", "r", 512, 1000.0, 1.0)
    other = record("ff_block.0", "x", "r", 512, 1000.0, 1.0)
    other.config["ablation"] = "mean"
    assert "do not compare" in render(Results(records=[topk, other]), {}, "run")


def test_intervals_of_reductions_come_from_those_of_the_ratio(results: Results):
    """The relative score is the absolute one over the number of edges, so its interval is a multiple."""
    _, staircase = compare([r for r in results.records if r.ranking == "published"])[:2]
    assert staircase.absolute_ci is not None
    assert staircase.relative_ci is not None
    for absolute, relative in zip(staircase.absolute_ci, staircase.relative_ci, strict=True):
        assert 1 - relative == pytest.approx((1 - absolute) / 2)


def test_the_csv_holds_every_score_and_its_interval(results: Results):
    rows = list(csv.DictReader(as_csv(results.records).splitlines()))
    assert len(rows) == len(results.records)
    assert (rows[0]["faithful_at.80"], rows[0]["poor_full_circuit"]) == ("1000.0", "False")
    assert list(rows[0]).index("faithful_at.80") < list(rows[0]).index("edges_at.90")
    assert (rows[0]["block"], rows[0]["edges_at.90"], rows[0]["edges_at.99"]) == ("ff_block.0", "1000.0", "")
    assert (rows[0]["floor.kl"], rows[0]["floor.kl.low"], rows[0]["floor.kl.high"]) == ("0.1", "0.9", "1.1")


def test_axes_have_round_ticks_within_their_ends():
    axis = log_axis("n", 1, 262_144)
    assert [label for _, label in axis.ticks] == ["1", "10", "100", "1k", "10k", "100k"]
    assert axis.share(512) == pytest.approx(0.5)
    assert [label for _, label in linear_axis("n", 0, 262_144).ticks] == ["0", "100k", "200k"]
    assert [value for value, _ in linear_axis("y", -0.25, 1.05).ticks] == pytest.approx([0, 0.5, 1])
    assert Axis("y", 0, 4, ()).share(1) == 0.25


def test_feature_pages_beside_a_report_are_linked(results: Results, tmp_path: Path):
    run, page = tmp_path / "my run", tmp_path / "elsewhere" / "page.html"
    features = run / "features" / "topk" / "resid_mid.0" / "page"
    features.mkdir(parents=True)
    (features / "index.html").touch()
    page.parent.mkdir()
    results.write(run / "results.json")
    text = write_report(run, page).read_text(encoding="utf-8")
    assert '<a href="../my%20run/features/topk/resid_mid.0/page/index.html">topk resid_mid.0</a>' in text
    assert 'href="../my%20run/results.json"' in text
    assert Links.of(run, run / "report.html").features == [
        ("topk resid_mid.0", "features/topk/resid_mid.0/page/index.html")
    ]


def test_controls_stand_beside_their_pair(results: Results):
    assert controls(results) == []
    first = results.records[0]
    padded = first.model_copy(update={"control": "padded", "relative": first.relative / 4})
    shuffled = record("ff_block.0", "topk", "random", 512, 200_000.0, 300.0)
    local = record("ff_block.0", "topk", "local", 512, 77.0, 300.0)
    more = results.model_copy(update={"records": [*results.records, padded, shuffled, local]})
    (control,) = controls(more)
    assert (control.record, control.random, control.padded, control.shuffled) == (first, shuffled, padded, None)
    page = render(more, {}, "run")
    assert 'id="controls"' in page
    assert "<td>77.0<small>" in page
    assert "random order" in page
    assert "Shuffled" not in page


def test_text_from_files_cannot_inject_markup(results: Results):
    page = render(results, {"train": {"lm": "<script>alert(1)</script>", "tokens": 5}}, "x")
    assert "<script>alert(1)" not in page


def test_a_report_as_large_as_the_quickstarts_is_below_a_megabyte():
    """Four FF blocks, two groups of SAEs and four rankings, at the full grid of edge counts."""
    draw, counts = random.Random(0), counts_of("full", 512 * 512).tolist()
    records: list[Record] = []
    for ranking in ("leave_one_out_with_prior", "published", "local", "random"):
        for block, method in product([f"ff_block.{n}" for n in range(4)], ["topk", "staircase-pair"]):
            one = record(block, method, ranking, 512, draw.uniform(1e3, 1e5), draw.uniform(1e4, 1e5))
            curve = sorted((draw.uniform(0.1, 3) for _ in counts), reverse=True)
            lines = {"kl_model": curve, "kl_circuit": curve, "live_edges": curve, "l0_down": curve}
            bands = {name: [(0.9 * y, 1.1 * y) for y in curve] for name in BANDS}
            prompts = one.prompts.model_copy(update={name: [[y] * 20 for y in curve] for name in lines})
            changes = {"edges": counts, **lines, "prompts": prompts, "ci": one.ci | bands}
            records.append(one.model_copy(update=changes))
    text = render(Results(records=records), {}, "run")
    assert text.count("<svg") >= 4
    assert 100_000 < len(text.encode()) < 1_000_000


def test_pages_of_features_have_the_colours_of_the_report(results: Results):
    """By day and by night: no page has a colour of its own but the dark band at the top."""
    colours = asset("colours.css")
    assert "prefers-color-scheme: dark" in colours
    assert colours.strip() in render(results, {}, "run")
    for name in ("features", "blind"):
        css = viewer(name)["page.css"]
        assert css.startswith(colours)
        rest = css.removeprefix(colours)
        assert {use for use in re.findall(r"var\((--\w[\w-]*)", rest)} <= set(re.findall(r"(--\w[\w-]*):", colours))
        own = re.sub(r"var\([^)]*\)|^header.*$", "", rest, flags=re.MULTILINE)
        assert not re.findall(r"#[0-9a-f]{3,6}\b|\bwhite\b(?!-)|\bblack\b", own)


@pytest.fixture
def page(results: Results, tmp_path: Path, browser: Any) -> Any:
    """The report in a browser."""
    path = tmp_path / "report.html"
    path.write_text(render(results, {"train": {"lm": "toy", "tokens": 5}}, "run"), encoding="utf-8")
    browser.set_window_size(1280, 1000)
    browser.get(path.as_uri())
    return browser


@pytest.mark.browser
def test_the_page_in_a_browser(page: Any):
    rows = page.find_elements("css selector", "#headline tbody tr")
    assert len(rows) == 6
    assert "ff_block.0" in rows[0].text
    assert "1,000" in rows[0].text
    published = page.find_element("css selector", "#published table").text
    assert "+60.0 %" in published
    assert "+50.0 %" in published
    charts = [chart for chart in page.find_elements("css selector", "#curves figure") if chart.is_displayed()]
    assert len(charts) == 3
    assert "1,000" not in charts[0].text
    point = page.find_element("css selector", "#curves circle title").get_attribute("textContent")
    assert point == "topk, 1 edges (1.0 live a token): 0.000 [0.900, 1.100]"


@pytest.mark.browser
def test_the_keyboard_reaches_the_switch_to_a_linear_axis(page: Any):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def shown() -> set[str]:
        charts = page.find_elements("css selector", "#curves figure")
        return {chart.get_attribute("class").split()[-1] for chart in charts if chart.is_displayed()}

    assert shown() == {"log"}
    for _ in range(20):
        ActionChains(page).send_keys(Keys.TAB).perform()
        if page.switch_to.active_element.get_attribute("id") == "x-log":
            break
    else:
        pytest.fail("twenty tabs do not reach the switch")
    ActionChains(page).send_keys(Keys.ARROW_RIGHT).perform()
    assert shown() == {"linear"}


@pytest.mark.browser
def test_a_narrow_page_does_not_overflow_and_its_charts_stand_below_each_other(page: Any):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    assert page.execute_script("return [window.innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    boxes = [chart.rect for chart in page.find_elements("css selector", "figure") if chart.is_displayed()]
    assert len(boxes) > 4
    for one, other in pairwise(boxes):
        assert one["y"] + one["height"] <= other["y"]


@pytest.mark.browser
def test_dark_mode_has_colours_of_its_own(page: Any):
    def colours() -> list[str]:
        return page.execute_script(
            "return [['body', 'backgroundColor'], ['body', 'color'], ['.line', 'stroke'], ['th', 'color'],"
            "['.tick', 'fill']].map(([e, c]) => getComputedStyle(document.querySelector(e))[c])"
        )

    found: dict[str, list[str]] = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        found[scheme] = colours()
    assert all(light != dark for light, dark in zip(found["light"], found["dark"], strict=True))


@pytest.mark.browser
def test_every_table_has_a_caption_and_every_header_a_scope(page: Any):
    assert page.execute_script("return document.querySelectorAll('table').length") > 4
    assert page.execute_script("return document.querySelectorAll('table:not(:has(caption))').length") == 0
    assert page.execute_script("return document.querySelectorAll('th:not([scope])').length") == 0
    targets = page.execute_script(
        "return [...document.querySelectorAll('nav a')].map((a) => document.querySelector(a.getAttribute('href')))"
    )
    assert targets
    assert all(targets)
