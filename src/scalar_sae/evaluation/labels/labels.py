"""Labels of tokens for absorption and probes: labels that a text itself provides, for character models.

    task = characters(tokens)       # tokens, the labelled rows, the labels of those rows by name

Most labels have a parent: a vowel is a letter, a letter is not a space, indentation is space, and a word is a keyword
or an identifier. `spelling.py` has the labels for models whose tokens are words.
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
"""Classes of single characters, by name."""
PARENTS = {"letter": "not_space", "vowel": "letter", "upper": "letter", "digit": "not_space", "bracket": "not_space",
           "indentation": "space", "keyword": "word", "identifier": "word"}  # fmt: skip
"""From child to parent: wherever the child is true, so is the parent."""
CLASSES = ("space", "letter", "digit", "bracket")
"""Labels of which a token has at most one."""
CROSSED = (("vowel", "upper"), ("upper", "vowel"), ("vowel", "keyword"), ("keyword", "vowel"))
"""Pairs of a wanted and a spurious label that do not imply each other."""
ROWS = 8192
"""Maximum number of tokens to which the probe of each label is fitted."""
FEWEST = 10
"""Minimum number of rows with a label, and without it, in each half."""

_WORD = re.compile(r"[A-Za-z_]\w*")
_INDENTATION = re.compile(r"(?<=\n)[ \t]+")


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled tokens of a text, and the pairs of labels to compare."""

    name: TaskName
    tokens: Int[Tensor, "prompt token"]
    rows: Int[Tensor, " n"]
    """Flat indices into `tokens`. Even and odd rows are the two halves of every measure."""
    labels: dict[str, Bool[Tensor, " n"]]
    parents: tuple[tuple[str, str | None], ...]
    """For absorption: pairs of a parent and a child. A child of None means wherever the parent is present."""
    classes: tuple[str, ...]
    """Labels for TPP."""
    crossed: tuple[tuple[str, str], ...] = ()
    """For SCR: pairs of a wanted and a spurious label."""

    def usable(self) -> tuple["Task", list[str]]:
        """The task without labels that are too rare or too common in either half, and the names of the labels removed.

        Raises:
            UserError: no label is left.
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
    """The labels of ASCII prompts, for as many prompts as have `most` tokens. No prompt is in both halves.

    Raises:
        UserError: there are fewer than two prompts.
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
    """Labels of ASCII tokens: character classes, characters of words, Python keywords or identifiers, and indentation.

    A word that is cut off at a prompt's end is labelled as if it were complete.
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
