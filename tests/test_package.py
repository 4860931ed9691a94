"""What the package says about itself: the versions that it declares, its public names, and how little it imports."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import scalar_sae

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch", "transformers", "tokenizers", "numpy", "scipy", "pandas", "pyarrow", "datasets", "huggingface_hub",
    "jinja2", "jaxtyping",
}  # fmt: skip
HELP = """
import contextlib, io, sys
from typer.main import get_group
from scalar_sae.cli import app, main
verbs = get_group(app).commands
assert {"quickstart", "train-lm", "score", "ls"} <= set(verbs)
for arguments in ([], *([verb] for verb in verbs)):
    sys.argv = ["scalar", *arguments, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main()
    assert "Usage" in said.getvalue()
print(*sys.modules)
"""


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.sub(r"(\.0)*$", "", text).split("."))


def test_the_versions_that_are_tested_as_lowest_are_the_declared_ones():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [one for name, of in project["optional-dependencies"].items() if name != "dev" for one in of]
    lines = (ROOT / "requirements.lowest").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    for requirement in [*project["dependencies"], *extras]:
        name, lowest = requirement.split(">=")
        if name == "torch":
            assert f"torch=={tested['torch']}" in (ROOT / "requirements.lock").read_text().splitlines()
        else:
            assert version(tested[name.lower().replace("_", "-")]) == version(lowest), name


def test_every_public_name_is_listed_and_can_be_imported():
    assert set(dir(scalar_sae)) == set(scalar_sae.__all__)
    assert all(getattr(scalar_sae, name) is not None for name in scalar_sae.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        scalar_sae.nothing  # noqa: B018


@pytest.mark.parametrize("code", ["import sys, scalar_sae; print(*sys.modules)", HELP], ids=["import", "help"])
def test_no_large_library_is_imported_before_it_is_needed(code: str):
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "NO_COLOR": "1"}
    )
    assert "scalar_sae" in said.stdout.split()
    assert HEAVY.isdisjoint(said.stdout.split())
