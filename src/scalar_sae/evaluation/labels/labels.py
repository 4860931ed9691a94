"""Labels of tokens, for absorption and probes: what text carries by itself, on character models.

    task = characters(tokens)       # tokens, the rows to look at, labels of those rows by name

Most labels have a parent: a vowel is a letter, a letter is not a space, indentation is space, a word is a keyword or
an identifier. `spelling.py` has the labels of models with a tokenizer of words.
"""

import keyword
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.evaluation.labels.probes import Label
from scalar_sae.tokenizer import Ascii

TaskName = Literal["characters", "first letters"]

CHARACTERS: dict[str, Callable[[str], bool]] = {
    "space": str.isspace,
    "not_space": lambda c: not c.isspace(),
    "letter": str.isalpha,
    "vowel": lambda c: c.lower() in "aeiou" and c.isalpha(),
    "upper": str.isupper,
    "digit": str.isdigit,
    "bracket": lambda c: c in "()[]{}",
}
"""Classes of one character, by name."""
PARENTS = {"letter": "not_space", "vowel": "letter", "upper": "letter", "digit": "not_space", "bracket": "not_space",
           "indentation": "space", "keyword": "word", "identifier": "word"}  # fmt: skip
"""Child -> parent: wherever the child is true, so is the parent."""
CLASSES = ("space", "letter", "digit", "bracket")
"""Labels of which a token has one at most."""
CROSSED = (("vowel", "upper"), ("upper", "vowel"), ("vowel", "keyword"), ("keyword", "vowel"))
"""Pairs of labels that do not imply each other: one that is wanted, one that is spurious."""
ROWS = 8192
"""Most tokens that are looked at: a probe a label is fitted to them."""
FEWEST = 10
"""Fewest rows of either half with a label, and without, for it to be looked at."""

_WORD = re.compile(r"[A-Za-z_]\w*")
_INDENTATION = re.compile(r"(?<=\n)[ \t]+")


@dataclass(frozen=True, eq=False)
class Task:
    """Places in a text with labels, and which labels to compare with which."""

    name: TaskName
    tokens: Int[Tensor, "prompt token"]
    rows: Int[Tensor, " n"]
    """Places in `tokens`, counted through; even and odd ones are the two halves of every measure."""
    labels: dict[str, Bool[Tensor, " n"]]
    parents: tuple[tuple[str, str | None], ...]
    """Absorption: parent and child; None: wherever the parent is."""
    classes: tuple[str, ...]
    """TPP."""
    crossed: tuple[tuple[str, str], ...] = ()
    """SCR: wanted and spurious."""

    def usable(self) -> tuple["Task", list[str]]:
        """The task without the labels that are too rare, or too common, in either half; and their names.

        Raises:
            UserError: none is left.
        """
        kept = {name: label for name, label in self.labels.items() if _can_be_learned(label)}
        missing = [name for name in self.labels if name not in kept]
        if not kept:
            raise UserError(
                f"{self.name}: none of the labels ({', '.join(self.labels)}) occurs {FEWEST} times in both halves of "
                f"the {len(self.rows)} tokens looked at; measure on more text, or on text that has them"
            )
        return replace(
            self,
            labels=kept,
            parents=tuple(pair for pair in self.parents if all(name is None or name in kept for name in pair)),
            classes=tuple(name for name in self.classes if name in kept),
            crossed=tuple(pair for pair in self.crossed if all(name in kept for name in pair)),
        ), missing


def _can_be_learned(label: Label) -> bool:
    halves = label[::2], label[1::2]
    return all(FEWEST <= half.sum() <= len(half) - FEWEST for half in halves)


def characters(tokens: Int[Tensor, "prompt token"], most: int = ROWS) -> Task:
    """The labels of ASCII prompts, as many prompts as have `most` tokens; no prompt is in both halves.

    Raises:
        UserError: fewer than two prompts.
    """
    half = min(len(tokens), max(2, most // tokens.shape[1])) // 2
    if half == 0:
        raise UserError("labels need two prompts or more: one half to fit probes on, one to try them on")
    tokens = tokens[:: len(tokens) // (2 * half)][: 2 * half]
    rows = torch.arange(tokens.numel()).view(2, -1).T.flatten()
    labels = {name: label.flatten()[rows] for name, label in character_labels(tokens).items()}
    parents = tuple((parent, child) for child, parent in PARENTS.items())
    return Task("characters", tokens, rows, labels, parents, CLASSES, CROSSED)


def character_labels(tokens: Int[Tensor, "prompt token"]) -> dict[str, Bool[Tensor, "prompt token"]]:
    """Labels of ASCII tokens: character classes, words, Python keywords or identifiers (their characters), indentation.

    A word that a prompt's end cuts off is labelled as it stands.
    """
    tables = {name: torch.tensor([test(chr(i)) for i in range(Ascii().d_vocab)]) for name, test in CHARACTERS.items()}
    found = {name: table[tokens] for name, table in tables.items()}
    for name in ("word", "keyword", "identifier", "indentation"):
        found[name] = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, prompt in enumerate(tokens.tolist()):
        text = Ascii().decode(prompt)
        for match in _WORD.finditer(text):
            for name in ("word", "keyword" if keyword.iskeyword(match[0]) else "identifier"):
                found[name][row, match.start() : match.end()] = True
        for match in _INDENTATION.finditer(text):
            found["indentation"][row, match.start() : match.end()] = True
    return found
