"""From an address to a corpus: find out what is there, read as much as is needed, and convert it to token ids."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scalar_sae.console import Bar
from scalar_sae.corpora import data_sets
from scalar_sae.corpora.address import NAMES, Address
from scalar_sae.corpora.corpus import Corpus, Tokens
from scalar_sae.corpora.files import File, recognised
from scalar_sae.corpora.ids import Array, array_of, checked, first_of, shards_in
from scalar_sae.corpora.join import Joined, join
from scalar_sae.corpora.named import named
from scalar_sae.corpora.rows import Document, Tally, documents, table_of
from scalar_sae.corpora.texts import BLOCK, VAL_SHARE, Texts, first_part, read_text, split
from scalar_sae.errors import UserError
from scalar_sae.tokenizer import Ascii, HasTokenizer, Pretrained, Tokenizer, smallest_dtype

ENOUGH = 10_000_000
"""Default number of training tokens to read from a table or from token ids."""
HELD_OUT = 1_000_000
"""Default number of tokens to read from them for evaluation."""


class _Opened(NamedTuple):
    """The data at an address: a text, documents, or token ids."""

    content: str | Iterator[Document] | list[Array]
    tally: Tally
    name: str


def load_texts(spec: str, *data: Path) -> Texts:
    """Read a whole text by name or address. Documents are joined by line breaks.

    Args:
        spec: `python-stdlib`, `python-docs`, `tiny-shakespeare`, a path, or
            `hf://owner/name[:config][@split][#column]`.
        data: for `tiny-shakespeare` a local copy, instead of the download; for `python-docs` text files to add.

    Raises:
        UserError: there is no such text, it cannot be read, or it consists of token ids.
    """
    if spec in NAMES:
        return named(spec, *data)
    _no_data(data)
    opened = _open(Address.parse(spec))
    if isinstance(opened.content, str):
        return split(opened.name, opened.content)
    texts: list[str] = []
    for document in opened.content:
        if not isinstance(document, str):
            raise UserError(f"{spec}: holds token ids; a text is needed here")
        texts.append(document)
    return split(opened.name, "\n".join(texts))


def load_corpus(spec: str, of: Tokenizer | HasTokenizer, *, data: Sequence[Path] = (), n_train: int = ENOUGH) -> Corpus:
    """Read a text and convert it to the token ids of a model.

    Args:
        spec: as for `load_texts`, or existing token ids (docs/text.md).
        of: the model that will read them, or its tokenizer.
        data: as for `load_texts`.
        n_train: number of training tokens needed. Of a table, or of token ids, no more is read than necessary.

    Raises:
        UserError: there is no such text, it cannot be read, or its ids belong to another tokenizer.
    """
    return _load(spec, of, data, math.ceil((n_train + BLOCK) / (1 - VAL_SHARE)))


def load_again(data: Mapping[str, Any], of: Tokenizer | HasTokenizer) -> Corpus:
    """Load the corpus that a record describes (`Corpus.describe`), provided that its text still exists unchanged.

    Raises:
        UserError: as for `load_corpus`.
    """
    return _load(data["source"], of, (), data["n_train"] + data["n_val"])


def load_held_out(spec: str, of: Tokenizer | HasTokenizer, n: int = HELD_OUT) -> Corpus:
    """Load a text for evaluation: the validation part of a named corpus, or all of any other text.

    Args:
        spec: as for `load_corpus`.
        of: as for `load_corpus`.
        n: number of tokens needed. Of a table, or of token ids, no more is read than necessary.

    Raises:
        UserError: as for `load_corpus`.
    """
    return to_evaluate_on(load_corpus(spec, of, n_train=max(n, HELD_OUT)))


def to_evaluate_on(corpus: Corpus) -> Corpus:
    """The corpus with its evaluation text as validation part: unchanged for a named corpus, otherwise all of its
    text.
    """
    if corpus.source in NAMES:
        return corpus
    return replace(corpus, train=corpus.train[:0], val=torch.cat([corpus.train, corpus.val]))


def tokenized(texts: Texts, tokenizer: Tokenizer) -> Corpus:
    """The token ids of a text."""
    with Bar(f"tokenize {texts.name}", sum(map(len, chain(texts.train, texts.val)))) as bar:

        def encoded(piece: str) -> tuple[Tokens, int]:
            found = tokenizer.encode(piece)
            bar.step(len(piece))
            return found

        train, val = (list(map(encoded, pieces)) for pieces in (texts.train, texts.val))
    return Corpus(
        texts.name,
        torch.cat([ids for ids, _ in train]),
        torch.cat([ids for ids, _ in val]),
        tokenizer.fingerprint,
        tokenizer.start,
        replaced=sum(bad for _, bad in train + val),
    )


def _load(spec: str, of: Tokenizer | HasTokenizer, data: Sequence[Path], wanted: int) -> Corpus:
    """Load a text as token ids. Of a table, or of token ids, only the first `wanted` are read."""
    tokenizer = of if isinstance(of, Ascii | Pretrained) else of.tokenizer
    if spec in NAMES:
        return replace(tokenized(named(spec, *data), tokenizer), source=spec)
    _no_data(data)
    address = Address.parse(spec)
    opened = _open(address)
    if isinstance(opened.content, str):
        corpus = tokenized(split(opened.name, opened.content), tokenizer)
    else:
        corpus = _gathered(opened, tokenizer, wanted)
    return replace(corpus, source=str(address))


def _no_data(data: Sequence[Path]) -> None:
    if data:
        raise UserError(f"--data {data[0]}: only tiny-shakespeare (a local copy) and python-docs (more text) take data")


def _open(address: Address) -> _Opened:
    """Open what is at an address. Documents are read lazily."""
    tally, place = Tally(), Path(address.place)
    name = str(address) if address.on_hub else place.name
    if address.on_hub:
        return _Opened(documents(data_sets.streamed(address), address.column, tally), tally, name)
    if place.is_dir() and data_sets.is_saved(place):
        return _Opened(documents(data_sets.saved(address), address.column, tally), tally, name)
    if place.is_dir() and (shards := shards_in(place)):
        return _Opened([array_of(recognised(path), address) for path in shards], tally, name)
    if place.is_dir():
        return _Opened(_in_folder(address, tally), tally, name)
    file = recognised(place)
    if file.kind == "ids":
        return _Opened([array_of(file, address)], tally, name)
    address.refuse("a file", "what", "split")
    if file.kind == "text":
        address.refuse("a text file", "column")
        return _Opened(read_text(file), tally, name)
    return _Opened(_in_file(file, address.column, tally), tally, name)


def _in_file(file: File, column: str | None, tally: Tally) -> Iterator[Document]:
    if file.kind == "text":
        yield read_text(file)
        return
    with table_of(file) as table:
        yield from documents(table, column, tally)


def _in_folder(address: Address, tally: Tally) -> Iterator[Document]:
    paths, left = data_sets.files_of(address)
    files = [recognised(path) for path in paths]
    kinds = {file.kind: file.path.name for file in [*files, *map(recognised, left)]}
    if len(kinds) > 1:
        there = ", ".join(f"{kind} ({name})" for kind, name in kinds.items())
        raise UserError(f"{address}: files of several kinds, {there}; give a folder of one kind, or one file")
    if "text" in kinds:
        address.refuse("a folder of text files", "column")
    tally.unread += [path.name for path in left]
    return chain.from_iterable(_in_file(file, address.column, tally) for file in files)


def _gathered(opened: _Opened, tokenizer: Tokenizer, wanted: int) -> Corpus:
    """A corpus of the first tokens of documents, or of existing token ids."""
    if isinstance(opened.content, list):
        joined = Joined(_first(opened.content, tokenizer, wanted, opened.name), are_ids=True)
    else:
        assert not isinstance(opened.content, str)
        joined = join(opened.content, tokenizer, wanted, opened.name)
    checked(joined.ids, tokenizer.d_vocab, opened.name)
    ids = torch.from_numpy(joined.ids.astype(_numpy_name(tokenizer)))
    if ids.dim() == 1:
        cut, start = first_part(len(ids)), tokenizer.start
    else:
        cut, start = int((1 - VAL_SHARE) * len(ids)), _row_start(ids, tokenizer, opened.name)
    notes = opened.tally.notes()
    if joined.are_ids:
        begin = tokenizer.decode(ids.flatten()[:16].tolist())
        notes.append(f"its token ids are taken for those of the model's tokenizer, which reads them as {begin!r}...")
    return Corpus(
        opened.name,
        ids[:cut],
        ids[cut:],
        tokenizer.fingerprint,
        start,
        joined_by=joined.by,
        replaced=joined.replaced,
        skipped=opened.tally.skipped,
        notes=tuple(notes),
    )


def _numpy_name(tokenizer: Tokenizer) -> str:
    return str(smallest_dtype(tokenizer.d_vocab)).removeprefix("torch.")


def _first(arrays: list[Array], tokenizer: Tokenizer, wanted: int, name: str) -> Array:
    """The first token ids, or the rows that contain them. A start that every prompt gets anyway is removed."""
    n = len(tokenizer.start)
    ids = first_of(arrays, wanted + n, name)
    if ids.ndim == 2:
        return ids[: math.ceil(wanted / ids.shape[1])]
    return ids[n if tuple(ids[:n].tolist()) == tokenizer.start else 0 :][:wanted]


def _row_start(rows: Tokens, tokenizer: Tokenizer, name: str) -> tuple[int, ...]:
    """The tokens that begin every prompt: the special ones with which all rows begin, or else the tokenizer's."""
    first = rows[:, 0].long()
    special = torch.isin(first, torch.tensor(tokenizer.special, dtype=torch.long))
    if bool((special & (first == rows[:, 1])).any()):
        raise UserError(
            f"{name}: rows begin with padding, which a model would read as text; pad on the right, or give an "
            "attention_mask beside input_ids"
        )
    alike = takewhile(lambda column: int(column[0]) in tokenizer.special and bool((column == column[0]).all()), rows.T)
    return tuple(int(column[0]) for column in alike) or tokenizer.start
