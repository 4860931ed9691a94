"""Pages to browse the features of one SAE, from its feature tables: files that a browser opens without a server.

    page/index.html            the page, with page.css and page.js
    page/index.js              numbers of every latent, the texts of tokens
    page/data/N.js             examples, logits and edges of CHUNK latents, loaded when one of them is looked at

Scripts and not JSON, since a page from disk may load scripts but not read files.
"""

import json
from pathlib import Path
from typing import Any

from scalar_sae.io import atomic_write
from scalar_sae.locks import held
from scalar_sae.report.cards import Cards
from scalar_sae.report.environment import viewer
from scalar_sae.report.text import visible

CHUNK = 100
"""Latents in a file."""


def write_page(folder: Path, title: str) -> Path:
    """Write the page of an SAE beside its feature tables.

    Raises:
        UserError: there are no feature tables, or they are damaged.
    """
    cards = Cards.read(folder)
    index = {"title": visible(title), "chunk": CHUNK, **cards.index(), "vocabulary": cards.vocabulary}
    with held(folder, "page", wait=60.0), atomic_write(folder / "page") as temporary:
        (temporary / "data").mkdir(parents=True)
        for name, text in viewer("features").items():
            (temporary / name).write_text(text, encoding="utf-8")
        _write(temporary / "index.js", "index", index)
        for file, start in enumerate(range(0, cards.n_latents, CHUNK)):
            some = range(start, min(start + CHUNK, cards.n_latents))
            _write(temporary / "data" / f"{file}.js", "chunk", cards.of(some))
    return folder / "page" / "index.html"


def _write(path: Path, function: str, content: dict[Any, Any]) -> None:
    path.write_text(f"{function}({json.dumps(content, separators=(',', ':'), allow_nan=False)});\n", encoding="utf-8")
