"""The judge: a stand-in server that answers perfectly, one that guesses, one that talks; a local model."""

import json
import re
import shutil
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.interpretability import keep_reading, reading
from scalar_sae.evaluation.features.judge import judge_features, judged
from scalar_sae.evaluation.features.judged import read_judged
from scalar_sae.evaluation.features.judges import TRIES, Judge, endpoint, local
from scalar_sae.evaluation.features.tables import read_vocabulary, write_table
from scalar_sae.records.results import Results
from scalar_sae.records.sae_results import MeanScore
from scalar_sae.report.page import render
from scalar_sae.tokenizer import byte_pairs
from tests.test_study import scalar

VOCABULARY = {0: "x", 1: "a", 2: " "}
"""The latent fires on x."""


def row(kind: str, prompt: int, text: str) -> dict[str, Any]:
    ids = {piece: token for token, piece in VOCABULARY.items()}
    return {"kind": kind, "prompt": prompt, "tokens": [ids[c] for c in text],
            "acts": [1.0 if c == "x" else 0.0 for c in text]}  # fmt: skip


ROWS = [
    *(row("top", i, "a x a a") for i in range(5)), row("random", 0, "x"),
    *(row("random", 10 + i, "aa x" + "a" * i) for i in range(8)),
    *(row("silent", 20 + i, "a a" * (i + 1)) for i in range(8)),
]  # fmt: skip


def knows(question: str) -> str:
    """A judge that has understood."""
    if "In one sentence" in question:
        assert question.count("a <<x>> a a") == 5
        return "the letter x"
    assert "the letter x" in question
    texts = re.findall(r"^Text \d+: (.*)$", question, flags=re.MULTILINE)
    right = "<<x>>" if "<<" in question.partition("Text 1")[2] else "x"
    return ", ".join(str(int(right in text)) for text in texts)


def test_who_knows_scores_one_and_who_guesses_a_half():
    rng = np.random.default_rng(0)
    assert judged(ROWS, VOCABULARY, knows, rng) == {"explanation": "the letter x", "detection": 1, "fuzzing": 1}
    always = judged(ROWS, VOCABULARY, lambda q: ", ".join("1" * q.count("Text ")), rng)
    assert (always["detection"], always["fuzzing"]) == (0.5, 0.5)
    talks = judged(ROWS, VOCABULARY, lambda _: "I would say 1 of them, or 0.", rng)
    assert talks["detection"] is talks["fuzzing"] is None
    assert judged(ROWS[:8], VOCABULARY, knows, rng)["explanation"] is None


def test_special_tokens_are_never_marked_for_another():
    """The only place that is left to mark wrongly is a letter; special tokens stand around it."""
    rows = [{**one, "tokens": [0, 2, 1, 2], "acts": [1.0, 0.0, 0.0, 0.0]} for one in ROWS]
    asked: list[str] = []
    judged(rows, VOCABULARY, lambda q: asked.append(q) or "1", np.random.default_rng(0), special={2})
    fuzzing = re.findall(r"^Text \d+: (.*)$", asked[-1], flags=re.MULTILINE)
    assert set(fuzzing) == {"<<x>> a ", "x <<a>> "}


def test_the_first_token_of_a_prompt_is_never_marked_for_another_where_it_is_special():
    rows = [{**one, "tokens": [1, 1, 0], "acts": [0.0, 0.0, 1.0], "start": 0} for one in ROWS]
    asked: list[str] = []
    for start in (0, 1):
        these = [{**row, "start": start} for row in rows]
        judged(these, VOCABULARY, lambda q: asked.append(q) or "1", np.random.default_rng(0), special=("first",))
        fuzzing = re.findall(r"^Text \d+: (.*)$", asked[-1], flags=re.MULTILINE)
        assert ("<<a>>ax" in fuzzing) == (start == 1)


@contextmanager
def server(
    answer: Callable[[str], dict[str, Any]], busy: tuple[tuple[int, Mapping[str, str]], ...] = ()
) -> Generator[tuple[str, list[dict[str, Any]]]]:
    """A stand-in for an OpenAI-compatible server: its address, and what it was sent; first it replies `busy`."""
    sent: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent.append({"path": self.path, "key": self.headers["Authorization"], **body})
            status, headers = busy[len(sent) - 1] if len(sent) <= len(busy) else (200, {})
            content = json.dumps(answer(body["messages"][0]["content"]) if status == 200 else {}).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/v1", sent
        running.shutdown()


def test_an_endpoint_is_asked_as_openais_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")

    def louder(question: str) -> dict[str, Any]:
        return {"choices": [{"message": {"content": question.upper()}}]}

    def busy(_: str) -> dict[str, Any]:
        return {"error": "busy"}

    with server(louder) as (url, sent):
        assert endpoint(url, "some-model").ask("hello") == "HELLO"
    [request] = sent
    assert (request["path"], request["key"], request["model"]) == (
        "/v1/chat/completions",
        "Bearer secret",
        "some-model",
    )
    with server(busy) as (url, _), pytest.raises(UserError, match="no answer from some-model"):
        endpoint(url, "some-model").ask("hello")


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr("scalar_sae.evaluation.features.judges.time.sleep", waits.append)

    def answer(_: str) -> dict[str, Any]:
        return {"choices": [{"message": {"content": "yes"}}]}

    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    busy = ((429, {"Retry-After": "7"}), (503, {}), (503, {"Retry-After": in_a_minute}), (429, {"Retry-After": "soon"}))
    with server(answer, busy) as (url, sent):
        assert endpoint(url, "m").ask("hello") == "yes"
    assert len(sent) == 5
    assert (waits[0], waits[1], waits[3]) == (7, 2, 8)
    assert 50 < waits[2] <= 60
    waits.clear()
    with server(answer, ((503, {}),) * TRIES) as (url, sent), pytest.raises(UserError, match=r"no answer from m.*503"):
        endpoint(url, "m").ask("hello")
    assert (len(sent), waits) == (TRIES, [1, 2, 4, 8, 16])
    for status, headers, complaint in ((429, {"Retry-After": "3600"}, "wait 3,600 s"), (500, {}, "500")):
        with server(answer, ((status, headers),)) as (url, sent), pytest.raises(UserError, match=complaint):
            endpoint(url, "m").ask("hello")
        assert len(sent) == 1


@pytest.fixture
def tables(features_run: Path, tmp_path: Path) -> Path:
    """The tables of a run, with ten latents that fire on x in place of its examples."""
    folder = shutil.copytree(features_run / "features" / "topk" / "resid_mid.0", tmp_path / "sae")
    rows = [{"latent": latent, "position": 0, "start": 0, **row} for latent in range(10) for row in ROWS]
    write_table(pa.Table.from_pylist(rows), folder / "contexts.parquet")
    words = read_vocabulary(folder) | VOCABULARY
    write_table(pa.table({"token": list(words), "text": list(words.values())}), folder / "vocabulary.parquet")
    return folder


def test_the_command_judges_and_goes_on(tables: Path):
    def answer(question: str) -> dict[str, Any]:
        return {"choices": [{"message": {"content": knows(question)}}]}

    with server(answer) as (url, sent):
        scalar("judge", tables, "--url", url, "--model", "m", "--latents", "6")
        assert (len(sent), len(read_judged(tables))) == (18, 6)
        said = scalar("judge", tables, "--url", url, "--model", "m", "--latents", "8").stdout
        assert (len(sent), len(read_judged(tables))) == (24, 8)
        assert re.search(r"detection, m .* 1\.000 .* 8 \(0 without\)", said)
        scalar("judge", tables, "--url", url, "--model", "another", "--latents", "2")
        assert (len(sent), len(read_judged(tables))) == (30, 10)
        scalar("judge", tables, "--url", f"{url}/", "--model", "m", "--latents", "8")
        assert len(sent) == 30
    assert {row.latent for row in read_judged(tables)} < set(range(10))
    assert {row.detection for row in read_judged(tables)} == {1.0}
    pages = "".join(path.read_text() for path in (tables / "page" / "data").iterdir())
    assert (pages.count('"model":"m"'), pages.count('"model":"another"')) == (8, 2)
    done = scalar("judge", tables, check=False)
    assert done.returncode == 2
    assert "--url" in done.stderr
    with pytest.raises(UserError, match="no feature tables here"):
        judge_features(tables.parent, Judge(knows, "m"), 1)


def test_only_latents_that_can_be_asked_about_are_drawn(tables: Path):
    """Every text of latent 0 is of a prompt that was shown; latent 1 has one too few that is not; the rest have all."""
    shown = [row | {"prompt": 0} for row in ROWS]
    few = [row for row in ROWS if row["kind"] != "random"] + [row for row in ROWS if row["kind"] == "random"][:4]
    texts = [shown, few] + 7 * [ROWS]
    rows = [{"latent": latent, "position": 0, "start": 0, **row} for latent, some in enumerate(texts) for row in some]
    write_table(pa.Table.from_pylist(rows), tables / "contexts.parquet")
    judge_features(tables, Judge(knows, "m"), 7)
    assert {row.latent for row in read_judged(tables)} == set(range(2, 9))
    assert {row.detection for row in read_judged(tables)} == {1}


def test_an_sae_has_one_record_of_how_it_reads(features_run: Path):
    """Scores of all latents by hand; `judge` adds its own to those of `features`, and keeps the other SAE's."""
    folder = features_run / "features" / "topk" / "resid_mid.0"
    before = {one.site: one for one in Results.read(features_run / "results.json").reading}
    assert set(before) == {"resid_mid.0", "resid_post.0"}
    f1 = np.stack(pq.read_table(folder / "latents.parquet")["rule_f1"].to_pylist())
    for number, n in enumerate((1, 2, 3)):
        found = before["resid_mid.0"].rule_f1[n]
        assert found.mean == pytest.approx(np.nanmean(f1[:, number]), rel=1e-5)
        assert (found.n, found.n_null) == (np.isfinite(f1[:, number]).sum(), np.isnan(f1[:, number]).sum())
        assert (found.n < 20, found.ci) == (True, None)  # too few latents with a rule for an interval
    lines = [{"latent": 0, "judge": {"model": "m"}, "detection": x, "fuzzing": None} for x in (0.5, 1.0, None)]
    (folder / "judged.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = reading(folder)
    keep_reading(features_run / "results.json", [found])
    results = Results.read(features_run / "results.json")
    assert {one.site: one for one in results.reading} == before | {"resid_mid.0": found}
    [judged_by] = found.judged
    assert (judged_by.detection.mean, judged_by.detection.n, judged_by.detection.n_null) == (0.75, 2, 1)
    assert (judged_by.fuzzing.mean, judged_by.fuzzing.ci, judged_by.fuzzing.n_null) == (None, None, 3)
    assert "detection, m" in render(results, {}, "run")
    (folder / "judged.jsonl").unlink()


def test_a_mean_over_latents_has_students_interval_from_twenty_latents_on(features_run: Path):
    folder = features_run / "features" / "topk" / "resid_mid.0"

    def detection(scores: np.ndarray) -> MeanScore:
        lines = [
            {"latent": n, "judge": {"model": "m"}, "detection": x, "fuzzing": None}
            for n, x in enumerate(scores.tolist())
        ]
        (folder / "judged.jsonl").write_text("\n".join(map(json.dumps, lines)))
        [judged_by] = reading(folder).judged
        (folder / "judged.jsonl").unlink()
        return judged_by.detection

    scores = np.random.default_rng(1).random(40)
    half = 2.0227 * scores.std(ddof=1) / 40**0.5  # the 97.5 % quantile at 39 degrees of freedom
    assert detection(scores).ci == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.2 * half)
    assert detection(scores[:20]).ci is not None
    assert detection(scores[:19]).ci is None


def test_a_local_model_can_be_asked(tmp_path: Path):
    tokenizer = byte_pairs(["some words to learn from " * 20], 280)
    config = GPT2Config(vocab_size=280, n_positions=256, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "lm")
    tokenizer.save(tmp_path / "lm")
    assert isinstance(local(str(tmp_path / "lm")).ask("some words"), str)
    with pytest.raises(UserError, match="cannot judge"):
        local("python-stdlib")


@pytest.mark.parametrize("option", ["--model", "--judge"])
def test_a_message_about_the_name_of_a_judge_names_the_option_that_it_was_given_with(option: str):
    given: dict[str, Any] = {} if option == "--model" else {"option": option}
    refused: list[str] = []
    for make in (
        lambda: endpoint("http://127.0.0.1:1/v1", "\udcff", **given),
        lambda: local("no model", **given),
        lambda: local("python-stdlib", **given),
    ):
        with pytest.raises(UserError) as error:
            make()
        refused.append(str(error.value))
    assert [text.split()[0].strip(":") for text in refused] == [option] * 3
