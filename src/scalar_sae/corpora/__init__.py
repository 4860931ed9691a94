"""Text to token ids, in a training and a validation part without overlap, with a fingerprint; see docs/text.md.

    corpus = load_corpus("stories.jsonl#body", lm)
    corpus.train, corpus.val                          # token ids of lm's own tokenizer
    windows(corpus.val, 128, start=corpus.start)      # [n, 128] prompts that do not overlap

Each file here is one step: address, files, then rows, ids or texts, join, corpus. `load` runs the steps in order.
"""

from scalar_sae.corpora.address import NAMES, Address, absolute
from scalar_sae.corpora.corpus import SEEN, Corpus, Seen, Tokens, check_tokenizer, prompts_fingerprint, windows
from scalar_sae.corpora.load import (
    HELD_OUT,
    load_again,
    load_corpus,
    load_held_out,
    load_texts,
    to_evaluate_on,
    tokenized,
)
from scalar_sae.corpora.passages import Sketch, share_in, sketch
from scalar_sae.corpora.texts import VAL_SHARE, Texts

__all__ = [
    "HELD_OUT",
    "NAMES",
    "SEEN",
    "VAL_SHARE",
    "Address",
    "Corpus",
    "Seen",
    "Sketch",
    "Texts",
    "Tokens",
    "absolute",
    "check_tokenizer",
    "load_again",
    "load_corpus",
    "load_held_out",
    "load_texts",
    "prompts_fingerprint",
    "share_in",
    "sketch",
    "to_evaluate_on",
    "tokenized",
    "windows",
]
