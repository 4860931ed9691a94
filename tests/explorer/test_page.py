"""The explorer's page in a real browser: a walk through all of it, hostile text, an export from disk, a dead server."""

import io
import json
import socket
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import fromstring as parsed

import pytest
from selenium.common.exceptions import StaleElementReferenceException

from scalar_sae.errors import UserError
from scalar_sae.evaluation.features import judge
from scalar_sae.evaluation.features.judges import Judge
from scalar_sae.explorer import answers
from scalar_sae.explorer.app import Explorer, serve
from scalar_sae.explorer.files import Kept
from scalar_sae.explorer.questions import Change
from scalar_sae.explorer.subject import Subject
from tests.explorer.subjects import KEY, RANKING, small_subject, two_pairs
from tests.helpers import running

ABOUT = {"pair": KEY, "ranking": RANKING}
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<img src=x onerror='window.ran=1'>\u202eback\x00" + "x" * 10_000


class Page:
    """What a person does in the page."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def all(self, css: str) -> list[Any]:
        return self.browser.find_elements("css selector", css)

    def one(self, css: str) -> Any:
        """An element, once it is there."""
        return self.until(lambda: self.all(css) or None)[0]

    def until(self, found: Callable[[], Any]) -> Any:
        end = time.monotonic() + 30
        while True:
            with suppress(StaleElementReferenceException):  # the page drew itself anew meanwhile
                if value := found():
                    return value
            assert time.monotonic() < end, self.browser.find_element("tag name", "body").text[-500:]
            time.sleep(0.02)

    def text(self, css: str) -> str:
        """The text of an element, once it is there."""
        return self.until(lambda: self.one(css).text)

    def put(self, css: str, value: str) -> None:
        """Type into a field, at once."""
        script = (
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event(arguments[2], {bubbles: true}))"
        )
        element = self.one(css)
        self.browser.execute_script(script, element, value, "change" if element.tag_name == "select" else "input")

    def press(self, css: str) -> None:
        self.browser.execute_script("arguments[0].click()", self.one(css))

    def key(self, css: str, key: str) -> None:
        script = "arguments[0].dispatchEvent(new KeyboardEvent('keydown', {key: arguments[1], bubbles: true}))"
        self.browser.execute_script(script, self.one(css), key)

    def saved(self, kind: str, css: str) -> bytes:
        """What a button saves."""
        script = (
            "const [kind, css, done] = arguments, make = URL.createObjectURL;"
            "URL.createObjectURL = (blob) => { if (blob.type === kind) blob.arrayBuffer().then((buffer) =>"
            " done([...new Uint8Array(buffer)])); URL.createObjectURL = make; return make(blob); };"
            "document.querySelector(css).click();"
        )
        return bytes(self.browser.execute_async_script(script, kind, css))

    def drawn(self) -> None:
        """Wait until the page is drawn, and its address has followed."""
        script = "const done = arguments[0]; requestAnimationFrame(() => setTimeout(() => setTimeout(done)))"
        self.browser.execute_async_script(script)

    def state(self, name: str) -> Any:
        """A part of the address."""
        self.drawn()
        text = self.browser.execute_script("return new URLSearchParams(location.hash.slice(1)).get(arguments[0])", name)
        return None if text is None else text if name in ("focus", "text", "query") else json.loads(text)


@pytest.mark.browser
def test_a_walk_through_the_explorer(tmp_path: Path, browser: Any):
    subject = small_subject(tmp_path / "run")
    kept, (record,) = Kept(tmp_path / "run"), subject.pairs[KEY].records
    explorer = Explorer(lambda: subject, kept)  # asked only while the server has no work
    for name, body in (("run", {}), ("map", ABOUT)):
        explorer.answer(name, body)
    page, loaded = Page(browser), threading.Event()

    def load() -> Subject:
        loaded.wait(60)
        return subject

    with running(serve(load, 0, kept)) as server:
        browser.get(server.url)

        # before the model is loaded there are a map with its curve, search, and cards; the prompt waits and says so
        page.key("svg.columns .node", "Enter")
        page.one("#feature .card")
        page.put("#search", "u1")
        assert "the language model is being loaded" in page.text("#loading")
        assert page.all(".curve input")
        page.put("#search", "")
        loaded.set()
        page.until(lambda: not page.all("#loading"))

        # the map: what stands beside the slider is the record's
        page.one("svg.columns .node")
        assert page.text("h1").startswith("<i>small</i> run[U+202E]")
        point = next(point for point in record.curve() if point["edges"] == 32)
        page.put(".curve input", str(record.edges.index(32)))
        page.until(lambda: page.one("#n-edges").text == "32")
        assert page.one("#map-recovery").text == shown(point["recovery"])
        assert page.one("#map-faithfulness").text == shown(point["faithfulness"])
        top = explorer.answer("map", ABOUT)["edges"]
        drawn = {element.get_attribute("data-id") for element in page.all("svg.columns .node")}
        assert drawn == {f"u{i}" for i, *_ in top[:32]} | {f"d{j}" for _, j, _ in top[:32]}
        page.put("#search", f"u{top[0][0]}")
        page.until(lambda: len(page.all("svg.columns .node")) < len(drawn))
        page.put("#search", "")

        # pins: the recovery is the engine's
        page.key(f"[data-id=u{top[0][0]}]", "Enter")
        page.one("#feature .card")
        pins = [button.get_attribute("data-edge") for button in page.all("#feature [data-edge]")][:5]
        for pin in pins:
            page.press(f"[data-edge={pin}]")
        edges = [[int(end[1:]) for end in pin.split("-")] for pin in pins]
        page.until(lambda: [one.get_attribute("data-edges") for one in page.all("#recovery")] == ["5"])
        expected = explorer.answer("recovery", {**ABOUT, "edges": edges, "text": page.state("text")})
        assert float(page.one("#recovery").get_attribute("data-recovery")) == pytest.approx(
            expected["recovery"], abs=1e-4
        )

        # an edge: on which prompts it matters
        page.press(f"[data-open={pins[0]}]")
        kl = float(page.one("#edge-kl").get_attribute("data-kl"))
        ends = dict(zip(("up", "down"), edges[0], strict=True))
        assert kl == pytest.approx(explorer.answer("edge", {**ABOUT, **ends})["kl"], rel=1e-3)

        assert page.one("#no-judge")

        # groups by attribution profile: a group is a node
        page.put("#alike", "0.5")
        page.press("#cluster")
        expected = explorer.answer("groups", {**ABOUT, "edges": 32, "alike": 0.5})
        page.until(lambda: page.state("groups"))
        assert [group["members"] for group in page.state("groups")] == [group["members"] for group in expected]
        for number, group in enumerate(expected):
            assert page.one(f"[data-id=g{number}{group['members'][0][0]}]")
            assert not any(page.all(f"[data-id={member}]") for member in group["members"])
        page.press("#dissolve")
        page.one(f"[data-id=u{top[0][0]}]")

        # groups and names by hand, hostile ones too
        page.key(f"[data-id=u{top[0][0]}]", "Enter")
        page.put("#name", "<b>mine</b>")
        for end in ("u", "d"):
            page.key(f"[data-id={end}{top[1]['ud'.index(end)]}]", "p")
        for box in page.all("#pins input[type=checkbox]"):
            browser.execute_script("arguments[0].click()", box)
        page.until(lambda: page.all("#pins .row button:nth-of-type(2):not(:disabled)"))
        page.press("#pins .row button:nth-of-type(2)")
        page.put(".group-name", HOSTILE)
        page.one("[data-id=g0u]")
        assert page.state("groups")[0]["name"] == HOSTILE

        # the address opens the same page in another tab
        page.drawn()
        address, drawing = browser.current_url, page.text("svg.columns")
        first = browser.current_window_handle
        browser.switch_to.new_window("tab")
        browser.get(address)
        page.until(lambda: page.all("svg.columns") and page.text("svg.columns") == drawing)
        assert page.one("#name").get_attribute("value") == "<b>mine</b>"
        assert browser.execute_script("return window.ran") is None
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        browser.close()
        browser.switch_to.window(first)

        # the journey of a prompt
        page.press("#view-journey")
        page.put("#text", "def f(x):")
        page.press("#read")
        page.until(
            lambda: [one.text for one in page.all(".tokens button")] == ["d", "e", "f", "␣", "f", "(", "x", ")", ":"]
        )
        page.press("[data-token='5']")
        n = int(page.text("#n-local"))
        step = explorer.answer("step", {**ABOUT, "text": "def f(x):", "position": 5})
        assert page.one("#local-recovery").text == shown(step["curve"]["recovery"][step["curve"]["edges"].index(n)])
        local = {element.get_attribute("data-id") for element in page.all("svg.columns .node")}
        first_n = step["edges"]["edges"][:n]
        assert {one for one in local if one[0] == "d"} == {f"d{edge['down']}" for edge in first_n}
        assert {one for one in local if one[0] == "u"} == {f"u{edge['up']}@5" for edge in first_n}

        # the graph holds the nodes that are drawn and the tokens, and no others
        graph = json.loads(page.saved("application/json", "#graph"))
        nodes = [one["node_id"].split("_") for one in graph["nodes"]]
        assert {f"u{i}@{s}" for layer, i, s in nodes if layer == "1"} == {one for one in local if one[0] == "u"}
        assert {f"d{j}" for layer, j, _ in nodes if layer == "2"} == {one for one in local if one[0] == "d"}
        assert [int(token) for layer, token, _ in nodes if layer == "3"] == [
            row["token"] for row in step["outputs"]["predicted"]
        ]
        assert len([one for one in local if one[0] == "t"]) == len(step["outputs"]["predicted"])
        assert [int(place) for layer, place, _ in nodes if layer == "E"] == list(range(len("def f(x):")))

        # pictures of what is drawn
        svg = parsed(page.saved("image/svg+xml", "#svg").decode())
        assert {text.text for text in svg.iter(f"{SVG}text") if text.text} >= {"Upstream", "Downstream", "Predicted"}
        assert len(list(svg.iter(f"{SVG}rect"))) == len(local) + 1  # and the ground
        png = page.saved("image/png", "#png")
        assert png.startswith(b"\x89PNG")
        assert len(png) > 5000

        # an intervention: the distributions before and after are the engine's
        page.press("#view-test")
        page.put("#add-up", str(first_n[0]["up"]))
        page.press("#add")
        body = {**ABOUT, "position": 5, "interventions": [{"factor": 0, "up": first_n[0]["up"]}]}
        kl = float(page.one("#change-kl").get_attribute("data-kl"))
        change = explorer.answer("change", {**body, "text": "def f(x):"})
        assert kl == pytest.approx(change["kl"], rel=1e-3)
        for row in change["next_tokens"]:
            before, after = page.all(f"[data-token-id='{row['token']}'] [data-p]")
            assert float(before.get_attribute("data-p")) == pytest.approx(row["p"], abs=1e-5)
            assert float(after.get_attribute("data-p")) == pytest.approx(row["p_after"], abs=1e-5)
        page.press("#keep")
        page.put("#text", "while f(y):")  # replayed on another prompt
        page.press("#read")
        page.press("#tried button")
        page.until(lambda: float(page.one("#change-kl").get_attribute("data-kl")) != kl)
        other = explorer.answer("change", {**body, "text": "while f(y):", "position": 10})
        assert float(page.one("#change-kl").get_attribute("data-kl")) == pytest.approx(other["kl"], rel=1e-3)
        assert len(page.state("tried")) == 1

        # what leaves the page: a folder that opens from disk, in the same state
        page.press("#view-map")
        page.one("svg.columns .node")
        zipfile.ZipFile(io.BytesIO(page.saved("application/zip", "#export"))).extractall(tmp_path)
        drawing = page.text("svg.columns")

        # hostile prompts and addresses
        browser.get(f'{server.url}#view=journey&at=2&pins=["u1","<b>"]&groups=7&n=x&text={quote(HOSTILE[:60])}')
        browser.refresh()
        page.until(lambda: page.all(".error") or page.all(".tokens"))
        assert browser.execute_script("return window.ran") is None
        assert browser.get_log("browser") == []
    page.press("#view-test")  # the server has gone
    page.put("#text", "another")
    page.press("#read")
    page.until(lambda: "The server does not answer" in page.one("body").text)
    browser.get_log("browser")  # the browser's own line about it

    browser.get((tmp_path / "explorer" / "index.html").as_uri())
    page.until(lambda: page.all("svg.columns") and page.text("svg.columns") == drawing)
    assert "exported from scalar explore" in page.one(".banner").text


@pytest.mark.browser
def test_a_judge_explains_two_tabs_are_apart_and_a_lost_connection_is_regained(
    tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(judge, "FEWEST", 2)  # the text is short
    small = small_subject(tmp_path / "run")
    going, release = threading.Event(), threading.Event()

    def ask(question: str) -> str:
        going.set()
        assert release.wait(30)
        return f"<b>{HOSTILE[:40]}"

    subject = replace(small, judge=Judge(ask, "<i>judge"))
    guessing = Explorer(lambda: replace(small, judge=Judge(lambda question: "1", "guessing")))
    edges = [row[:2] for row in guessing.answer("map", ABOUT)["edges"]]
    ends = next(row for row in edges if guessing.answer("explain", {**ABOUT, "edge": row})["explanation"])
    page, edge = Page(browser), f"u{ends[0]}-d{ends[1]}"
    with running(serve(lambda: subject, 0)) as server:
        browser.get(f"{server.url}#focus={edge}")
        assert "<i>judge" in page.text("#explain")
        page.press("#explain")
        assert going.wait(30)

        # another tab is served by the same thread, one answer after the other, and has a state of its own
        first = browser.current_window_handle
        browser.switch_to.new_window("tab")
        browser.get(f"{server.url}#n=2")
        page.until(lambda: "ranking the edges" in page.one("body").text or page.all("svg.columns"))
        release.set()
        page.until(lambda: len(page.all("svg.columns .node")) > 0)
        assert page.state("focus") is None
        browser.close()
        browser.switch_to.window(first)
        assert page.text("#explained").startswith("<b><img src=x onerror='window.ran=1'>[U+202E]")
        assert browser.execute_script("return window.ran") is None
        assert page.state("focus") == edge

        # the connection is lost and regained
        lose = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        browser.execute_cdp_cmd("Network.enable", {})
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", lose)
        page.press("#view-journey")
        page.put("#text", "def g(y):")
        page.press("#read")
        page.until(lambda: "The server does not answer" in page.one("body").text)
        browser.execute_cdp_cmd(
            "Network.emulateNetworkConditions",
            {**lose, "offline": False, "downloadThroughput": -1, "uploadThroughput": -1},
        )
        page.press(".again")
        page.until(lambda: len(page.all(".tokens button")) == len("def g(y):"))
        browser.get_log("browser")  # the browser's own line about it


@pytest.mark.browser
def test_a_server_that_dies_in_the_middle_of_an_intervention_leaves_the_state_in_the_address(
    tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch
):
    subject, dead = small_subject(tmp_path / "run"), threading.Event()

    def change(subject: Subject, question: Change, on_progress: Any) -> Any:
        on_progress(0.5)
        dead.wait(30)
        raise UserError("too late")

    page, changes = Page(browser), [{"up": 1, "factor": 0}]
    state = f"#view=test&at=2&text={quote('def f(x):')}&changes={quote(json.dumps(changes))}"
    with monkeypatch.context() as held, running(serve(lambda: subject, 0)) as server:
        held.setitem(answers.ANSWERS, "change", change)
        browser.get(server.url + state)
        page.until(lambda: "50.0 %" in page.one("body").text)
        for transport in [one.transport for one in server._server.server_state.connections]:
            transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        page.until(lambda: "The server ended before it had answered" in page.one("body").text)
        dead.set()
        assert (page.state("changes"), page.state("at"), page.state("text")) == (changes, 2, "def f(x):")
        left = browser.execute_script("return location.hash")
    with running(serve(lambda: subject, 0)) as server:  # the part from # on behind the new address
        browser.get(server.url + left)
        body = {**ABOUT, "text": "def f(x):", "position": 2, "interventions": changes}
        kl = float(page.one("#change-kl").get_attribute("data-kl"))
        assert kl == pytest.approx(Explorer(lambda: subject).answer("change", body)["kl"], rel=1e-3)
    browser.get_log("browser")  # the browser's own line about it


@pytest.mark.browser
def test_pins_of_several_blocks_make_paths_and_are_kept_when_the_page_turns_to_another(tmp_path: Path, browser: Any):
    subject = two_pairs(small_subject(tmp_path / "run", tables=False))
    page, behind = Page(browser), "m/attn_block.1"
    with running(serve(lambda: subject, 0)) as server:
        pins = quote(json.dumps(["u1-d2", "u3-d2", "u3-d4"]))
        browser.get(f"{server.url}#pair={quote(KEY)}&ranking={RANKING}&text={quote('def f(x):')}&pins={pins}")
        page.one("#recovery")
        assert not page.all("#chain")
        page.put("#pair", behind)
        page.until(lambda: page.text("#pins h2") == "Pinned 0")
        page.drawn()
        browser.execute_script("location.hash += '&pins=' + encodeURIComponent(arguments[0])", '["u2-d5", "u2-d6"]')
        reading = page.until(lambda: page.all("#chain-recovery"))[0]
        paths = [one.text for one in page.all("#paths li")]
        assert sorted(paths) == ["1 → 2 → 5", "1 → 2 → 6", "3 → 2 → 5", "3 → 2 → 6"]
        parts = [
            {**ABOUT, "edges": [[1, 2], [3, 2], [3, 4]]},
            {**ABOUT, "pair": behind, "edges": [[2, 5], [2, 6]]},
        ]
        expected = Explorer(lambda: subject).answer("chain", {"parts": parts, "text": "def f(x):"})
        assert float(reading.get_attribute("data-recovery")) == pytest.approx(expected["recovery"], abs=1e-4)
        page.press("#chain .row button")
        page.until(lambda: page.state("pins") == ["u1-d2", "u3-d2", "u3-d4"])
        assert page.state("others") == {behind: ["u2-d5", "u2-d6"]}


def shown(share: float) -> str:
    """A share as the page writes it."""
    return f"{100 * share:.{2 if abs(share) < 0.1 else 1}f} %"
