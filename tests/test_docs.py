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
