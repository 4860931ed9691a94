"""The server of a blind comparison under raw requests: foreign pages, wrong lengths, clients that are slow or leave."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from scalar_sae import loopback
from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.blind import Answers, Pairs, summary
from scalar_sae.loopback import LoopbackServer
from scalar_sae.report.blind import Comparison, serve
from tests.helpers import running
from tests.robustness.hostile import write_tables

N_PAIRS = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for side in ("a", "b"):
        write_tables(tmp_path / side)
    pairs = [{"a": number, "b": number, "left": "a"} for number in range(N_PAIRS)]
    (tmp_path / "pairs.json").write_text(json.dumps({"names": {"a": "x", "b": "y"}, "pairs": pairs}))
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[LoopbackServer]:
    with running(serve(Comparison(folder, "ann"), 0)) as server:
        yield server


def filled(server: LoopbackServer, text: str) -> bytes:
    """A request to the server's own port, below its token."""
    return text.replace("PORT", str(server.port)).replace("TOKEN", server.token).encode()


def send(server: LoopbackServer, text: str | bytes, timeout: float = 5) -> tuple[int, str]:
    """The status and body that a raw request gets; status 0: the connection was closed without an answer."""
    raw = text if isinstance(text, bytes) else filled(server, text)
    with socket.create_connection(("127.0.0.1", server.port), timeout) as connection:
        connection.sendall(raw)
        parts: list[bytes] = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head.startswith(b"HTTP/") else 0), body.decode()


def post(*headers: str, body: str = '{"pair": 0, "choice": "left"}', length: str | None = None) -> str:
    lines = ["POST /TOKEN/answer HTTP/1.1", *(headers or ("Host: 127.0.0.1:PORT", "Content-Type: application/json"))]
    lines += [f"Content-Length: {len(body) if length is None else length}"] if length != "" else []
    return "\r\n".join(lines) + "\r\n\r\n" + body


OURS = ("Host: 127.0.0.1:PORT", "Content-Type: application/json")


def test_it_listens_on_this_machine_alone(server: LoopbackServer):
    assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "headers",
    [
        ("Host: evil.example:PORT", "Content-Type: application/json"),
        ("Host: evil.example", "Content-Type: application/json"),
        ("Host: 127.0.0.1", "Content-Type: application/json"),
        ("Host: 127.0.0.1:PORT.evil.example", "Content-Type: application/json"),
        ("Host: 127.0.0.1:1", "Content-Type: application/json"),
        ("Host: ", "Content-Type: application/json"),
        (*OURS, "Origin: http://evil.example"),
        (*OURS, "Origin: null"),
        (*OURS, "Origin: http://127.0.0.1:1"),
        (*OURS, "Origin: https://127.0.0.1:PORT"),
        (*OURS, "Origin: http://127.0.0.1:PORT.evil.example"),
        ("Host: 127.0.0.1:PORT", "Content-Type: text/plain"),
        ("Host: 127.0.0.1:PORT", "Content-Type: application/x-www-form-urlencoded"),
        ("Host: 127.0.0.1:PORT", "Content-Type: multipart/form-data; boundary=x"),
        ("Host: 127.0.0.1:PORT",),
    ],
)
def test_another_page_cannot_answer(headers: tuple[str, ...], server: LoopbackServer, folder: Path):
    status, body = send(server, post(*headers))
    assert status in (403, 415, 421)
    assert "error" in json.loads(body)
    assert Answers(folder, "ann", N_PAIRS).choices == {}


@pytest.mark.parametrize("path", ["/", "/question", "/page.js", "/TOKE/question", "/TOKENx/question", "//question"])
def test_nothing_is_read_without_the_token(path: str, server: LoopbackServer):
    path = path.replace("TOKE/", server.token[:-1] + "/")
    status, body = send(server, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n")
    assert status == 404
    assert len(body) < 200


@pytest.mark.parametrize("path", ["/", "/question", "/question/0", "/page.js"])
def test_another_name_for_this_machine_reads_nothing(path: str, server: LoopbackServer):
    for host, expected in (("evil.example:PORT", 421), ("127.0.0.1:PORT", 200), ("localhost:PORT", 200)):
        status, body = send(server, f"GET /TOKEN{path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
        assert status == expected
        assert (len(body) > 200) == (expected == 200)


def test_our_own_page_can_answer(server: LoopbackServer, folder: Path):
    for number, origin in enumerate(((), ("Origin: http://127.0.0.1:PORT",), ("Origin: http://localhost:PORT",))):
        status, body = send(server, post(*OURS, *origin, body=f'{{"pair": {number}, "choice": "left"}}'))
        assert (status, json.loads(body)["number"]) == (200, number + 1)
    assert Answers(folder, "ann", N_PAIRS).choices == dict.fromkeys(range(3), "left")


@pytest.mark.parametrize(
    ("length", "expected"),
    [("-1", 400), ("", 411), ("x", 400), ("1e3", 400), ("0x10", 400), ("+5", 400), ("٥", 400), ("1 1", 400),
     ("99999999999999999999", 413), ("400000000", 413), ("4097", 413), ("9" * 5000, 400), ("0", 400), ("3", 400)],
)  # fmt: skip
def test_a_body_of_a_wrong_length_is_refused_at_once(length: str, expected: int, server: LoopbackServer, folder: Path):
    start = time.monotonic()
    status, _ = send(server, post(*OURS, length=length).encode())
    assert status in (421, 0) or status == expected
    status, _ = send(server, post(*OURS, length=length))
    assert status == expected
    assert time.monotonic() - start < loopback.SECONDS
    assert Answers(folder, "ann", N_PAIRS).choices == {}


@pytest.mark.parametrize(
    "headers", [("Content-Type: application/json",), ("Host: evil.example", *OURS), (*OURS, "Content-Length: 5")]
)
def test_no_host_and_two_hosts_or_lengths_are_no_request(
    headers: tuple[str, ...], server: LoopbackServer, folder: Path
):
    assert send(server, post(*headers))[0] == 400
    assert Answers(folder, "ann", N_PAIRS).choices == {}


def test_a_body_in_chunks_is_refused(server: LoopbackServer):
    assert send(server, post(*OURS, "Transfer-Encoding: chunked"))[0] == 411


@pytest.mark.parametrize(
    "body",
    ["not json", "[]", "null", "1", '"x"', "{}", '{"pair": 0}', '{"pair": "0", "choice": "left"}', "[" * 4000,
     '{"pair": true, "choice": "left"}', '{"pair": 0.5, "choice": "left"}', '{"pair": -1, "choice": "left"}',
     '{"pair": 4, "choice": "left"}', '{"pair": 1e400, "choice": "left"}', '{"pair": 0, "choice": "both"}',
     f'{{"pair": {"9" * 3000}, "choice": "left"}}', '{"pair": 0, "choice": "left", "more": 1}', '{"pair": NaN}',
     '{"pair": 0, "choice": ["left"]}', '{"pair": 0, "choice": "left", "before": "both"}', "\ufeff{}"],
)  # fmt: skip
def test_what_is_no_answer_is_refused_in_one_line(body: str, server: LoopbackServer, folder: Path):
    status, said = send(server, post(*OURS, body=body, length=str(len(body.encode()))))
    assert status in (400, 404)
    assert "\n" not in json.loads(said)["error"]
    assert Answers(folder, "ann", N_PAIRS).choices == {}


@pytest.mark.parametrize(
    "path", ["/x", "/question/9", "/question/-1", "/question/" + "9" * 5000, "/../../etc/passwd", "/%2e%2e/pairs.json",
             "/pairs.json", "/a/contexts.parquet", "/question/0x0", "/question/٠", "*"],
)  # fmt: skip
def test_only_what_the_page_asks_for_is_served(path: str, server: LoopbackServer):
    status, _ = send(server, f"GET /TOKEN{path} HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n")
    assert status in (400, 404)


@pytest.mark.parametrize("start", [b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\r\n" * 50, b"GET /", b"A" * 70_000,
                                   b"PUT / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                                   b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n"])  # fmt: skip
def test_what_is_no_request_leaves_the_server_as_it_was(
    start: bytes, server: LoopbackServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as short:
        short.setattr(loopback, "SECONDS", 0.3)
        send(server, start)
    assert send(server, "GET /TOKEN/question HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n")[0] == 200
    assert capfd.readouterr().err == ""


def test_slow_clients_are_hung_up_on_and_hold_nobody_else(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """Some send a byte now and then, some nothing, some a part of a body; a request beside them is answered."""
    monkeypatch.setattr(loopback, "SECONDS", 2.0)
    address = ("127.0.0.1", server.port)
    slow = [socket.create_connection(address, 5) for _ in range(20)]
    for connection in slow[:10]:
        connection.sendall(b"POST /x/answer HTTP/1.1\r\nHost: ")
    for connection in slow[10:15]:
        connection.sendall(filled(server, post(*OURS, length="4000")))
    assert send(server, "GET /TOKEN/question HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n")[0] == 200
    start = time.monotonic()
    for connection in slow:
        try:
            while time.monotonic() - start < 20:
                connection.sendall(b"x")
                time.sleep(0.02)
                if not connection.recv(65536):
                    break
        except OSError:
            pass
        finally:
            connection.close()
    assert time.monotonic() - start < 20
    assert capfd.readouterr().err == ""


def test_more_connections_than_there_is_room_for_are_closed(server: LoopbackServer):
    address, end = ("127.0.0.1", server.port), time.monotonic() + 20
    idle = [socket.create_connection(address, 5) for _ in range(3 * loopback.CONNECTIONS)]
    while server.connections < loopback.CONNECTIONS and time.monotonic() < end:
        time.sleep(0.02)
    for connection in idle[loopback.CONNECTIONS :]:
        with suppress(ConnectionResetError):
            assert connection.recv(1) == b""  # the server has closed it
    assert server.connections == loopback.CONNECTIONS
    for connection in idle:
        connection.close()
    while server.connections and time.monotonic() < end:
        time.sleep(0.02)
    assert send(server, "GET /TOKEN/question HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n")[0] == 200


def test_a_client_that_leaves_is_no_event(server: LoopbackServer, capfd: pytest.CaptureFixture[str]):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            connection.sendall(filled(server, "GET /TOKEN/question HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n"))
    assert send(server, "GET /TOKEN/question HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n")[0] == 200
    assert capfd.readouterr().err == ""


def test_many_windows_at_once_lose_no_answer(server: LoopbackServer, folder: Path):
    """Of eight windows that answer each pair at the same time one is first; the others are told, none overwrites it."""

    def one(number: int) -> list[int]:
        choice = ("left", "right", "neither")[number % 3]
        bodies = [f'{{"pair": {pair}, "choice": "{choice}"}}' for pair in range(N_PAIRS)]
        return [send(server, post(*OURS, body=body))[0] for body in bodies]

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(one, range(8)))
    assert [sorted(of_pair) for of_pair in zip(*statuses, strict=True)] == [[200] + [409] * 7] * N_PAIRS
    lines = (folder / "answers" / "ann.jsonl").read_text().split("\n")
    assert len([line for line in lines if line]) == N_PAIRS
    assert Answers(folder, "ann", N_PAIRS).choices.keys() == set(range(N_PAIRS))


def test_two_processes_see_each_others_answers(folder: Path):
    one, other = Comparison(folder, "ann"), Comparison(folder, "ann")
    assert one.answer({"pair": 0, "choice": "left"})["number"] == 1
    assert other.question()["number"] == 1
    assert other.answer({"pair": 1, "choice": "left"})["number"] == 2
    assert one.question()["done"] == 2


def test_every_page_forbids_scripts_that_stand_in_it(server: LoopbackServer):
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.sendall(filled(server, "GET /TOKEN/ HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n"))
        head, _, body = connection.makefile("rb").read().decode().partition("\r\n\r\n")
    [policy] = [line for line in head.splitlines() if line.lower().startswith("content-security-policy")]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "style=" not in body
    assert "onclick" not in body
    assert body.count("<script") == body.count("<script src=") == 1


DAMAGE: dict[str, Any] = {
    "pairs.json": [b"", b"{}", b"[]", b"nope", b"\xff\xfe{}", b'{"names": {"a": "x", "b": "y"}, "pairs": []}',
                   b'{"names": {"a": "x"}, "pairs": [{"a": 0, "b": 0, "left": "c"}]}', b"[" * 100_000,
                   b'{"names": {"a": "x", "b": "y"}, "pairs": [{"a": 99, "b": 0, "left": "a"}]}',
                   b'{"names": {"a": "x", "b": "y"}, "pairs": [{"a": -1, "b": 0, "left": "a"}]}'],
    "a/contexts.parquet": [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"],
    "b/vocabulary.parquet": [b"", b"x" * 1000],
    "answers/ann.jsonl": [b'{"pair": 4, "choice": "left", "seconds": 1.0}', b'{"pair": 0}', b"\xff", b"[]",
                          b'{"pair": 0, "choice": "both", "seconds": 1.0}',
                          b'{"pair": 0, "choice": "left", "seconds": Infinity}'],
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), [(name, each) for name, some in DAMAGE.items() for each in some])
def test_a_damaged_file_is_one_line_that_names_it(name: str, content: bytes, folder: Path):
    (folder / "answers").mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        Comparison(folder, "ann").question()
    assert "\n" not in str(refused.value)
    assert name.split("/")[0].removesuffix(".json") in str(refused.value)
    assert (folder / name).read_bytes() == content


@pytest.mark.parametrize("name", ["pairs.json", "a/contexts.parquet", "a/vocabulary.parquet", "answers/ann.jsonl"])
def test_a_folder_where_a_file_should_be_is_one_line(name: str, folder: Path):
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir(parents=True)
    with pytest.raises(UserError):
        Comparison(folder, "ann").question()


def test_one_changed_bit_of_a_table_is_found(folder: Path):
    """Wherever it is: among the values, their checksums, or the description of the columns."""
    path = folder / "a" / "contexts.parquet"
    whole = path.read_bytes()
    right = Comparison(folder, "ann").question()
    places = range(0, 8 * len(whole), max(1, 8 * len(whole) // 60))
    for place in places:
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        with suppress(UserError):
            assert Comparison(folder, "ann").question() == right


def test_a_summary_names_the_damaged_answers(folder: Path):
    Answers(folder, "ann", N_PAIRS).add(0, "left", 1.0)
    assert summary(folder).counts == {"ann": {"a": 1, "b": 0, "neither": 0}}
    (folder / "answers" / "bob.jsonl").write_text('{"pair": 0, "choice": "left", "seconds": "long"}')
    with pytest.raises(UserError, match=r"bob\.jsonl, line 1: seconds"):
        summary(folder)
    assert Pairs.read(folder).names == {"a": "x", "b": "y"}
