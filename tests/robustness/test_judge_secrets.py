"""The judge's key goes to one address and is printed nowhere; what was paid for is on disk."""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from scalar_sae.errors import UserError
from scalar_sae.evaluation.features import judges
from scalar_sae.evaluation.features.judge import judge_features
from scalar_sae.evaluation.features.judged import read_judged
from scalar_sae.evaluation.features.judges import Judge, endpoint
from scalar_sae.evaluation.features.tables import LENGTHS, OCTAVES, write_table
from scalar_sae.redaction import published, redacted
from tests.evaluation.test_judge import ROWS, VOCABULARY, knows

KEY = "sk-very-secret-0123456789"


@contextmanager
def replies(reply: bytes, status: int = 200, **headers: str) -> Generator[tuple[str, list[dict[str, str]]]]:
    """A server that replies in one way; its address, and the headers it was sent."""
    sent: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(dict(self.headers))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(reply)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply)

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/v1", sent
        running.shutdown()


def says(content: object) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


@pytest.mark.parametrize("blank", ["\n", "\r\n", " ", "\t\n"])
def test_a_line_break_behind_the_key_is_not_part_of_it(blank: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + blank)
    with replies(says("yes")) as (url, sent):
        assert endpoint(url, "m").ask("hello") == "yes"
    assert sent[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("inside", ["\n", "\x01", "é", " ", "\r\nX-Evil: 1"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_said(inside: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY[:12]}{inside}{KEY[12:]}")
    with pytest.raises(UserError, match="OPENAI_API_KEY: holds a blank") as refused:
        endpoint("http://127.0.0.1:8000/v1", "m")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_does_not_take_the_key_along(status: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with replies(says("stolen")) as (elsewhere, got):
        location = elsewhere.replace("127.0.0.1", "localhost") + f"/chat/completions?key={KEY}"
        with (
            replies(b"", status, Location=location) as (url, _),
            pytest.raises(UserError, match="redirects") as refused,
        ):
            endpoint(url, "m").ask("hello")
    assert got == []
    assert KEY not in str(refused.value)
    assert "http://localhost" in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [f"http://me:{KEY}@host/v1", f"http://{KEY}@host/v1", f"http://host/v1?key={KEY}", f"http://host/v1#{KEY}"],
)
def test_an_address_that_holds_a_secret_is_refused_without_being_said(url: str):
    with pytest.raises(UserError, match="OPENAI_API_KEY") as refused:
        endpoint(url, "m")
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["nope", "", "ftp://host/v1", "file:///etc/passwd", "http://", "http://[::1", "http://host:99999/v1",
            "http://ho st/v1", "http://host/v1\nx", "http://höst/v1"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_before_anything_is_asked(url: str):
    with pytest.raises(UserError, match=r"--url .*expected an address such as"):
        endpoint(url, "m")


@pytest.mark.parametrize(
    "reply",
    [b"", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, says(None), says([1]), b'{"choices": []}', b"null"],
)
def test_a_reply_that_is_none_is_one_line(reply: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with replies(reply) as (url, _), pytest.raises(UserError, match="no answer from m") as refused:
        endpoint(url, "m").ask("hello")
    assert "\n" not in str(refused.value)


def test_a_reply_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judges, "ANSWER_BYTES", 1000)
    with replies(says("x" * 2000)) as (url, _), pytest.raises(UserError, match="more than 1,000 bytes"):
        endpoint(url, "m").ask("hello")


def test_the_words_of_an_error_do_not_repeat_the_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    assert KEY not in str(UserError(f"Illegal header value b'Bearer {KEY}'"))
    assert redacted("Bearer hf_zzz at http://me:pass@host/x with hf_abcdefgh") == (
        "Bearer <key> at http://host/x with <HF_TOKEN>"
    )


@pytest.mark.parametrize(
    ("private", "public"),
    [
        ("/home/me/runs/lm", "lm"), ("~/runs/lm/", "lm"), ("C:\\Users\\me\\lm", "lm"),
        ("file:///home/me/x.npy", "x.npy"),
        ("/home/me/my runs/lm", "lm"), ("text of /home/me/a.txt, read", "text of a.txt, read"),
        ("--out=/home/me/runs", "--out=runs"), (f"https://host/v1?key={KEY}", "https://host/v1"),
        (f"https://me:{KEY}@host/v1", "https://host/v1"), ("hf://owner/name@abc/sub", "hf://owner/name@abc/sub"),
        ("openai-community/gpt2", "openai-community/gpt2"), ("resid_pre.0->resid_post.1", "resid_pre.0->resid_post.1"),
        ("tokens/s", "tokens/s"), ("runs/mine", "runs/mine"), ("", ""), ("1/2 and/or", "1/2 and/or"),
    ],
)  # fmt: skip
def test_what_leaves_the_machine_names_no_place_on_it(private: str, public: str):
    assert published({"a": [private], private: 1}) == {"a": [public], public: 1}


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Examples of six latents that fire on x."""
    rows = [{"latent": latent, "position": 0, "start": 0, **row} for latent in range(6) for row in ROWS]
    write_table(pa.Table.from_pylist(rows), tmp_path / "contexts.parquet")
    texts = pa.table({"token": list(VOCABULARY), "text": list(VOCABULARY.values())})
    write_table(texts, tmp_path / "vocabulary.parquet")
    write_table(latents(6), tmp_path / "latents.parquet")
    return tmp_path


def latents(n: int) -> pa.Table:
    """The table of n latents that fire alike."""
    token, act = [[0]] * n, [[1.0]] * n
    return pa.table({
        "latent": list(range(n)), "density": [0.1] * n, "maximum": [1.0] * n, "mean": [1.0] * n,
        "octaves": [[0] * len(OCTAVES)] * n, "rule_f1": [[1.0] * len(LENGTHS)] * n,
        "rule_accuracy": [[1.0] * len(LENGTHS)] * n, "rule_tokens": token, "promoted": token, "promoted_by": act,
        "suppressed": token, "suppressed_by": act,
    })  # fmt: skip


@pytest.mark.parametrize("dies_after", [1, 2, 4, 8, 17])
def test_no_answer_is_paid_for_twice(dies_after: int, tables: Path):
    """A judge that dies anywhere, also in the middle of a latent, leaves every answer that it gave."""
    asked: list[str] = []

    def mortal(question: str) -> str:
        if len(asked) == dies_after:
            raise KeyboardInterrupt
        asked.append(question)
        return knows(question)

    with pytest.raises(KeyboardInterrupt):
        judge_features(tables, Judge(mortal, "m"), 6)

    def heir(question: str) -> str:
        asked.append(question)
        return knows(question)

    judge_features(tables, Judge(heir, "m"), 6)
    assert len(asked) == 18
    assert [row.detection for row in read_judged(tables)] == [1.0] * 6
    assert sorted(path.name for path in tables.iterdir()) == [
        "contexts.parquet", "judged.jsonl", "latents.parquet", "vocabulary.parquet"
    ]  # fmt: skip


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_asked(tables: Path):
    (tables / "judged.jsonl").mkdir()

    def never(question: str) -> str:
        raise AssertionError(question)

    with pytest.raises(UserError, match=r"judged\.jsonl: a folder, expected a file; move it away"):
        judge_features(tables, Judge(never, "m"), 6)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"latent": 1}', "line 2: detection is missing"), (b"[1]", "line 2: Input should be an object"),
        (b'{"latent": -1, "detection": 1.0, "fuzzing": null, "judge": {}}', "line 2: latent"),
        (b'{"latent": 1, "detection": 1.5, "fuzzing": null, "judge": {}}', "line 2: detection"),
        (b'{"latent": 1, "detection": NaN, "fuzzing": null, "judge": {}}', "line 2: detection"),
        (b'{"latent": 1, "detection": 1.0, "fuzzing": null, "judge": "m"}', "line 2: judge"),
        (b"\xff\xfe", "not UTF-8"),
        (b'|"latent": 1, "detection": 1.0, "fuzzing": null, "judge": {}}', "line 2: damaged"),
        (bytes(40), "line 2: damaged"),
    ],
)  # fmt: skip
def test_damaged_answers_are_one_line_with_its_number(line: bytes, complaint: str, tables: Path):
    path = tables / "judged.jsonl"
    path.write_bytes(b"\n" + line + b"\n")
    with pytest.raises(UserError, match=complaint) as refused:
        judge_features(tables, Judge(knows, "m"), 6)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == b"\n" + line + b"\n"


def test_scores_do_not_depend_on_where_a_judge_was_stopped(tables: Path):
    """The order of the texts comes from the latent alone."""
    judge_features(tables, Judge(knows, "m"), 3)
    judge_features(tables, Judge(knows, "m"), 6)
    halves = {row.latent: row for row in read_judged(tables)}
    (tables / "judged.jsonl").unlink()
    judge_features(tables, Judge(knows, "m"), 6)
    assert {row.latent: row for row in read_judged(tables)} == halves
    assert np.all([row.fuzzing == 1 for row in halves.values()])
