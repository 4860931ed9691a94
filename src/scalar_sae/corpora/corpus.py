"""Token ids in a training and a validation part without overlap, and the prompts that are cut from them."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int, Integer
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.tokenizer import HasTokenizer

Tokens = Integer[Tensor, "..."]
"""Running text [n], or prompts that were cut before [n, length]."""

Seen = Literal["held out", "trained on", "another text", "unknown"]
"""Whether SAEs were trained on a text: it was held out, it is training text, it is another text than theirs, or it is
not known."""
SEEN: dict[Seen, str] = {
    "held out": "held out when the SAEs were trained",
    "trained on": "training text of the SAEs",
    "another text": "not the text that the SAEs were trained on",
    "unknown": "whether the SAEs were trained on it is not known",
}


@dataclass(frozen=True, eq=False)
class Corpus:
    """The token ids of a text, in two parts without overlap."""

    name: str
    train: Tokens
    val: Tokens
    tokenizer: str
    """Fingerprint of the tokenizer that produced the ids."""
    start: tuple[int, ...] = ()
    """Tokens that begin every prompt, such as a BOS."""
    source: str = ""
    """The address at which the text is found from any folder."""
    joined_by: str | None = None
    """What separates two documents; None if the text is one document or consists of prompts."""
    replaced: int = 0
    """Number of characters that are not in the tokenizer's vocabulary and became `?`."""
    skipped: int = 0
    """Number of rows without text, which were left out."""
    notes: tuple[str, ...] = ()
    """Further notes on the text for the user."""
    seen: Seen | None = None
    """For a text on which SAEs are evaluated: whether they were trained on it."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both parts. Two runs with the same fingerprint read the same text."""
        digest = hashlib.sha256(self.train.numpy().tobytes())
        digest.update(b"|val|")
        digest.update(self.val.numpy().tobytes())
        if self.val.dim() == 2:
            digest.update(f"|prompts of {self.val.shape[1]}|".encode())
        return digest.hexdigest()[:16]

    def check_tokenizer(self, lm: HasTokenizer) -> None:
        """Raise a UserError unless the ids belong to the model's tokenizer."""
        check_tokenizer(self.tokenizer, lm, self.name)

    @property
    def extremes(self) -> tuple[int, int]:
        """The smallest and the largest token id in the text and in the start of its prompts."""
        ends = [int(end) for part in (self.train, self.val) if part.numel() for end in part.aminmax()]
        return min([0, *self.start, *ends]), max([0, *self.start, *ends])

    @property
    def halves(self) -> tuple[Tokens, Tokens]:
        """The two halves of the validation part. On the first, training chooses the weights that it keeps and scoring
        ranks edges. Only the second is scored and measured, so no choice was made on it.
        """
        half = len(self.val) // 2
        return self.val[:half], self.val[half:]

    @property
    def to_measure(self) -> Tokens:
        """The text to measure SAEs on: of their own text the second half of the validation part, of any other text all
        of it.
        """
        return self.halves[1] if self.seen == "held out" else self.val

    @property
    def length(self) -> int | None:
        """Tokens of each prompt that was cut before, including its start; None for running text."""
        if self.val.dim() == 1:
            return None
        return self.val.shape[1] + (0 if _start_with(self.val, self.start) else len(self.start))

    def context(self, most: int) -> int:
        """The default number of tokens of a prompt: 128, or fewer if the model or the rows have fewer."""
        return min(most, 128, self.length or 128)

    def remarks(self, context: int) -> list[str]:
        """Notes for the user when prompts of `context` tokens are read."""
        found = list(self.notes)
        if self.skipped:
            found.append(f"{self.skipped:,} rows without text were left out")
        if self.replaced:
            found.append(f"{self.replaced:,} characters outside ASCII became '?'")
        if self.length is not None and (left := self._left_out(context)):
            found.append(f"the last {left} of every {self.val.shape[1]} tokens are left out: prompts have {context}")
        return [f"{self.name}: {remark}" for remark in found]

    def _left_out(self, context: int) -> int:
        assert self.length is not None
        return (self.length - len(self.start)) % max(1, context - len(self.start))

    def describe(self) -> dict[str, Any]:
        """The description of the text in a result file."""
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


def windows(tokens: Tokens, context: int, name: str = "text", start: tuple[int, ...] = ()) -> Int[Tensor, "n context"]:
    """Cut tokens into consecutive prompts that do not overlap. A remainder is left out.

    Every prompt begins with the tokens in `start`, followed by text up to `context` tokens. Prompts that were cut
    before are cut further, each on its own. If they already begin with `start`, it is not added again.

    Raises:
        UserError: the text, or a prompt that was cut before, is shorter than one context; or `start` leaves no room for
            text in the context.
    """
    own = context - len(start)
    if own < 1:
        raise UserError(
            f"{name}: prompts of {context} tokens, and every one begins with {len(start)} that the tokenizer puts in "
            "front of a text; raise the context"
        )
    if tokens.dim() == 2:
        tokens = tokens[:, len(start) :] if _start_with(tokens, start) else tokens
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
    return torch.cat([rows.new_tensor(start).expand(rows.shape[0], -1), rows], 1) if start else rows


def check_tokenizer(fingerprint: str, lm: HasTokenizer, name: str) -> None:
    """Raise a UserError unless this fingerprint, of the tokenizer that produced a text's ids, is that of the model's
    tokenizer.
    """
    if fingerprint != lm.tokenizer.fingerprint:
        raise UserError(
            f"{name}: its token ids were made by another tokenizer than that of {lm.name}; "
            f"load the text for this model, load_corpus({name!r}, lm)"
        )


def prompts_fingerprint(prompts: Int[Tensor, "n context"]) -> str:
    """SHA-256 over prompts. Two measurements with the same value used the same tokens."""
    return hashlib.sha256(prompts.long().cpu().numpy().tobytes()).hexdigest()[:16]


def _start_with(rows: Tokens, start: tuple[int, ...]) -> bool:
    return bool((rows[:, : len(start)] == rows.new_tensor(start)).all())
