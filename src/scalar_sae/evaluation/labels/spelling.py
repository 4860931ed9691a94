r"""The first-letter task of SAEBench (Chanin et al., arXiv 2409.14507; Karvonen et al., arXiv 2503.09532).

Words are the tokens of a vocabulary that consist of English letters, with or without a leading space. The label is
their first letter. A word is read at its own token, after examples that direct the model to spelling:

    "\n short has the first letter: S\n Apple has the first letter: A ... \n tooth"

SAEBench continues with " has the first letter:" and reads the word's token at position -6. No activation depends on
later tokens, so here the prompt ends with the word.
"""

import re
from itertools import chain
from string import ascii_lowercase

import torch

from scalar_sae.errors import UserError
from scalar_sae.evaluation.labels.labels import Task
from scalar_sae.lm.model import LanguageModel
from scalar_sae.tokenizer import Pretrained

EXAMPLES = 10
"""Number of spelled words before the word that is read."""
WORDS = 4096
"""Maximum number of words read."""

_WORD = re.compile(r" ?[A-Za-z]+")


def words_of(tokenizer: Pretrained) -> dict[int, str]:
    """The tokens that are words: English letters, optionally after a space, and not special."""
    pieces = enumerate(tokenizer.pieces(range(tokenizer.d_vocab)))
    return {token: piece for token, piece in pieces if _WORD.fullmatch(piece) and token not in tokenizer.special}


def first_letters(lm: LanguageModel, n_words: int = WORDS, seed: int = 0) -> Task:
    """Prompts that end with a word, with one label per letter. Words and examples are drawn at random without
    repetition.

    Args:
        lm: a model whose tokens are words.
        n_words: number of words to read; probes are fitted on half of them.
        seed: seed of the words and their examples.

    Raises:
        UserError: the model's tokens are characters, the vocabulary has too few words, or the context is too short for
            the prompt.
    """
    tokenizer = lm.tokenizer
    if not isinstance(tokenizer, Pretrained):
        raise UserError(f"{lm.name}: its tokens are characters and none is a word; take --labels characters")
    words = {token: word for token, word in words_of(tokenizer).items() if token < lm.d_vocab}
    if len(words) < 2 * EXAMPLES:
        raise UserError(f"{lm.name}: only {len(words)} tokens of its vocabulary are words")
    g = torch.Generator().manual_seed(seed)
    order = torch.tensor(list(words))[torch.randperm(len(words), generator=g)]
    chosen = order[:n_words].tolist()
    newline = _ids(tokenizer, "\n")
    answers = {letter: _ids(tokenizer, f" has the first letter: {letter.upper()}") for letter in ascii_lowercase}
    prompts: list[list[int]] = []
    for token in chosen:
        lines = [[*newline, example, *answers[_letter(words[example])]] for example in _examples(order, token, g)]
        prompts.append([*tokenizer.start, *chain(*lines), *newline, token])
    longest = max(map(len, prompts))
    if longest > lm.context:
        raise UserError(f"{lm.name} reads at most {lm.context} tokens; a spelling prompt has {longest}")
    padding = prompts[0][-1]
    tokens = torch.tensor([prompt + [padding] * (longest - len(prompt)) for prompt in prompts])
    rows = torch.tensor([number * longest + len(prompt) - 1 for number, prompt in enumerate(prompts)])
    initials = [_letter(words[token]) for token in chosen]
    labels = {letter: torch.tensor([initial == letter for initial in initials]) for letter in ascii_lowercase}
    return Task("first letters", tokens, rows, labels, tuple((letter, None) for letter in labels), tuple(labels))


def _examples(words: torch.Tensor, but: int, g: torch.Generator) -> list[int]:
    """Ten words other than the one that is read."""
    some = words[torch.randint(len(words), (4 * EXAMPLES,), generator=g)].tolist()
    return [word for word in dict.fromkeys(some) if word != but][:EXAMPLES]


def _letter(word: str) -> str:
    return word.strip()[0].lower()


def _ids(tokenizer: Pretrained, text: str) -> list[int]:
    return tokenizer.encode(text)[0].tolist()
