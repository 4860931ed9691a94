"""The documentation: every public name has a page, and what the README shows is what the pages show."""

import runpy
from pathlib import Path

import pytest

import scalar_sae

ROOT = Path(__file__).parents[1]


def test_every_public_name_has_a_page_with_a_summary():
    pytest.importorskip("mkdocs")
    hooks = runpy.run_path(str(ROOT / "docs" / "mkdocs_hooks.py"))
    pages = hooks["api_pages"]()
    for name in set(scalar_sae.__all__) - {"__version__"}:
        value = getattr(scalar_sae, name)
        assert f"::: {value.__module__}.{value.__qualname__}\n" in pages[f"api/{name}.md"]
        assert f"[`{name}`]({name}.md) | {value.__doc__.partition(chr(10))[0]}" in pages["api/index.md"]


def test_the_readme_is_short_and_its_table_is_that_of_the_page_on_all_methods():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 90
    zoo = (ROOT / "docs" / "zoo.md").read_text()
    measured = dict(cells(zoo[zoo.index("**ff_block: geometric") : zoo.index("**ff_block: every block")]))
    names = {"BatchTopK": "batch_topk", "Staircase pair": "staircase-pair"}
    _, _, *shown = cells(readme[readme.index("| SAEs | faithful@80 | relative to TopK | floor (nats) |") :])
    assert 2 <= len(shown) <= 6
    for name, numbers in shown:
        assert numbers[:3] == measured[names.get(name, name.lower())][:3], name


def cells(text: str) -> list[tuple[str, list[str]]]:
    """The first cell of each row of a table and the others."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [(row[0], row[1:]) for row in rows]
