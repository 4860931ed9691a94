"""Join documents, separated by the tokenizer's end-of-text token or a line break."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from scalar_sae.console import Bar
from scalar_sae.corpora.rows import Document
from scalar_sae.errors import UserError
from scalar_sae.tokenizer import Tokenizer


class Joined(NamedTuple):
    """Token ids of joined documents: [n] running text, or [n, length] prompts that were cut before."""

    ids: Integer[np.ndarray, "..."]
    are_ids: bool
    """Whether the documents were given as token ids."""
    by: str | None = None
    """What separates two documents; None if nothing does."""
    replaced: int = 0


def join(documents: Iterator[Document], tokenizer: Tokenizer, wanted: int, name: str) -> Joined:
    """The first `wanted` tokens of documents. Several lists of token ids of equal length are prompts and are not
    joined.

    Raises:
        UserError: there are no documents, or some are text and others token ids.
    """
    between = [] if tokenizer.eos is None else [tokenizer.eos]
    pieces: list[Integer[np.ndarray, " _"]] = []
    n = replaced = 0
    kinds: set[type] = set()
    with Bar(f"tokenize {name}", wanted) as bar:
        for document in documents:
            kinds.add(type(document))
            if len(kinds) > 1:
                raise UserError(f"{name}: some rows hold text, others token ids; give one of the two")
            if isinstance(document, str):
                ids, bad = tokenizer.encode(document if between or not pieces else f"\n{document}")
                replaced += bad
                document = ids.numpy()
            pieces.append(document)
            n += len(document) + len(between)
            bar.step(len(document) + len(between))
            if n - len(between) >= wanted:
                break
    if not pieces:
        raise UserError(f"{name}: none of its rows holds text")
    are_ids = kinds != {str}
    if are_ids and len(pieces) > 1 and len({len(piece) for piece in pieces}) == 1 and len(pieces[0]) > 1:
        return Joined(np.stack(pieces), are_ids)
    if are_ids and not between:
        between = tokenizer.encode("\n")[0].tolist()
    by = None if len(pieces) == 1 else tokenizer.decode(between) if between else "\n"
    return Joined(_joined(pieces, between, tokenizer)[:wanted], are_ids, by, replaced)


def _joined(
    pieces: list[Integer[np.ndarray, " _"]], between: list[int], tokenizer: Tokenizer
) -> Integer[np.ndarray, " n"]:
    """Concatenate the pieces. No separator is added where a piece ends, or the next begins, with a special token."""
    separator = np.array(between, dtype=pieces[0].dtype)
    found = [pieces[0]]
    for before, piece in pairwise(pieces):
        marked = before[-1] in tokenizer.special or piece[0] in tokenizer.special
        found += [piece] if marked else [separator, piece]
    return np.concatenate(found)
