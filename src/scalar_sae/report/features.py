"""Pages to browse the features of one SAE, from its feature tables: files that a browser opens without a server.

    page/index.html            the page, with page.css and page.js
    page/index.js              numbers of every latent, the texts of tokens
    page/data/N.js             examples, logits and edges of CHUNK latents, loaded when one of them is looked at

Scripts and not JSON, since a page from disk may load scripts but not read files.
"""

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scalar_sae.evaluation.features.edges import SCHEMA
from scalar_sae.evaluation.features.judge import Judged, read_judged
from scalar_sae.evaluation.features.rules import LENGTHS
from scalar_sae.evaluation.features.tables import OCTAVES, read_examples, read_table
from scalar_sae.io import atomic_write
from scalar_sae.locks import held
from scalar_sae.report.environment import viewer
from scalar_sae.report.text import token_text, visible

CHUNK = 100
"""Latents in a file."""
_OF_A_LATENT = ("octaves", "rule_f1", "rule_accuracy", "rule_tokens", "promoted", "promoted_by", "suppressed",
                "suppressed_by")  # fmt: skip


def write_page(folder: Path, title: str) -> Path:
    """Write the page of an SAE beside its feature tables.

    Raises:
        UserError: there are no feature tables, or they are damaged.
    """
    latents = read_table(folder, "latents")
    contexts, vocabulary = read_examples(folder)
    edges = read_table(folder, "edges") if (folder / "edges.parquet").exists() else SCHEMA.empty_table()
    judged = read_judged(folder)
    index = {
        "title": visible(title),
        "chunk": CHUNK,
        "octaves": list(OCTAVES),
        "lengths": LENGTHS,
        "density": latents["density"].to_pylist(),
        "maximum": latents["maximum"].to_pylist(),
        "f1": [_number(scores[-1]) for scores in latents["rule_f1"].to_pylist()],
        "vocabulary": {token: token_text(text) for token, text in vocabulary.items()},
    }
    with held(folder, "page", wait=60.0), atomic_write(folder / "page") as temporary:
        (temporary / "data").mkdir(parents=True)
        for name, text in viewer("features").items():
            (temporary / name).write_text(text, encoding="utf-8")
        _write(temporary / "index.js", "index", index)
        chunks = zip(
            _chunks(latents, latents.num_rows),
            _chunks(_shown(contexts), latents.num_rows),
            _chunks(edges, latents.num_rows),
            strict=True,
        )
        for number, (rows, examples, links) in enumerate(chunks):
            some = {row["latent"]: _plain(row) | {"examples": [], "edges": [], "judged": []} for row in rows}
            mine = [_said(row) for row in judged if row.latent in some]
            for kind, more in (("examples", examples), ("edges", links), ("judged", mine)):
                for row in more:
                    some[row.pop("latent")][kind].append(row)
            _write(temporary / "data" / f"{number}.js", "chunk", some)
    return folder / "page" / "index.html"


def _said(row: Judged) -> dict[str, Any]:
    """What a judge said, with every character visible."""
    explanation = None if row.explanation is None else visible(row.explanation)
    return {**row.model_dump(), "explanation": explanation, "judge": {"model": visible(str(row.judge.get("model")))}}


def _shown(contexts: pa.Table) -> pa.Table:
    """What is shown of the contexts, activations to three digits."""
    table = contexts.filter(pc.field("kind") != "silent").drop_columns(["prompt"]).combine_chunks()
    acts = table["acts"].combine_chunks()
    digits = np.round(acts.values.to_numpy().astype(float), 3)
    return table.set_column(5, "acts", pa.ListArray.from_arrays(acts.offsets, digits))


def _chunks(table: pa.Table, n: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of CHUNK latents at a time, in their order."""
    table = table.take(pa.array(np.argsort(table["latent"].to_numpy(), kind="stable")))
    ends = np.searchsorted(table["latent"].to_numpy(), np.arange(0, n + CHUNK, CHUNK))
    for start, end in pairwise(ends):
        yield table.slice(start, end - start).to_pylist()


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A latent's lists, without what JSON lacks."""
    return {
        name: [_number(value) if isinstance(value, float) else value for value in row[name]] for name in _OF_A_LATENT
    }


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _write(path: Path, function: str, content: dict[Any, Any]) -> None:
    path.write_text(f"{function}({json.dumps(content, separators=(',', ':'), allow_nan=False)});\n", encoding="utf-8")
