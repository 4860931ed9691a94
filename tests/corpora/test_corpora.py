"""Text to tokens: splits without overlap, honest counts, downloads through a local stand-in."""

import hashlib
import http.server
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scalar_sae.corpora import load_corpus, load_held_out, load_texts, named, windows
from scalar_sae.errors import UserError
from scalar_sae.io import cache_folder
from scalar_sae.tokenizer import Ascii
from tests.helpers import shared

ASCII = Ascii()


@given(st.text())
def test_ascii_survives_and_the_rest_is_counted(text: str):
    ids, replaced = ASCII.encode(text)
    assert ASCII.decode(ids.tolist()) == "".join(c if ord(c) < 128 else "?" for c in text)
    assert replaced == sum(ord(c) >= 128 for c in text)


def test_the_standard_library_is_split_by_file():
    corpus = load_corpus("python-stdlib", ASCII)
    share = corpus.val.numel() / (corpus.val.numel() + corpus.train.numel())
    assert 0.03 < share < 0.25
    assert corpus.fingerprint == load_corpus("python-stdlib", ASCII).fingerprint
    train, val = (ASCII.decode(part.tolist()) for part in (corpus.train, corpus.val))
    for module in ("argparse", "dataclasses", "typing", "heapq", "enum", "json.decoder", "inspect", "textwrap"):
        text = _source(module)
        side = named.is_validation_file(module.replace(".", "/") + ".py")
        assert (text in val, text in train) == (side, not side)


def _source(module: str) -> str:
    import importlib.util

    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ASCII.decode(ASCII.encode(Path(spec.origin).read_text(encoding="utf-8"))[0].tolist())


def test_tiny_shakespeare_is_split_as_in_the_paper():
    path = shared("data", "tiny_shakespeare.txt")
    corpus = load_corpus("tiny-shakespeare", ASCII, data=[path])
    assert (corpus.train.numel(), corpus.val.numel()) == (1_003_776, 111_618 + 0)
    assert ASCII.decode(torch.cat([corpus.train, corpus.val]).tolist()) == path.read_text()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == named.SHAKESPEARE_SHA256


def test_any_text_file(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("naïve " * 500, encoding="utf-8")
    corpus = load_corpus(str(path), ASCII)
    assert corpus.replaced == 500
    assert corpus.train.numel() % 256 == 0
    assert load_held_out(str(path), ASCII).val.numel() == 3000


def test_the_ids_of_texts_that_were_used_before_are_the_same(tmp_path: Path):
    """Fingerprints of a commit before this module was taken apart."""
    shakespeare = shared("data", "tiny_shakespeare.txt")
    assert load_corpus("tiny-shakespeare", ASCII, data=[shakespeare]).fingerprint == "9a95e99b589b26f6"
    assert load_corpus(str(shakespeare), ASCII).fingerprint == "9a95e99b589b26f6"
    (tmp_path / "text.txt").write_bytes(b"na\xc3\xafve\r\ntext\r" * 300)
    assert load_corpus(str(tmp_path / "text.txt"), ASCII).fingerprint == "bdf25dc387fd0c4c"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A local stand-in for the download site, and an empty cache."""
    monkeypatch.setenv("SCALAR_SAE_CACHE", str(tmp_path / "cache"))
    served = tmp_path / "served"
    served.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(served), **kwargs)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setattr(named, "SHAKESPEARE_URL", f"http://127.0.0.1:{httpd.server_port}/input.txt")
        yield served
        httpd.shutdown()


def test_the_download_is_checked_and_kept(server: Path, monkeypatch: pytest.MonkeyPatch):
    text = "To be, or not to be. " * 100
    (server / "input.txt").write_text(text)
    monkeypatch.setattr(named, "SHAKESPEARE_SHA256", hashlib.sha256(text.encode()).hexdigest())
    first = load_corpus("tiny-shakespeare", ASCII)
    (server / "input.txt").unlink()
    assert load_corpus("tiny-shakespeare", ASCII).fingerprint == first.fingerprint


def test_a_wrong_download_is_refused(server: Path):
    (server / "input.txt").write_text("a page that says: please log in")
    with pytest.raises(UserError, match="not the expected file; name the path of a local copy"):
        load_corpus("tiny-shakespeare", ASCII)
    assert not list(cache_folder().glob("*"))


def test_no_network_names_the_remedy(server: Path):
    with pytest.raises(UserError, match=r"download failed .*--data PATH"):
        load_corpus("tiny-shakespeare", ASCII)


def test_bad_input(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'python-stdlib'"):
        load_corpus("python-stdlb", ASCII)
    (tmp_path / "binary").write_bytes(b"\x80\x81")
    with pytest.raises(UserError, match="not a UTF-8 text file"):
        load_corpus(str(tmp_path / "binary"), ASCII)
    with pytest.raises(UserError, match="5 tokens are fewer than one context of 8"):
        windows(torch.zeros(5, dtype=torch.uint8), 8)


@given(st.integers(8, 100), st.integers(1, 8))
def test_windows_do_not_overlap(n: int, context: int):
    tokens = torch.arange(n).to(torch.uint8)
    rows = windows(tokens, context)
    assert rows.flatten().tolist() == list(range(n // context * context))


def test_the_librarys_documentation_and_more_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "more.txt").write_text("Prose. " * 1000)
    library = tmp_path / "library"
    library.mkdir()
    for name in "abcdefghij":
        source = f'"""Module {name}."""\nx = 1\nclass A:\n    "Class."\n    def f(self):\n        "Method."\n'
        (library / f"{name}.py").write_text(source)
    monkeypatch.setattr(named.sysconfig, "get_path", lambda what: str(library))
    docs, both = load_texts("python-docs"), load_texts("python-docs", tmp_path / "more.txt")
    assert sorted(docs.train + docs.val) == [f"Module {name}.\n\nClass.\n\nMethod.\n\n" for name in "abcdefghij"]
    assert (both.train[:-1], both.val[:-1]) == (docs.train, docs.val)
    assert both.train[-1] + both.val[-1] == "Prose. " * 1000
    with pytest.raises(UserError, match=r"only tiny-shakespeare .* and python-docs"):
        load_texts("python-stdlib", tmp_path / "more.txt")
