"""Tokenizers: text to token ids and back, by the toy models' ASCII codes or any tokenizer of `transformers`."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

REPLACEMENT = ord("?")
END = "<|endoftext|>"
SAMPLE = "Hello, world!  naïve ☃ 日本語\r\n\tdef f(x_1):\n        return x_1 ** 2  # 1234567\n"
"""A text that tokenizers with the same vocabulary split differently if their rules differ."""
_MARK = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")
"""The form of a marker token, where nothing else identifies it as one."""


@dataclass(frozen=True)
class Ascii:
    """ASCII codes, the vocabulary of the paper's toy model. Any other character becomes `?` and is counted."""

    name: str = "ascii"
    d_vocab: int = 128
    start: tuple[int, ...] = ()
    """Tokens that the tokenizer puts before every text and that therefore begin every prompt: none."""
    eos: int | None = None
    """The token that ends a text."""
    special: tuple[int, ...] = ()
    """Tokens that are not text: none."""
    fingerprint: str = "ascii"
    """Two tokenizers with the same fingerprint produce the same token ids."""

    def has_text(self, token: int) -> bool:
        """Whether the token is text, which every ASCII code is."""
        return 0 <= token < self.d_vocab

    def encode(self, text: str) -> tuple[Integer[Tensor, " n"], int]:
        """The ASCII codes, and the number of characters outside ASCII."""
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        outside = codes >= self.d_vocab
        ids = np.where(outside, REPLACEMENT, codes).astype(np.uint8)
        return torch.from_numpy(ids), int(outside.sum())

    def decode(self, ids: Iterable[int]) -> str:
        """The characters."""
        return "".join(map(chr, ids))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each token by itself."""
        return list(map(chr, ids))

    def save(self, folder: Path) -> None:
        """Writes nothing, because models of 128 symbols without a tokenizer use this one by default."""


class Pretrained:
    """A tokenizer of `transformers`."""

    def __init__(self, inner: Any, name: str) -> None:
        self.inner = inner
        self.name = name
        self.start: tuple[int, ...] = _in_front(inner("a").input_ids, inner("a", add_special_tokens=False).input_ids)
        self.eos: int | None = inner.eos_token_id
        added: dict[int, Any] = inner.added_tokens_decoder
        marked = {*inner.all_special_ids, *(token for token, entry in added.items() if entry.special)}
        self.special: tuple[int, ...] = tuple(sorted(marked - {None}))

    def has_text(self, token: int) -> bool:
        """Whether the vocabulary contains the token as text, not as a marker such as `</s>` or `[PAD]`."""
        if token in self.special or not 0 <= token < self.d_vocab:
            return False
        piece: str | None = self.inner.convert_ids_to_tokens(token)
        return piece is not None and not _MARK.fullmatch(self.decode([token]).strip())

    @property
    def _vocabulary(self) -> dict[str, int]:
        """All tokens, including added ones."""
        return self.inner.get_vocab()

    @cached_property
    def d_vocab(self) -> int:
        """The largest token id plus one, which may exceed the model's embedding."""
        return max(self._vocabulary.values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary, the added tokens, and the ids of a sample text."""
        added = sorted(self.inner.get_added_vocab().items())
        content = [sorted(self._vocabulary.items()), added, self.encode(SAMPLE)[0].tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def encode(self, text: str) -> tuple[Integer[Tensor, " n"], int]:
        """Token ids without special ones, in the smallest integer type that holds the vocabulary."""
        ids = self.inner(text, add_special_tokens=False, verbose=False).input_ids
        return torch.tensor(ids, dtype=smallest_dtype(self.d_vocab)), 0

    def decode(self, ids: Iterable[int]) -> str:
        """The original text."""
        return self.inner.decode(list(ids), clean_up_tokenization_spaces=False)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each token as it reads after another token, since some tokenizers drop the first token's space.

        A token that is only a part of a character is shown as the replacement character.
        """
        before = self.encode("a")[0].tolist()[-1]
        skip = len(self.decode([before]))
        pairs = [[before, token] for token in ids]
        return [text[skip:] for text in self.inner.batch_decode(pairs, clean_up_tokenization_spaces=False)]

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and its configuration."""
        self.inner.save_pretrained(folder)


Tokenizer = Ascii | Pretrained


@runtime_checkable
class HasTokenizer(Protocol):
    """The part of a language model's interface that concerns texts."""

    name: str

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer."""
        ...


def _in_front(marked: list[int], plain: list[int]) -> tuple[int, ...]:
    """The tokens before a text in a longer list of token ids."""
    lengths = range(len(marked) - len(plain) + 1)
    return tuple(next((marked[:n] for n in lengths if marked[n : n + len(plain)] == plain), []))


def byte_pairs(texts: list[str], d_vocab: int) -> Pretrained:
    """A byte-level BPE tokenizer like GPT-2's, with merges learned from a text."""
    from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer

    start = GPT2Tokenizer(vocab={END: 0}, merges=[])
    return Pretrained(start.train_new_from_iterator(texts, d_vocab, show_progress=False), "byte pairs")


def smallest_dtype(d_vocab: int) -> torch.dtype:
    """The smallest integer type that holds every token id."""
    return next(dtype for dtype in (torch.uint8, torch.int16, torch.int32) if d_vocab - 1 <= torch.iinfo(dtype).max)
