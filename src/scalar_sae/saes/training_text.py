"""What an SAE's files know of the text that it was trained on."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Integer
from torch import Tensor

from scalar_sae.console import percent
from scalar_sae.corpora import Sketch, share_in

MOST_KNOWN = 0.5
"""Share of its passages in the training text from which another text is training text. Code and other repetitive text
has up to a seventh of its passages in text of its kind."""


@dataclass(frozen=True, eq=False)
class TrainingText:
    """The training part of the text of an SAE."""

    fingerprint: str
    """`Corpus.fingerprint` of the whole text. Its validation part was held out."""
    passages: Sketch
    """A sample of the passages of its training part (corpora/passages.py)."""

    def share_of(self, tokens: Integer[Tensor, "*prompt token"]) -> float:
        """The share of the passages of some tokens that are in the training part; 0 if it is at most half, or if too
        few passages can be compared.
        """
        share = share_in(tokens, self.passages)
        return share if share is not None and share > MOST_KNOWN else 0.0


def largest_share(texts: Iterable[TrainingText], tokens: Integer[Tensor, "*prompt token"]) -> float:
    """The largest share that some tokens have in one of several training texts."""
    return max((text.share_of(tokens) for text in {text.fingerprint: text for text in texts}.values()), default=0.0)


def trained_text(name: str, share: float, remark: str = "") -> str:
    """The refusal of a text that SAEs were trained on; a share of 0 is not known."""
    what = f"{percent(share)} of its passages are in" if share else "it is in"
    return (
        f"{name}: {what} the text that the SAEs were trained on{remark}; give other text, or read it all the same with "
        "--allow-trained-text (allow_trained_text=True in Python)"
    )
