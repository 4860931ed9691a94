"""Imports run one way, and the picture in the documentation is that of the code."""

import importlib.util
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def make() -> ModuleType:
    path = Path(__file__).parents[1] / "docs" / "make_architecture.py"
    spec = importlib.util.spec_from_file_location("make_architecture", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_module_imports_one_that_imports_it(make: ModuleType):
    imports = make.imports()
    assert "scalar_sae.scoring.pair" in imports["scalar_sae.scoring.score"]  # they are read
    TopologicalSorter(imports).prepare()  # raises CycleError


def test_the_picture_is_that_of_the_code(make: ModuleType):
    text = make.PAGE.read_text(encoding="utf-8")
    assert "--> scoring" in text
    assert make.page(text) == text, "docs/architecture.md is old: python docs/make_architecture.py"
