"""Texts with names of their own: the standard library's source and documentation, and the paper's Shakespeare."""

import ast
import hashlib
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from scalar_sae.console import Bar
from scalar_sae.corpora.files import recognised
from scalar_sae.corpora.texts import VAL_SHARE, Texts, read_text, split
from scalar_sae.errors import UserError
from scalar_sae.io import atomic_write, cache_folder

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

LOCAL = "name the path of a local copy instead (`corpus:` in a preset, --tokens; for train-lm --data PATH)"
"""The remedy if the text cannot be downloaded."""

# Not library source: tests (absent from many installations), vendored or generated trees, third-party packages.
_SKIPPED_FOLDERS = {
    "test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib", "lib2to3", "ensurepip", "turtledemo",
    "lib-dynload",
}  # fmt: skip

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def named(name: str, *data: Path) -> Texts:
    """Load one of NAMES.

    Args:
        name: its name.
        data: for `tiny-shakespeare` a local copy, instead of the download; for `python-docs` text files to add.

    Raises:
        UserError: it cannot be downloaded, or data is given for a text that takes none.
    """
    if data and name == "python-stdlib":
        raise UserError(f"--data {data[0]}: only tiny-shakespeare (a local copy) and python-docs (more text) take data")
    if name == "python-stdlib":
        return _library(name, lambda source: source)
    if name == "python-docs":
        texts = [_library(name, _docstrings), *(split(path.name, read_text(recognised(path))) for path in data)]
        train, val = zip(*((text.train, text.val) for text in texts), strict=True)
        return Texts(name, list(chain(*train)), list(chain(*val)))
    if len(data) > 1:
        raise UserError(f"--data {data[1]}: tiny-shakespeare is one file; give one local copy")
    [path] = data or (_download(SHAKESPEARE_URL, SHAKESPEARE_SHA256),)
    return split(name, read_text(recognised(path)))


def _library(name: str, text_of: Callable[[str], str]) -> Texts:
    """The running interpreter's own standard library, split by file.

    A file's part depends on its name alone. The training files of one Python version are therefore never among the
    validation files of another.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        path.relative_to(root)
        for path in root.rglob("*.py")
        if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts)
        and not str(path.relative_to(root)).startswith("config-")
    )
    if not files:
        raise UserError(
            f"{name}: no source files under {root}; name a text file instead (`corpus:` in a preset, --tokens)"
        )
    texts = Texts(name, [], [])
    for file in files:
        part = texts.val if is_validation_file(file.as_posix()) else texts.train
        part.append(text_of((root / file).read_text(encoding="utf-8", errors="replace")))
    return texts


def _docstrings(source: str) -> str:
    """The docstrings of a module, in the order of the source."""

    def below(node: _Documented) -> Iterator[str]:
        yield ast.get_docstring(node) or ""
        for child in node.body:
            if isinstance(child, _Documented):
                yield from below(child)

    return "".join(f"{text}\n\n" for text in below(ast.parse(source)) if text)


def is_validation_file(name: str) -> bool:
    """Whether the file of this relative name belongs to the validation part: about one in ten, chosen by hash."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < VAL_SHARE * 2**64


def _download(url: str, sha256: str) -> Path:
    """Download a file once into the cache and check its digest."""
    path = cache_folder() / url.rsplit("/", 1)[-1]
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return path
    try:
        with Bar(f"download {url}"), urllib.request.urlopen(url, timeout=60) as response:
            content = response.read()
    except (urllib.error.URLError, OSError) as error:
        raise UserError(f"{url}: download failed ({error}); {LOCAL}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{url}: what came is not the expected file; {LOCAL}")
    with atomic_write(path, "SCALAR_SAE_CACHE") as temporary:
        temporary.write_bytes(content)
    return path
