"""Text to tokens: splits without overlap, honest counts, downloads through a local stand-in."""

import hashlib
import http.server
import threading
from pathlib import Path

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scalar_sae import corpora
from scalar_sae.errors import UserError
from tests.helpers import shared


@given(st.text())
def test_ascii_survives_and_the_rest_is_counted(text: str):
    ids, replaced = corpora.ASCII.encode(text)
    assert corpora.ASCII.decode(ids.tolist()) == "".join(c if ord(c) < 128 else "?" for c in text)
    assert replaced == sum(ord(c) >= 128 for c in text)


def test_the_standard_library_is_split_by_file():
    corpus = corpora.load_corpus("python-stdlib")
    share = corpus.val.numel() / (corpus.val.numel() + corpus.train.numel())
    assert 0.03 < share < 0.25
    assert corpus.fingerprint == corpora.load_corpus("python-stdlib").fingerprint
    train, val = (corpora.ASCII.decode(part.tolist()) for part in (corpus.train, corpus.val))
    for module in ("argparse", "dataclasses", "typing", "heapq", "enum", "json.decoder", "inspect", "textwrap"):
        text = _source(module)
        side = corpora.is_validation_file(module.replace(".", "/") + ".py")
        assert (text in val, text in train) == (side, not side)


def _source(module: str) -> str:
    import importlib.util

    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return corpora.ASCII.decode(corpora.ASCII.encode(Path(spec.origin).read_text(encoding="utf-8"))[0].tolist())


def test_tiny_shakespeare_is_split_as_in_the_paper():
    path = shared("data", "tiny_shakespeare.txt")
    corpus = corpora.load_corpus("tiny-shakespeare", path)
    assert (corpus.train.numel(), corpus.val.numel()) == (1_003_776, 111_618 + 0)
    assert corpora.ASCII.decode(torch.cat([corpus.train, corpus.val]).tolist()) == path.read_text()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == corpora.SHAKESPEARE_SHA256


def test_any_text_file(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("naïve " * 500, encoding="utf-8")
    corpus = corpora.load_corpus(str(path))
    assert corpus.replaced == 500
    assert corpus.train.numel() % 256 == 0
    assert corpora.load_held_out(str(path)).val.numel() == 3000


def test_a_hub_data_set_with_a_text_column(tmp_path: Path):
    rows = {"content": ["one row of text", "and another"], "label": [0, 1]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "data" / "train.parquet")
    corpus = corpora.load_corpus(f"hf://{tmp_path / 'data'}#content")
    assert corpora.ASCII.decode(torch.cat([corpus.train, corpus.val]).tolist()) == "one row of text\nand another"
    with pytest.raises(UserError, match="did you mean 'content'"):
        corpora.load_corpus(f"hf://{tmp_path / 'data'}#contents")
    with pytest.raises(UserError, match="column 'label' holds more than text"):
        corpora.load_corpus(f"hf://{tmp_path / 'data'}#label")


def test_a_hub_data_set_is_read_as_far_as_it_is_needed(tmp_path: Path):
    card = ["configs:", *(f"- {{config_name: {n}, data_files: {n}.parquet}}" for n in ("small", "large"))]
    (tmp_path / "README.md").write_text("\n".join(["---", *card, "---", ""]))
    for name, n in (("small", 3), ("large", 2000)):
        rows = {"text": [f"{name} text number {i:4d}" for i in range(n)]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"{name}.parquet")
    read: list[str] = []

    class Counting(corpora.Ascii):
        def encode(self, text: str) -> tuple[torch.Tensor, int]:
            read.append(text)
            return super().encode(text)

    address = f"hf://{tmp_path}:large"
    corpus = corpora.load_corpus(address, tokenizer=Counting(), n_train=5000)
    text, ids = "\n".join(f"large text number {i:4d}" for i in range(2000)), torch.cat([corpus.train, corpus.val])
    assert corpora.ASCII.decode(ids.tolist()) == text[: len(ids)]
    assert 5000 <= len(corpus.train) < 5300
    assert len(corpus.val) == pytest.approx(len(corpus.train) / 9, rel=0.5)
    assert sum(map(len, read)) < len(ids) + 30, "no row more than is needed"
    assert corpora.load_corpus(address, n_train=5000).fingerprint == corpus.fingerprint
    small = corpora.load_corpus(f"hf://{tmp_path}:small")
    assert corpora.ASCII.decode(small.val.tolist()) == text[:68].replace("large", "small")
    with pytest.raises(UserError, match=r"cannot be read .*small.*large"):
        corpora.load_corpus(f"hf://{tmp_path}:medium")


def test_a_data_set_that_is_not_there():
    with pytest.raises(UserError, match="cannot be read from"):
        corpora.load_corpus("hf:///no/such/folder")


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
        monkeypatch.setattr(corpora, "SHAKESPEARE_URL", f"http://127.0.0.1:{httpd.server_port}/input.txt")
        yield served
        httpd.shutdown()


def test_the_download_is_checked_and_kept(server: Path, monkeypatch: pytest.MonkeyPatch):
    text = "To be, or not to be. " * 100
    (server / "input.txt").write_text(text)
    monkeypatch.setattr(corpora, "SHAKESPEARE_SHA256", hashlib.sha256(text.encode()).hexdigest())
    first = corpora.load_corpus("tiny-shakespeare")
    (server / "input.txt").unlink()
    assert corpora.load_corpus("tiny-shakespeare").fingerprint == first.fingerprint


def test_a_wrong_download_is_refused(server: Path):
    (server / "input.txt").write_text("a page that says: please log in")
    with pytest.raises(UserError, match=r"not the expected file; give a local copy: --data"):
        corpora.load_corpus("tiny-shakespeare")
    assert not list(corpora.cache_folder().glob("*"))


def test_no_network_names_the_remedy(server: Path):
    with pytest.raises(UserError, match=r"download failed .*--data PATH"):
        corpora.load_corpus("tiny-shakespeare")


def test_bad_input(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'python-stdlib'"):
        corpora.load_corpus("python-stdlb")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a UTF-8 text file"):
        corpora.load_corpus(str(tmp_path / "binary"))
    with pytest.raises(UserError, match="5 tokens are fewer than one context of 8"):
        corpora.windows(torch.zeros(5, dtype=torch.uint8), 8)


@given(st.integers(8, 100), st.integers(1, 8))
def test_windows_do_not_overlap(n: int, context: int):
    tokens = torch.arange(n).to(torch.uint8)
    rows = corpora.windows(tokens, context)
    assert rows.flatten().tolist() == list(range(n // context * context))


def test_the_librarys_documentation_and_more_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "more.txt").write_text("Prose. " * 1000)
    library = tmp_path / "library"
    library.mkdir()
    for name in "abcdefghij":
        source = f'"""Module {name}."""\nx = 1\nclass A:\n    "Class."\n    def f(self):\n        "Method."\n'
        (library / f"{name}.py").write_text(source)
    monkeypatch.setattr(corpora.sysconfig, "get_path", lambda what: str(library))
    docs, both = corpora.load_texts("python-docs"), corpora.load_texts("python-docs", tmp_path / "more.txt")
    assert sorted(docs.train + docs.val) == [f"Module {name}.\n\nClass.\n\nMethod.\n\n" for name in "abcdefghij"]
    assert (both.train[:-1], both.val[:-1]) == (docs.train, docs.val)
    assert both.train[-1] + both.val[-1] == "Prose. " * 1000
    with pytest.raises(UserError, match=r"only tiny-shakespeare .* and python-docs"):
        corpora.load_texts("python-stdlib", tmp_path / "more.txt")
