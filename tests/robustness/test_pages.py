"""Pages full of hostile text, in a real browser: nothing runs, nothing is torn, nobody else is answered."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.blind import Answers
from scalar_sae.evaluation.features.tables import write_table
from scalar_sae.records.results import Results
from scalar_sae.report.blind import Comparison, serve
from scalar_sae.report.features import write_page
from scalar_sae.report.model_card import model_card
from scalar_sae.report.page import render
from scalar_sae.report.text import token_text, visible
from scalar_sae.saes.formats.detect import Located
from scalar_sae.saes.formats.files import Found
from tests.helpers import random_sae, running
from tests.report.test_page import record
from tests.robustness.hostile import TEARING, TEXTS, results, write_tables

WIDTHS = (1280, 390)


def check_harmless(browser: Any, contents: str) -> None:
    """Nothing ran, nothing was loaded from elsewhere, nothing is wider than the window; the text is all there."""
    assert browser.execute_script("return window.ran") is None
    assert browser.title != "ran"
    assert browser.execute_script("return document.querySelectorAll('iframe, base, object, embed, form').length") == 0
    assert browser.execute_script("return document.querySelectorAll('script:not([src])').length") <= 2
    assert browser.execute_script(
        "return performance.getEntriesByType('resource').every((e) => e.name.startsWith(location.origin) "
        "|| e.name.startsWith('file:') || e.name.startsWith('data:'))"
    )
    for width in WIDTHS:
        browser.set_window_size(width, 900)
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), width
    shown = browser.execute_script(
        "const copy = document.querySelector(arguments[0]).cloneNode(true);return copy.textContent",
        contents,
    )
    assert "<script>window.ran=1" in shown
    assert not set(shown) & set("\x00\x1b\x7f\u202e\u2066\u200b\ufeff")


def test_every_character_of_a_text_is_seen():
    assert visible("a\x00\x1b\u202eb\ud800") == "a␀␛[U+202E]b[U+D800]"
    assert visible("tab\tline\n") == "tab\tline\n"
    assert token_text("x" * 10_000) == "x" * 200 + "… (10,000 characters)"
    family = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
    assert visible(family) == family
    for text in TEARING:
        assert token_text(text).replace("\t", "").replace("\u200d", "").isprintable()


@pytest.mark.browser
def test_hostile_features(tmp_path: Path, browser: Any):
    folder = tmp_path / "m" / "resid_post.0"
    write_tables(folder)
    said = [{"latent": 0, "explanation": text, "detection": 0.5, "fuzzing": None, "judge": {"model": text}}
            for text in TEXTS]  # fmt: skip
    (folder / "judged.jsonl").write_text("\n".join(map(json.dumps, said)))
    page = write_page(folder, "".join(TEXTS[:20]))
    browser.get(page.as_uri())
    assert browser.find_element("tag name", "body").get_attribute("data-latent") == "0"
    assert len(browser.find_elements("css selector", "#latent pre")) > 20
    check_harmless(browser, "#latent")


@pytest.mark.browser
def test_hostile_report(tmp_path: Path, browser: Any):
    page = tmp_path / "report.html"
    config = {"train": {"lm": TEXTS[0], "tokens": TEXTS[1]}, **{text: text for text in TEXTS}}
    page.write_text(render(results(), config, "".join(TEXTS[:20])), encoding="utf-8")
    browser.get(page.as_uri())
    assert len(browser.find_elements("css selector", "figure > svg")) > 10
    browser.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    check_harmless(browser, "main")
    assert browser.find_elements("css selector", "svg a, script") == []


def test_a_config_that_is_none_of_ours_is_shown(tmp_path: Path):
    for config in ({}, {"train": None}, {"train": []}, {"train": {"lm": None}}, {"train": {"tokens": "many"}}):
        assert "<html" in render(results().model_copy(update={"records": []}), config, "x")


def test_a_report_of_a_hundred_blocks_has_room_for_them():
    records = [record(f"ff_block.{layer}", "topk", "leave_one_out_with_prior", 512, 10.0, 1.0) for layer in range(100)]
    assert "ff_block.99" in render(Results(records=records), {}, "x")


def test_a_model_card_is_text(tmp_path: Path):
    """Names cannot make links, images, code, tags or cells of a table."""
    sae = random_sae(4, 8, 3, 0)
    for number, text in enumerate(TEXTS):
        name = "".join(one for one in text if one.isprintable() and one not in "/\\").strip()[:40] or "x"
        found = Found(sae, name, "resid_mid.0", recipe={"note": f"```\n{text}\n```"})
        card = model_card("me/mine", [Located(found, "scalar-sae", tmp_path)], None)
        [row] = [line for line in card.splitlines() if "resid_mid.0 |" in line]
        assert len(re.findall(r"(?<!\\)\|", row)) == 9, number
        assert "<" not in row
        assert card.count("```") == 4
        shown, recipe = card.split("```json\n")[1].split("\n```")[0], {"note": f"```\n{text}\n```"}
        whole = json.dumps(recipe, indent=1).replace("`", "\\u0060")
        if len(whole) <= 4000:
            assert json.loads(shown) == recipe
        else:
            assert shown == whole[:4000] + "\n..."


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    for side in ("a", "b"):
        write_tables(tmp_path / side)
    pairs = [{"a": number, "b": number, "left": "a"} for number in range(4)]
    (tmp_path / "pairs.json").write_text(json.dumps({"names": {"a": "x", "b": "y"}, "pairs": pairs}))
    with running(serve(Comparison(tmp_path, "ann"), 0)) as server:
        yield server.url


def wait_for(browser: Any, pair: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 10).until(lambda b: b.find_element("tag name", "body").get_attribute("data-pair") == pair)


@pytest.mark.browser
def test_hostile_blind_comparison(address: str, browser: Any):
    browser.get(address)
    wait_for(browser, "0")
    check_harmless(browser, "#pair")


@pytest.mark.browser
def test_two_windows_lose_no_answer(address: str, tmp_path: Path, browser: Any):
    """Both show the first pair; the second to answer it is told, and goes on with the next."""
    browser.get(address)
    wait_for(browser, "0")
    browser.switch_to.new_window("tab")
    browser.get(address)
    wait_for(browser, "0")
    one, _ = browser.window_handles
    browser.find_element("css selector", "[data-choice=left]").click()
    wait_for(browser, "1")
    browser.switch_to.window(one)
    browser.find_element("css selector", "[data-choice=right]").click()
    wait_for(browser, "1")
    assert "pair 1 was answered in another window (left)" in browser.find_element("id", "progress").text
    browser.find_element("css selector", "[data-choice=right]").click()
    wait_for(browser, "2")
    assert Answers(tmp_path, "ann", 4).choices == {0: "left", 1: "right"}
    [refused] = browser.get_log("browser")  # the browser's own line about the status
    assert "409" in refused["message"]


@pytest.mark.parametrize("site", TEXTS[:40])
def test_an_edge_to_what_is_no_site_is_refused(site: str, tmp_path: Path):
    write_tables(tmp_path / "x")
    edges = pa.table({"latent": [0], "side": ["up"], "site": [site], "other": [0], "score": [1.0]})
    write_table(edges, tmp_path / "x" / "edges.parquet")
    with pytest.raises(UserError, match=r"edges\.parquet: damaged"):
        write_page(tmp_path / "x", "x")
