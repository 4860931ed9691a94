"""What the explorer answers against the engine and the record; streams, exports, graphs; the page that is shipped."""

import asyncio
import hashlib
import io
import json
import re
import socket
import sys
import threading
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import scalar_sae as ss
from scalar_sae.cli import main
from scalar_sae.errors import UserError
from scalar_sae.evaluation.features import judge as judging
from scalar_sae.evaluation.features.judges import Judge
from scalar_sae.explore.explanations import explain_edge, explain_features
from scalar_sae.explore.journey import Journey
from scalar_sae.explorer import answers, edges, questions
from scalar_sae.explorer.app import Explorer, Export, StoppedError, exported, serve
from scalar_sae.explorer.files import Kept
from scalar_sae.explorer.questions import Question
from scalar_sae.explorer.subject import Subject
from scalar_sae.loopback import RefusedError
from scalar_sae.report.text import token_text, visible
from scalar_sae.scoring.rankings.order import strongest
from scalar_sae.scoring.rankings.registry import rank
from tests.explorer.subjects import CONFIG, KEY, RANKING, small_subject, two_pairs
from tests.helpers import random_sae
from tests.robustness.hostile import write_tables

ABOUT = {"pair": KEY, "ranking": RANKING}
TEXT = "def f(x):"


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return small_subject(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def explorer(subject: Subject) -> Explorer:
    return Explorer(lambda: subject, subject.folder and Kept(subject.folder))


@pytest.fixture(scope="module")
def pair(subject: Subject) -> ss.Pair:
    return subject.pair(KEY, RANKING)


def test_the_map_has_the_edges_of_the_ranking_and_the_curve_of_the_record(
    subject: Subject, explorer: Explorer, pair: Any
):
    found, (record,) = explorer.answer("map", ABOUT), subject.pairs[KEY].records
    scores = rank(pair, subject.texts(record).ranking[:4], RANKING, CONFIG.seed)
    assert [[i, j] for i, j, _ in found["edges"]] == strongest(scores, 480, CONFIG.seed).tolist()
    assert [w for *_, w in found["edges"]] == pytest.approx([float(scores[i, j]) for i, j, _ in found["edges"]])
    assert found["curve"] == list(record.curve())
    assert found["n_edges"] == record.n_edges == 24 * 20
    assert len(found["labels"]["up"]) == 24
    assert len(found["labels"]["down"]) == 20


def test_a_record_with_drawn_ablation_values_is_explored_under_mean_ablation_without_its_curve(subject: Subject):
    found = subject.pairs[KEY]
    (record,) = found.records
    drawn = record.model_copy(update={"config": record.config | {"ablation": "resample"}})
    other = replace(subject, pairs={KEY: replace(found, records=(drawn,))})
    assert other.config(drawn).ablation == "mean"
    shown = Explorer(lambda: other).answer("map", ABOUT)
    assert (shown["curve"], shown["ablation"]) == ([], "mean")
    assert len(shown["edges"]) == 480


@pytest.mark.parametrize("n", [1, 11, 64])
def test_the_first_edges_recover_on_the_held_out_text_what_the_record_says(n: int, explorer: Explorer):
    found = explorer.answer("map", ABOUT)
    (point,) = [point for point in found["curve"] if point["edges"] == n]
    reading = explorer.answer("held-out", {**ABOUT, "edges": [edge[:2] for edge in found["edges"][:n]]})
    assert reading["edges"] == n
    for name in ("recovery", "kl_model", "kl_circuit", "faithfulness", "live_edges", "l0_down"):
        assert reading[name] == pytest.approx(point[name], rel=1e-4, abs=1e-6)


def test_pinned_features_keep_the_edges_between_them(explorer: Explorer, pair: Any):
    pinned = {"edges": [[0, 0], [1, 3]], "up": [1, 2], "down": [5, 6]}
    kept = ss.Circuit.of(pair, [(0, 0), (1, 3), (1, 5), (1, 6), (2, 5), (2, 6)])
    expected = Journey(pair, TEXT).measure(kept).model_dump()
    found = explorer.answer("recovery", {**ABOUT, **pinned, "text": TEXT})
    assert found == pytest.approx(expected, rel=1e-3)
    assert found["edges"] == 6


def test_an_intervention_and_a_step_are_those_of_the_engine(explorer: Explorer, pair: Any):
    journey = Journey(pair, TEXT)
    found = explorer.answer("step", {**ABOUT, "text": TEXT, "position": 4})
    edges, curve = journey.edges(4, 5000).model_dump(), journey.curve(4).model_dump()
    assert [(e["source"], e["up"], e["down"]) for e in found["edges"]["edges"]] == [
        (e["source"], e["up"], e["down"]) for e in edges["edges"]
    ]
    assert found["edges"]["total_size"] == pytest.approx(edges["total_size"], rel=1e-4)
    assert found["curve"]["edges"] == curve["edges"]
    assert found["curve"]["recovery"] == pytest.approx(curve["recovery"], abs=1e-4)
    up = found["edges"]["edges"][0]["up"]
    wanted = {"interventions": [{"up": up, "factor": 0.0}], "text": TEXT, "position": 4}
    change = explorer.answer("change", {**ABOUT, **wanted})
    expected = journey.intervene([ss.Intervention(up=up)], position=4).kl
    assert change["kl"] == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-3


def test_ranked_edges_are_kept_in_the_run_until_its_saes_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    subject, ranked = small_subject(tmp_path, tables=False), []
    whole = edges.find_global
    monkeypatch.setattr(edges, "find_global", lambda *names: ranked.append(names) or whole(*names))
    first = edges.top_edges(subject, KEY, RANKING, lambda share: None)
    again = edges.top_edges(small_subject(tmp_path, tables=False), KEY, RANKING, lambda share: None)
    assert first.to_pydict() == again.to_pydict()
    assert len(ranked) == 1
    found = subject.pairs[KEY]
    group = type(found.group)({**found.group, min(found.group): random_sae(16, 24, 4, 9)})
    changed = Subject("x", subject.lm, subject.read_text, {KEY: replace(found, group=group)}, tmp_path)
    other = edges.top_edges(changed, KEY, RANKING, lambda share: None)
    assert len(ranked) == 2
    assert other.to_pydict() != first.to_pydict()
    (path,) = tmp_path.rglob("*.parquet")
    path.write_bytes(b"PAR1" + bytes(40))  # a damaged table is ranked anew
    assert edges.top_edges(changed, KEY, RANKING, lambda share: None).to_pydict() == other.to_pydict()


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("map", {**ABOUT, "pair": "m/ff_block.9"}, "pair"),
        ("map", {**ABOUT, "ranking": "shapley"}, "ranking"),
        ("map", {**ABOUT, "more": 1}, "more"),
        ("card", {"pair": KEY, "end": "up", "latent": 24}, "24 latents"),
        ("card", {"pair": KEY, "end": "up", "latent": -1}, "latent"),
        ("card", {"pair": KEY, "end": "../..", "latent": 0}, "end"),
        ("recovery", {**ABOUT, "text": TEXT, "edges": [[24, 0]]}, "24"),
        ("recovery", {**ABOUT, "text": "", "edges": [[0, 0]]}, "no tokens"),
        ("recovery", {**ABOUT, "text": "x" * 20_001}, "text"),
        ("step", {**ABOUT, "text": TEXT, "position": 9}, "position 9"),
        ("change", {**ABOUT, "text": TEXT, "position": 0, "interventions": [{"factor": 1}]}, "names no latent"),
        ("change", {**ABOUT, "text": TEXT, "position": 0, "interventions": [{"up": 99}]}, "99"),
    ],
)  # fmt: skip
def test_a_question_about_what_is_not_there_is_refused_in_one_line(
    name: str, body: dict[str, Any], said: str, explorer: Explorer
):
    with pytest.raises(UserError, match=said) as refused:
        explorer.answer(name, body)
    assert "\n" not in str(refused.value)


def test_no_other_question_is_answered(explorer: Explorer):
    with pytest.raises(RefusedError):
        explorer.answer("__class__", {})


async def _lines(explorer: Explorer, name: str, body: Any, most: int) -> list[Any]:
    stream, found = explorer.lines(name, body), []
    async for line in stream:
        found.append(json.loads(line))
        if len(found) == most:
            break
    await stream.aclose()
    return found


def test_work_is_told_in_shares_and_stops_when_nobody_waits(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    ended = threading.Event()

    def long(subject: Subject, question: Question, on_progress: Any) -> None:
        try:
            while True:
                on_progress(0.25)
                ended.wait(0.001)
        except StoppedError:
            ended.set()
            raise

    monkeypatch.setitem(questions.QUESTIONS, "long", Question)
    monkeypatch.setitem(answers.ANSWERS, "long", long)
    explorer = Explorer(lambda: subject)
    assert asyncio.run(_lines(explorer, "long", {}, 2)) == [{"progress": 0.25}] * 2
    assert ended.wait(20)
    said = asyncio.run(_lines(explorer, "tokens", {**ABOUT, "text": TEXT}, 100))  # the next question is answered
    assert said[-1]["answer"]["tokens"] == list(TEXT)
    assert list(asyncio.run(_lines(explorer, "tokens", {**ABOUT, "text": ""}, 100))[-1]) == ["error"]


GRAPH: dict[str, Any] = {
    "type": "object",
    "required": ["metadata", "qParams", "nodes", "links"],
    "properties": {
        "metadata": {"type": "object", "required": ["slug", "scan", "prompt_tokens", "prompt"],
                     "properties": {name: {"type": "string"} for name in ("slug", "scan", "prompt")}
                     | {"prompt_tokens": {"type": "array", "items": {"type": "string"}},
                        "info": {"type": "object", "properties": {
                            "description": {"type": "string"}, "create_time_ms": {"type": "number"},
                            "generator": {"type": "object", "properties": {
                                name: {"type": "string"} for name in ("name", "version", "url")}}}}}},
        "qParams": {"type": "object", "properties": {"pinnedIds": {"type": "array", "items": {"type": "string"}},
                                                     "supernodes": {"type": "array"}, "linkType": {"type": "string"},
                                                     "clickedId": {"type": "string"}, "sg_pos": {"type": "string"}}},
        "nodes": {"type": "array", "items": {
            "type": "object",
            "required": ["node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"],
            "properties": {"node_id": {"type": "string"}, "feature": {"type": ["integer", "null"]},
                           "layer": {"type": ["string", "integer"]}, "ctx_idx": {"type": "integer"},
                           "feature_type": {"type": "string"}, "jsNodeId": {"type": "string"},
                           "clerp": {"type": "string"}, "influence": {"type": ["number", "null"]},
                           "activation": {"type": ["number", "null"]}}}},
        "links": {"type": "array", "items": {
            "type": "object", "required": ["source", "target", "weight"],
            "properties": {"source": {"type": "string"}, "target": {"type": "string"}, "weight": {"type": "number"}}}},
    },
}  # fmt: skip
"""What a front end for attribution graphs requires of a file: types and required fields of Neuronpedia's schema
(github.com/hijohnnylin/neuronpedia, apps/webapp/app/api/graph/graph-schema.json), stated for what we write."""


def test_a_graph_is_what_other_viewers_read_and_holds_what_was_shown(explorer: Explorer):
    step = explorer.answer("step", {**ABOUT, "text": TEXT, "position": 4})
    shown = [(e["source"], e["up"], e["down"]) for e in step["edges"]["edges"][:6]]
    up, down = f"u{shown[0][1]}", f"d{shown[0][2]}"
    more = {
        "pins": [f"{up}-{down}"],
        "names": {up: "</script>\x00"},
        "groups": [{"name": "both", "members": [up, down]}],
    }
    found = explorer.answer("graph", {**ABOUT, "text": TEXT, "position": 4, "shown": shown, **more})
    jsonschema.validate(found, GRAPH)
    nodes = {node["node_id"]: node for node in found["nodes"]}
    assert {link[end] for link in found["links"] for end in ("source", "target")} <= set(nodes)
    features = {name for name, node in nodes.items() if node["feature_type"] == "cross layer transcoder"}
    assert features == {f"1_{i}_{s}" for s, i, _ in shown} | {f"2_{j}_4" for *_, j in shown}
    weights = {(link["source"], link["target"]): link["weight"] for link in found["links"]}
    for edge in step["edges"]["edges"][:6]:
        assert weights[f"1_{edge['up']}_{edge['source']}", f"2_{edge['down']}_4"] == edge["effect"]
    assert found["qParams"]["pinnedIds"] == [f"1_{shown[0][1]}_4", f"2_{shown[0][2]}_4"]
    assert found["qParams"]["supernodes"] == [["both", *found["qParams"]["pinnedIds"]]]
    words = step["labels"]["down"][shown[0][2]]["tokens"]
    assert nodes[f"2_{shown[0][2]}_4"]["clerp"] == " ".join([str(shown[0][2]), *map(token_text, words)])
    assert len({token_text(text) for text in words}) == 3


def test_an_export_is_a_folder_with_the_page_and_its_answers(explorer: Explorer):
    asked = ["run {}", f"map {json.dumps(ABOUT)}"]
    with zipfile.ZipFile(io.BytesIO(exported(explorer, Export(asked=asked, state="#n=5")))) as file:
        texts = {name: file.read(name).decode() for name in file.namelist()}
    assert set(texts) == {
        f"explorer/{name}" for name in ("index.html", "page.css", "page.js", "licenses.txt", "data.js")
    }
    content = json.loads(texts["explorer/data.js"].removeprefix("var explorer = ").removesuffix(";\n"))
    assert content["live"] is False
    assert content["state"] == "#n=5"
    assert content["answers"][asked[1]] == json.loads(json.dumps(explorer.answer("map", ABOUT)))
    with pytest.raises(UserError):
        exported(explorer, Export(asked=["map nonsense"], state=""))


def test_features_without_tables_have_no_cards_and_are_said_to_have_none(tmp_path: Path):
    explorer = Explorer(lambda: small_subject(tmp_path, tables=False))
    assert explorer.answer("card", {"pair": KEY, "end": "up", "latent": 3}) == {"missing": True}
    assert explorer.answer("map", ABOUT)["described"] is False


def test_the_page_that_is_shipped_is_built_from_its_sources():
    """Without node: the build holds the digest of the files in web/ (web/vite.config.js)."""
    root = Path(__file__).parents[2]
    sources = (path.relative_to(root / "web").as_posix() for path in (root / "web").rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for name in sorted(name for name in sources if not name.startswith("node_modules/")):
        digest.update(f"{name} {hashlib.sha256((root / 'web' / name).read_bytes()).hexdigest()}\n".encode())
    static = root / "src" / "scalar_sae" / "explorer" / "static"
    assert (static / "sources.sha256").read_text().strip() == digest.hexdigest(), "the page is old: make web"


def test_tokens_of_a_text_are_shown_without_acting(explorer: Explorer):
    found = explorer.answer("tokens", {**ABOUT, "text": "a\x00\n<b>"})
    assert found["tokens"] == ["a", "␀", "↵", "<", "b", ">"]
    assert torch.tensor(found["special"]).any().item() is False


def test_groups_and_explanations_are_those_of_the_engine(subject: Subject, pair: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judging, "FEWEST", 0)  # a small text has few examples
    (record,) = subject.pairs[KEY].records
    texts = subject.texts(record)
    asked: list[str] = []
    judge = Judge(lambda question: asked.append(question) or "1, 0, 1\u202e", "m<")
    judged = Subject("x", subject.lm, subject.read_text, subject.pairs, subject.folder, judge)
    explorer = Explorer(lambda: judged)
    assert explorer.answer("run", {})["judge"] == "m<"
    found = explorer.answer("groups", {**ABOUT, "edges": 200, "alike": 0.5})
    ranked = ss.RankedEdges(pair, RANKING, rank(pair, texts.ranking[:4], RANKING, CONFIG.seed), CONFIG.seed)
    expected = ranked.groups(200, 0.5)
    assert [one["members"] for one in found] == [[f"{g.end[0]}{one}" for one in g.members] for g in expected]
    assert [one["alike"] for one in found] == pytest.approx([g.alike for g in expected], rel=1e-4)
    assert found
    up, down = explorer.answer("map", ABOUT)["edges"][0][:2]
    answer = explorer.answer("explain", {**ABOUT, "edge": [up, down]})
    by_hand = explain_edge(pair, up, down, judge, texts.ranking[:4], texts.scoring)
    assert answer == {**by_hand.model_dump(), "explanation": visible(by_hand.explanation or "")}
    assert answer["explanation"] == "1, 0, 1[U+202E]"
    assert asked[:3] == asked[3:]  # of the explorer, and by hand
    answer = explorer.answer("explain", {**ABOUT, "up": [up], "down": [down]})
    by_hand = explain_features(pair, judge, texts.ranking[:4], texts.scoring, [up], [down])
    assert answer["detection"] == by_hand.detection
    with pytest.raises(UserError, match="no features"):
        explorer.answer("explain", ABOUT)


def test_other_questions_are_answered_while_a_judge_thinks(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    """The judge thinks until another question has been answered."""
    monkeypatch.setattr(judging, "FEWEST", 0)  # a small text has few examples
    begun, answered, waited = threading.Event(), threading.Event(), list[bool]()

    def think(question: str) -> str:
        begun.set()
        waited.append(answered.wait(20))
        return "1, 0, 1"

    explorer = Explorer(lambda: replace(subject, judge=Judge(think, "slow")))

    async def both() -> tuple[list[Any], list[Any]]:
        explained = asyncio.create_task(_lines(explorer, "explain", {**ABOUT, "edge": edge}, 1000))
        await asyncio.to_thread(begun.wait, 60)
        other = await _lines(explorer, "recovery", {**ABOUT, "edges": [edge], "text": TEXT}, 1000)
        answered.set()
        return await explained, other

    edge = explorer.answer("map", ABOUT)["edges"][0][:2]
    explained, other = asyncio.run(both())
    assert waited
    assert all(waited)
    assert other[-1]["answer"] == explorer.answer("recovery", {**ABOUT, "edges": [edge], "text": TEXT})
    assert explained[-1]["answer"]["explanation"] == "1, 0, 1"


def test_without_a_judge_nothing_is_explained_and_that_is_said(explorer: Explorer):
    assert explorer.answer("run", {})["judge"] is None
    with pytest.raises(UserError, match="--judge"):
        explorer.answer("explain", {**ABOUT, "edge": [0, 0]})


def test_a_server_whose_subject_cannot_be_loaded_says_why_to_the_page_and_ends():
    def load() -> Subject:
        entered.wait(20)
        raise UserError("the model is damaged")

    entered = threading.Event()
    with serve(load, 0) as server:

        def visit() -> None:
            page = urllib.request.urlopen(server.url, timeout=20).read()
            assert b"page.js" in page  # it is there while the model is loaded
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{server.url}ask/run", b"{}", headers)
            with urllib.request.urlopen(request, timeout=20) as reply:
                entered.set()
                heard.append(json.loads(reply.read().splitlines()[-1]))

        heard: list[Any] = []
        visitor = threading.Thread(target=visit, daemon=True)
        visitor.start()
        with pytest.raises(UserError, match="the model is damaged"):
            server.run()
        visitor.join(20)
    assert heard == [{"error": "the model is damaged"}]


def test_an_edge_matters_on_prompts_of_the_scored_text(subject: Subject, explorer: Explorer, pair: Any):
    (record,) = subject.pairs[KEY].records
    text, (up, down, _) = subject.texts(record).scoring, explorer.answer("map", ABOUT)["edges"][0]
    found = explorer.answer("edge", {**ABOUT, "up": up, "down": down})
    kl = [Journey(pair, row[None]).intervene([ss.Intervention(up=up, down=down)]).kl_mean for row in text]
    assert found["kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-3)
    assert [one["prompt"] for one in found["examples"]] == sorted(range(len(kl)), key=lambda row: -kl[row])
    assert found["examples"][0]["text"] == subject.lm.tokenizer.decode(text[found["examples"][0]["prompt"]].tolist())


def test_saes_without_a_run_are_explored_without_a_record_or_a_folder(subject: Subject, tmp_path: Path):
    group = subject.pairs[KEY].group
    alone = Subject.of_saes("alone", subject.lm, {"m": group}, ss.Block.parse("ff_block.0"), lambda: subject.text)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as few:
        few.setattr("scalar_sae.explorer.subject.PROMPTS", 3)
        found = Explorer(lambda: alone).answer("map", {"pair": KEY, "ranking": "leave_one_out"})
    assert found["curve"] == []
    assert found["described"] is False
    assert len(found["edges"]) == 480
    assert Explorer(lambda: alone).answer("run", {})["pairs"][0]["records"] is False


def test_pinned_edges_of_pairs_that_follow_each_other_make_a_chain(subject: Subject):
    two = two_pairs(subject)
    explorer = Explorer(lambda: two)
    first, second = explorer.answer("run", {})["pairs"]
    assert (first["next"], second["next"]) == ([second["key"]], [])
    parts = [
        {"pair": first["key"], "ranking": RANKING, "edges": [[1, 2], [3, 4]]},
        {"pair": second["key"], "ranking": RANKING, "up": [2, 4], "down": [5]},
    ]
    found = explorer.answer("chain", {"parts": parts, "text": TEXT})
    pairs = [two.pair(one["key"], RANKING) for one in (first, second)]
    kept = [ss.Circuit.of(pairs[0], [(1, 2), (3, 4)]), ss.Circuit.of(pairs[1], [(2, 5), (4, 5)])]
    assert found == pytest.approx(Journey(pairs, TEXT).measure(kept).model_dump(), rel=1e-3)
    assert found["edges"] == 4
    with pytest.raises(UserError):
        explorer.answer("chain", {"parts": parts[::-1], "text": TEXT})


STYLE = Path(__file__).parents[2] / "web" / "src" / "style.css"
READ_ON = [("text", "back"), ("text", "panel"), ("soft", "back"), ("soft", "panel"), ("text", "accent-back"),
           ("text", "pin-back"), ("pin", "pin-back"), ("error", "back"), ("error", "panel")]  # fmt: skip


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_words_stand_out_from_what_they_stand_on(scheme: int):
    """The contrast that WCAG 2.2 asks for at level AA (criterion 1.4.3): 4.5 to 1."""
    colours = dict(re.findall(r"--([\w-]+): #([0-9a-f]{6})", STYLE.read_text().split(":root {")[1 + scheme]))

    def light(name: str) -> float:
        channels = [int(colours[name][at : at + 2], 16) / 255 for at in (0, 2, 4)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for words, back in READ_ON:
        low, high = sorted((light(words), light(back)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (words, back)


def test_tables_of_another_sae_are_refused(tmp_path: Path):
    subject = small_subject(tmp_path, tables=False)
    write_tables(tmp_path / "features" / "m" / "resid_mid.0")  # of four features
    with pytest.raises(UserError, match="4 features, the SAE has 24"):
        Explorer(lambda: subject, Kept(tmp_path)).answer("card", {"pair": KEY, "end": "up", "latent": 0})


SAES = ["--saes", "not there", "--block", "ff_block.0", "--port", "0"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "needs a run, or --saes"),
        (["RUN", "--saes", "x", "--block", "ff_block.0"], "give one of them"),
        (["RUN", "--block", "ff_block.0"], "goes with --saes"),
        (["--saes", "x"], "--block"),
        (["RUN"], "not a run directory"),
        (["RUN", "--port", "TAKEN"], "choose another"),
        (["RUN", "--url", "http://127.0.0.1:1/v1"], "--judge"),
        ([*SAES, "--judge", ""], "--judge ''"),
        ([*SAES, "--judge", "\udcff", "--url", "http://127.0.0.1:1/v1"], "--judge '\\udcff': holds bytes"),
        ([*SAES, "--judge", "no model"], "--judge: unknown language model 'no model'"),
        ([*SAES, "--judge", "python-stdlib"], "--judge python-stdlib: a model of characters"),
        ([*SAES, "--judge", "m", "--url", "nope"], "--url 'nope': expected an address"),
    ],
)
def test_a_wrong_command_ends_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = {"RUN": str(tmp_path), "TAKEN": str(taken.getsockname()[1])}
        monkeypatch.setattr(sys, "argv", ["scalar", "explore", *(words.get(one, one) for one in arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in error
    assert error.count("\n") == 1
