"""The README of a published set of SAEs: what they are, how well they do, how they were made, how to load them."""

import html
import json
import re
from collections.abc import Iterable
from typing import Any

from scalar_sae.cautions import POOR, cautions_of
from scalar_sae.records.results import Results
from scalar_sae.records.sae_results import SaeFidelity
from scalar_sae.report.text import visible
from scalar_sae.saes.formats.detect import Located

_RECIPE_CHARACTERS = 4000
_CELL_CHARACTERS = 200
_CAUTION_CHARACTERS = 2000


def model_card(repository: str, located: Iterable[Located], results: Results | None) -> str:
    """The text of a repository's README.md.

    Args:
        repository: `owner/name` on the Hub.
        located: the SAEs in it.
        results: what was measured of them, if anything was.
    """
    measured = {(sae.method, sae.site): sae for sae in results.saes} if results else {}
    rows: list[list[str]] = []
    recipes: dict[str, dict[str, Any]] = {}
    for found, _, _ in located:
        sae, fidelity = found.sae, measured.get((found.group, found.reads))
        reads = f"{found.reads} → {found.writes}" if found.writes else found.reads
        rows.append([found.group, reads, f"{sae.d_model}", f"{sae.d_sae}", str(sae.activation), *_fidelity(fidelity)])
        recipes.setdefault(found.group, found.recipe)
    parts = [
        "---\nlibrary_name: scalar-sae\ntags:\n- sparse-autoencoder\n- mechanistic-interpretability\n- scalar-sae\n---",
        f"# {repository.partition('/')[2]}",
        "Sparse autoencoders, published with [scalar-sae](https://arxiv.org/abs/2511.07572).",
        "## How to load them",
        f'```python\nfrom scalar_sae import load_saes\nsaes = load_saes("hf://{repository}")\n```',
        "## SAEs",
        _table(["group", "site", "d_model", "d_sae", "activation", "L0", "FVU", "CE increase (nats)"], rows),
        *(_scores(results) if results and results.records else []),
        "## Recipe",
        *(f"{_plain(group)}:\n\n```json\n{_recipe(recipe)}\n```" for group, recipe in recipes.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _fidelity(fidelity: SaeFidelity | None) -> list[str]:
    if fidelity is None:
        return ["", "", ""]
    return [f"{fidelity.l0:.1f}", f"{fidelity.fvu:.3f}", f"{fidelity.ce_increase:.3f}"]


def _scores(results: Results) -> list[str]:
    records = [record for record in results.records if record.control is None]
    rows = [
        [
            record.block,
            record.method,
            record.ranking,
            _number(record.faithful_at["80"]),
            f"{record.unfaithful_area:.2f}",
            f"{record.floor.kl:.2f}",
            _number(record.edges_at["90"]) + (f" {POOR}" if record.poor_full_circuit else ""),
        ]
        for record in records
    ]
    header = ["block", "SAEs", "ranking", "faithful@80", "area", "floor (nats)", "edges@90"]
    against = [f"- {_plain(said, _CAUTION_CHARACTERS)}" for said in cautions_of(records)]
    parts = ["## SCALAR: how sparsely they interact (lower is better)", _table(header, rows), "\n".join(against)]
    return [part for part in parts if part]


def _number(edges: float | None) -> str:
    return "never" if edges is None else f"{edges:,.0f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str, most: int = _CELL_CHARACTERS) -> str:
    """Text that Markdown shows as it is, in one line."""
    shown = visible(text[:most]).replace("\n", " ")
    return re.sub(r"([\\`*\[\]|~!])", r"\\\1", html.escape(shown, quote=False))


def _recipe(recipe: dict[str, Any]) -> str:
    text = json.dumps(recipe, indent=1, default=str).replace("`", "\\u0060")
    return text if len(text) <= _RECIPE_CHARACTERS else text[:_RECIPE_CHARACTERS] + "\n..."
