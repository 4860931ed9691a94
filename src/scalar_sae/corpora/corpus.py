"""Token ids in a training and a validation part that share nothing, and the prompts that are cut from them."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int, Integer
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.tokenizer import HasTokenizer

Tokens = Integer[Tensor, "..."]
"""[n] is running text, [n, length] are prompts that were cut before."""

Seen = Literal["held out", "another text", "unknown"]
"""Whether SAEs were trained on a text: it was held out, it is not the text they were trained on, or nobody says."""
SEEN: dict[Seen, str] = {
    "held out": "held out when the SAEs were trained",
    "another text": "not the text that the SAEs were trained on",
    "unknown": "whether the SAEs were trained on it is not known",
}


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids of a text, in two parts without overlap."""

    name: str
    train: Tokens
    val: Tokens
    tokenizer: str
    """Fingerprint of the tokenizer that made the ids."""
    bos: int | None = None
    """The token that starts every prompt, if there is one."""
    source: str = ""
    """The address under which the text is found from any folder."""
    joined_by: str | None = None
    """What stands between two documents; None where the text is one document or consists of prompts."""
    replaced: int = 0
    """Characters that the tokenizer does not have, each turned into `?`."""
    skipped: int = 0
    """Rows without text, which were left out."""
    notes: tuple[str, ...] = ()
    """What else the user should know about the text."""
    seen: Seen | None = None
    """Of a text that SAEs are evaluated on: whether they were trained on it."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both parts: two runs with the same fingerprint saw the same text."""
        digest = hashlib.sha256(self.train.numpy().tobytes())
        digest.update(b"|val|")
        digest.update(self.val.numpy().tobytes())
        if self.val.dim() == 2:
            digest.update(f"|prompts of {self.val.shape[1]}|".encode())
        return digest.hexdigest()[:16]

    def check_tokenizer(self, lm: HasTokenizer) -> None:
        """Raise a UserError if the ids are not those of a model's tokenizer."""
        check_tokenizer(self.tokenizer, lm, self.name)

    @property
    def largest(self) -> int:
        """The largest token id in the text, or in front of its prompts."""
        return max([self.bos or 0, *(int(part.max()) for part in (self.train, self.val) if part.numel())])

    @property
    def length(self) -> int | None:
        """Tokens of a prompt that was cut before, its BOS counted; None for running text."""
        if self.val.dim() == 1:
            return None
        return self.val.shape[1] + int(self.bos is not None and not _starts_with(self.val, self.bos))

    def context(self, most: int) -> int:
        """The usual number of tokens of a prompt: 128, or as many as a model reads, or as there are in a row."""
        return min(most, 128, self.length or 128)

    def remarks(self, context: int) -> list[str]:
        """What the user should know when prompts of `context` tokens are read."""
        found = list(self.notes)
        if self.skipped:
            found.append(f"{self.skipped:,} rows without text were left out")
        if self.replaced:
            found.append(f"{self.replaced:,} characters outside ASCII became '?'")
        if self.length is not None and (left := self._left_out(context)):
            found.append(f"the last {left} of every {self.val.shape[1]} tokens are left out: prompts have {context}")
        return [f"{self.name}: {remark}" for remark in found]

    def _left_out(self, context: int) -> int:
        start = int(self.bos is not None)
        assert self.length is not None
        return (self.length - start) % (context - start)

    def describe(self) -> dict[str, Any]:
        """What a result file records about its data."""
        return {
            "corpus": self.name,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "n_train": self.train.numel(),
            "n_val": self.val.numel(),
            "tokenizer": self.tokenizer,
            "joined_by": self.joined_by,
            "replaced": self.replaced,
            "skipped": self.skipped,
        } | ({} if self.seen is None else {"seen": self.seen})


def windows(tokens: Tokens, context: int, name: str = "text", bos: int | None = None) -> Int[Tensor, "n context"]:
    """Cut tokens into consecutive prompts that do not overlap; a remainder is left out.

    With `bos`, every prompt starts with that token, followed by context - 1 of the text's. Prompts that were cut before
    are cut further, each by itself; a BOS that they have already is not put there twice.

    Raises:
        UserError: the text, or a prompt that was cut before, is shorter than one context.
    """
    own = context if bos is None else context - 1
    if tokens.dim() == 2:
        tokens = tokens[:, 1:] if bos is not None and _starts_with(tokens, bos) else tokens
        n = tokens.shape[1] // own
        if n == 0:
            most = tokens.shape[1] + context - own
            raise UserError(f"{name}: its rows make prompts of {most} tokens, not {context}; lower the context")
        rows = tokens[:, : n * own].reshape(-1, own).long()
    else:
        n = tokens.numel() // own
        if n == 0:
            raise UserError(
                f"{name}: {tokens.numel()} tokens are fewer than one context of {context}; give a longer text"
            )
        rows = tokens[: n * own].view(n, own).long()
    return rows if bos is None else torch.cat([rows.new_full((rows.shape[0], 1), bos), rows], 1)


def check_tokenizer(fingerprint: str, lm: HasTokenizer, name: str) -> None:
    """Raise a UserError if the tokenizer with this fingerprint, which made the ids of a text, is not the model's."""
    if fingerprint != lm.tokenizer.fingerprint:
        raise UserError(
            f"{name}: its token ids were made by another tokenizer than that of {lm.name}; "
            f"load the text for this model, load_corpus({name!r}, lm)"
        )


def prompts_fingerprint(prompts: Int[Tensor, "n context"]) -> str:
    """SHA-256 over prompts: two measurements with the same one were made on the same tokens."""
    return hashlib.sha256(prompts.long().cpu().numpy().tobytes()).hexdigest()[:16]


def _starts_with(rows: Tokens, token: int) -> bool:
    return bool((rows[:, 0] == token).all())
