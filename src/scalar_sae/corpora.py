"""Text -> token ids in a training and a validation part that share nothing, with a fingerprint.

    corpus = load_corpus("python-stdlib")
    corpus.train, corpus.val        # token ids
    windows(corpus.val, 128)        # [n, 128] prompts that do not overlap

Tokens are those of the tokenizer that is given (`LanguageModel.tokenizer`); by default ASCII codes.
"""

import ast
import hashlib
import math
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int, Integer
from torch import Tensor

from scalar_sae.errors import UserError, unknown
from scalar_sae.io import cache_folder, whole
from scalar_sae.tokenizer import Ascii, Tokenizer

ASCII = Ascii()
VAL_SHARE = 0.1
HUB_TOKENS = 10_000_000
"""Training tokens that are read of a data set on the Hub where nobody says how many are needed."""

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
NAMES = ("python-stdlib", "python-docs", "tiny-shakespeare")

# Not library source: tests (absent from many installations), vendored or generated trees, other people's packages.
_SKIPPED_FOLDERS = {
    "test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib", "lib2to3", "ensurepip", "turtledemo",
    "lib-dynload",
}  # fmt: skip

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Corpus:
    """Token ids of a text, in two parts without overlap."""

    name: str
    train: Integer[Tensor, " n_train"]
    val: Integer[Tensor, " n_val"]
    replaced: int
    """Characters outside ASCII, each turned into `?`."""
    d_vocab: int = ASCII.d_vocab
    bos: int | None = None
    """The token that starts every window, if the tokenizer has one."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both parts: two runs with the same fingerprint saw the same text."""
        digest = hashlib.sha256(self.train.numpy().tobytes())
        digest.update(b"|val|")
        digest.update(self.val.numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def remark(self) -> str:
        """What the user should know about the text; empty if nothing."""
        return f"{self.name}: {self.replaced:,} characters outside ASCII became '?'" if self.replaced else ""

    def describe(self) -> dict[str, str | int]:
        """What a result file records about its data."""
        return {
            "corpus": self.name,
            "fingerprint": self.fingerprint,
            "n_train": self.train.numel(),
            "n_val": self.val.numel(),
            "replaced": self.replaced,
        }


class Texts(NamedTuple):
    """The two parts of a text, each in pieces."""

    name: str
    train: list[str]
    val: list[str]


def load_texts(spec: str, *data: Path) -> Texts:
    """Read a text by name, path or Hugging Face address.

    Args:
        spec: `python-stdlib`, `python-docs`, `tiny-shakespeare`, a path to a text file, or
            `hf://owner/name[:configuration][#column]`.
        data: for `tiny-shakespeare` a local copy, instead of the download; for `python-docs` text files to add.

    Raises:
        UserError: no such corpus, file or column, or no way to download it.
    """
    if data and spec not in ("tiny-shakespeare", "python-docs"):
        raise UserError(f"--data {data[0]}: only tiny-shakespeare (a local copy) and python-docs (more text) take data")
    if spec == "python-stdlib":
        return _library(spec, lambda source: source)
    if spec == "python-docs":
        texts = [_library(spec, _docstrings), *(_split(path.name, _read_text(path)) for path in data)]
        train, val = zip(*((text.train, text.val) for text in texts), strict=True)
        return Texts(spec, list(chain(*train)), list(chain(*val)))
    if spec == "tiny-shakespeare":
        [path] = data or (_download(SHAKESPEARE_URL, SHAKESPEARE_SHA256),)
        return _split(spec, _read_text(path))
    if spec.startswith("hf://"):
        return _split(spec, "\n".join(_rows(spec)))
    if Path(spec).is_file():
        return _split(Path(spec).name, _read_text(Path(spec)))
    raise unknown("corpus", spec, [*NAMES, "a path to a text file", "hf://owner/name:configuration#column"])


def load_corpus(spec: str, *data: Path, tokenizer: Tokenizer = ASCII, n_train: int = HUB_TOKENS) -> Corpus:
    """Read a text and turn it into token ids.

    Args:
        spec: as for `load_texts`.
        data: as for `load_texts`.
        tokenizer: what makes the ids.
        n_train: training tokens that are needed: of a data set on the Hub no more is read than has them.

    Raises:
        UserError: no such corpus, file or column, or no way to download it.
    """
    if spec.startswith("hf://"):
        return _streamed(spec, tokenizer, n_train)
    return tokenized(load_texts(spec, *data), tokenizer)


def tokenized(texts: Texts, tokenizer: Tokenizer) -> Corpus:
    """The token ids of a text."""
    train, val = ([tokenizer.encode(piece) for piece in pieces] for pieces in (texts.train, texts.val))
    replaced = sum(bad for _, bad in train + val)
    return Corpus(
        texts.name,
        torch.cat([ids for ids, _ in train]),
        torch.cat([ids for ids, _ in val]),
        replaced,
        tokenizer.d_vocab,
        tokenizer.bos,
    )


def load_held_out(spec: str, tokenizer: Tokenizer = ASCII) -> Corpus:
    """A text to evaluate on: the validation part of a named corpus, the whole of any other text (of a data set on the
    Hub, its beginning).

    Raises:
        UserError: no such corpus or file.
    """
    corpus = load_corpus(spec, tokenizer=tokenizer)
    if spec in NAMES:
        return corpus
    return replace(corpus, train=corpus.train[:0], val=torch.cat([corpus.train, corpus.val]))


def windows(
    tokens: Integer[Tensor, " n"], context: int, name: str = "text", bos: int | None = None
) -> Int[Tensor, "n_windows context"]:
    """Cut tokens into consecutive prompts that do not overlap; a remainder is left out.

    With `bos`, every prompt starts with that token, followed by context - 1 of the text's.

    Raises:
        UserError: the text is shorter than one context.
    """
    own = context if bos is None else context - 1
    n = tokens.numel() // own
    if n == 0:
        raise UserError(f"{name}: {tokens.numel()} tokens are fewer than one context of {context}; give a longer text")
    rows = tokens[: n * own].view(n, own).long()
    return rows if bos is None else torch.cat([rows.new_full((n, 1), bos), rows], 1)


def _library(name: str, text_of: Callable[[str], str]) -> Texts:
    """The running interpreter's own standard library, split by file.

    A file's side follows from its name alone, so a language model trained on one Python version's training files
    never meets them among another version's validation files.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        path.relative_to(root)
        for path in root.rglob("*.py")
        if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts)
        and not str(path.relative_to(root)).startswith("config-")
    )
    if not files:
        raise UserError(f"{name}: no source files under {root}; give a text file with --corpus PATH instead")
    texts = Texts(name, [], [])
    for file in files:
        part = texts.val if is_validation_file(file.as_posix()) else texts.train
        part.append(text_of((root / file).read_text(encoding="utf-8", errors="replace")))
    return texts


def _docstrings(source: str) -> str:
    """The documentation in a module: its docstrings, in the order of the source."""

    def below(node: _Documented) -> Iterator[str]:
        yield ast.get_docstring(node) or ""
        for child in node.body:
            if isinstance(child, _Documented):
                yield from below(child)

    return "".join(f"{text}\n\n" for text in below(ast.parse(source)) if text)


def is_validation_file(name: str) -> bool:
    """Whether the file of this relative name belongs to the validation part: about one in ten, by its hash."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < VAL_SHARE * 2**64


def _split(name: str, text: str) -> Texts:
    """The paper's split: the first 90 % of the text, rounded down to a multiple of 256 characters, trains."""
    n_train = int((1 - VAL_SHARE) * len(text)) // 256 * 256
    return Texts(name, [text[:n_train]], [text[n_train:]])


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a UTF-8 text file (byte {error.start}); save it as UTF-8") from error


def _streamed(spec: str, tokenizer: Tokenizer, n_train: int) -> Corpus:
    """The beginning of a data set on the Hub, tokenised text by text: memory is that of the ids. Split as `_split`."""
    wanted = math.ceil((n_train + 256) / (1 - VAL_SHARE))
    pieces: list[Tensor] = []
    n = replaced = 0
    for text in _rows(spec):
        ids, bad = tokenizer.encode(f"\n{text}" if pieces else text)
        pieces.append(ids)
        n, replaced = n + len(ids), replaced + bad
        if n >= wanted:
            break
    if not pieces:
        raise UserError(f"{spec}: holds no texts")
    ids = torch.cat(pieces)[:wanted]
    cut = int((1 - VAL_SHARE) * len(ids)) // 256 * 256
    return Corpus(spec, ids[:cut], ids[cut:], replaced, tokenizer.d_vocab, tokenizer.bos)


def _rows(spec: str) -> Iterator[str]:
    """The texts of a data set on the Hub, or of a local folder of that form, each read when it is asked for."""
    address, _, column = spec.removeprefix("hf://").partition("#")
    address, _, configuration = address.partition(":")
    column = column or "text"
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise UserError(f"{spec}: needs the datasets library: pip install 'scalar-sae[data]'") from error
    try:
        for row in datasets.load_dataset(address, configuration or None, split="train", streaming=True):
            if column not in row:
                raise unknown(f"column of {address}", column, row)
            if not isinstance(row[column], str):
                raise UserError(f"{spec}: column {column!r} holds more than text")
            yield row[column]
    except UserError:
        raise
    except (OSError, ValueError, DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{spec}: cannot be read from the Hugging Face hub or as a local folder ({reason})") from error


def _download(url: str, sha256: str) -> Path:
    """Fetch a file once into the cache and check what came."""
    path = cache_folder() / url.rsplit("/", 1)[-1]
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return path
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read()
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"{url}: download failed ({error}); give a local copy: --data PATH, or its path as the corpus"
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"{url}: what came is not the expected file; give a local copy: --data PATH, or its path as the corpus"
        )
    with whole(path, "SCALAR_SAE_CACHE") as temporary:
        temporary.write_bytes(content)
    return path
