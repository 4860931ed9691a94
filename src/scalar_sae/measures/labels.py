"""Labels that text carries by itself: booleans a token, for absorption and probes on character models.

    labels = character_labels(tokens)         # name -> [prompt, token]

Each is a parent of some other: a vowel is a letter, a letter is not a space, a keyword is a word.
"""

import keyword
import re
from collections.abc import Callable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from scalar_sae.tokenizer import Ascii

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
           "keyword": "word"}  # fmt: skip
"""Child -> parent: wherever the child is true, so is the parent."""

_WORD = re.compile(r"[A-Za-z_]\w*")
_INDENTATION = re.compile(r"(?<=\n)[ \t]+")


def character_labels(tokens: Int[Tensor, "prompt token"]) -> dict[str, Bool[Tensor, "prompt token"]]:
    """Labels of ASCII tokens: character classes, words and Python keywords (their characters), indentation.

    A word that a prompt's end cuts off is labelled as it stands.
    """
    tables = {name: torch.tensor([test(chr(i)) for i in range(Ascii().d_vocab)]) for name, test in CHARACTERS.items()}
    found = {name: table[tokens] for name, table in tables.items()}
    for name in ("word", "keyword", "indentation"):
        found[name] = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, prompt in enumerate(tokens.tolist()):
        text = Ascii().decode(prompt)
        for match in _WORD.finditer(text):
            found["word"][row, match.start() : match.end()] = True
            found["keyword"][row, match.start() : match.end()] = keyword.iskeyword(match[0])
        for match in _INDENTATION.finditer(text):
            found["indentation"][row, match.start() : match.end()] = True
    return found
