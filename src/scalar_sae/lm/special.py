"""Special tokens: marks of the beginning or end of a text, of padding, or of a speaker's turn.

A special token is not text. Its activation often has hundreds of times the norm of the others, because attention heads
that have nothing to do attend to it (an attention sink). SAEs are not trained to reconstruct it, and replacing it by a
reconstruction changes the model's computation at every position. One rule therefore applies throughout the package:

    `skip`    positions of special tokens keep the model's own activation in every splice and are not counted
              (the default)
    `first`   the same, and the first token of every prompt is a special one, whatever it is
    `count`   they are treated like every other position, as in the SCALAR paper
    (0, 2)    the same as `skip`, for these token ids in place of those that the tokenizer names; `first` may be among
              them

A model whose prompts begin without a special token, such as GPT-2, makes an attention sink of whatever token comes
first. `first` is for such models.

The tokenizer says which tokens are special. The configuration of a model also names ids (bos, eos, pad), but these may
be mere defaults of its class. They are believed only where the tokenizer has no text for them.
"""

from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor

from scalar_sae.console import say_once
from scalar_sae.errors import UserError, unknown
from scalar_sae.tokenizer import Tokenizer

LARGEST_ID = 2**31 - 1
First = Literal["first"]
FIRST: First = "first"
Rule = Literal["skip", "first", "count"] | tuple[Annotated[int, Field(ge=0, le=LARGEST_ID)] | First, ...]
"""The treatment of positions with special tokens."""
Special = tuple[int | First, ...]
"""The tokens that a rule leaves out in a model: their ids, and `first` for the first token of every prompt."""

_NAMED = ("bos_token_id", "eos_token_id", "pad_token_id")


def find_special(tokenizer: Tokenizer | None, configs: Iterable[Any], d_vocab: int) -> tuple[int, ...]:
    """The ids of a model's special tokens, in ascending order.

    Args:
        tokenizer: the model's tokenizer; None if there is none, so that only the configurations are known.
        configs: configurations that may name a beginning, an end or padding: the model's own and its generation config.
        d_vocab: size of the model's vocabulary; larger ids never occur.
    """
    named: set[int] = set()
    for config in configs:
        for field in _NAMED:
            ids = getattr(config, field, None)
            named.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    if tokenizer is not None:
        named = {*tokenizer.special, *(token for token in named if not tokenizer.has_text(token))}
    return tuple(sorted(token for token in named if 0 <= token < d_vocab))


def parse_rule(text: str) -> Rule:
    """Parse a rule from the command line: `skip`, `first`, `count`, or ids such as `0,2` and `first,0,2`.

    Raises:
        UserError: it is none of these, or an id is larger than any token's.
    """
    if text == "skip" or text == "first" or text == "count":
        return text
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() or part == FIRST for part in parts):
        raise unknown("rule for special tokens", text, ["skip", "first", "count", "token ids such as 0,2"])
    for part in parts:
        if part != FIRST and int(part) > LARGEST_ID:
            raise UserError(f"special token {part}: larger than the id of any token; give ids such as 0,2")
    return ordered([FIRST if part == FIRST else int(part) for part in parts])


def ordered(special: Iterable[int | First]) -> Special:
    """Special tokens in one order, each once."""
    there = set(special)
    ids = sorted(token for token in there if token != FIRST)
    return (FIRST, *ids) if FIRST in there else tuple(ids)


def named_by(rule: Iterable[int | First], d_vocab: int, model: str) -> Special:
    """The special tokens that a rule names, for a model with `d_vocab` token ids.

    Raises:
        UserError: an id lies outside the vocabulary.
    """
    special = ordered(rule)
    for token in special:
        if token != FIRST and token >= d_vocab:
            raise UserError(f"special token {token}: the vocabulary of {model} ends at {d_vocab - 1}")
    return special


def counted(tokens: Int[Tensor, "*prompt token"], special: Collection[int | First]) -> Bool[Tensor, "*prompt token"]:
    """A mask of the tokens that are not special, of whole prompts from their first token on."""
    kept = ~torch.isin(tokens, tokens.new_tensor([token for token in ordered(special) if token != FIRST]))
    if FIRST in special:
        kept[..., :1] = False
    return kept


def left_out(tokens: Int[Tensor, "prompt token"], special: Collection[int | First]) -> dict[str, Any]:
    """The special tokens of a text, for a record or a log: their ids, and the number of positions that hold one."""
    n = tokens.numel() - int(counted(tokens, special).sum())
    return {"ids": list(ordered(special)), "left_out": n, "of": tokens.numel()}


def remark(
    tokens: Int[Tensor, "prompt token"], special: Collection[int | First], what: str = "positions"
) -> str | None:
    """A sentence on the special tokens of a text for the user; None if there are none."""
    n = left_out(tokens, special)["left_out"]
    if not n:
        return None
    share = f"{n:,} of {tokens.numel():,} {what} hold special tokens ({listed(special)})"
    return f"{share}: they keep the model's own activation and are not counted; --special count counts them"


def say_special(tokens: Int[Tensor, "prompt token"], special: Collection[int | First], what: str = "positions") -> None:
    """Tell the user how many positions of a text hold special tokens, if any do."""
    if said := remark(tokens, special, what):
        say_once(said)


def listed(special: Collection[int | First], most: int = 8) -> str:
    """The first few special tokens, as text."""
    ids = [token for token in ordered(special) if token != FIRST]
    some = f"ids {', '.join(map(str, ids[:most]))}{f' and {len(ids) - most} more' if len(ids) > most else ''}"
    begin = ["the first token of every prompt"] if FIRST in special else []
    return ", ".join([*begin, *([some] if ids or not begin else [])])
