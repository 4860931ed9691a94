"""Text from models, data sets and records as a page shows it: every character is seen, and none acts on the others."""

import re

MOST = 200
"""Characters of a token that are shown."""
MOST_IN_CHART = 60
"""Characters of a name in a chart."""
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters, marks that change the direction of writing or have no width, and halves of surrogate pairs. Line
breaks, tabs, and the joiners that emoji and many scripts are written with are not among them."""


def visible(text: str) -> str:
    """A text with symbols or code points in place of the characters that are not seen."""
    return _UNSEEN.sub(lambda found: _symbol(ord(found[0])), text)


def token_text(text: str) -> str:
    """A token's text in one line; of a long one the beginning, and how long it is."""
    shown = visible(text[:MOST]).replace("\n", "↵")
    return shown if len(text) <= MOST else f"{shown}… ({len(text):,} characters)"


def name_in_chart(text: str) -> str:
    """A name in one line; of a long one the beginning."""
    return visible(text[:MOST_IN_CHART]).replace("\n", "↵") + ("…" if len(text) > MOST_IN_CHART else "")


def _symbol(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"[U+{code:04X}]"
