"""Draw the packages and who imports whom into docs/architecture.md: python docs/make_architecture.py.

An arrow leads from a package to one that imports it. Arrows that follow from others are left out. The modules beside
the packages are read from everywhere and are left out too, except those that hold packages together.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PAGE = Path(__file__).parent / "architecture.md"
SOURCE = Path(__file__).parents[1] / "src" / "scalar_sae"
BLOCK = re.compile(r"(<!-- made by make_architecture.py -->\n).*?(<!-- end -->)", re.DOTALL)
BESIDE = {"study"}
"""Modules that are drawn as packages are."""


def imports() -> dict[str, set[str]]:
    """Module -> the modules of this package that it imports, at once or in a function."""
    files = {"scalar_sae." + ".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in modules()}
    return {name: set(_imported(path, files)) - {name} for name, path in files.items()}


def modules() -> list[Path]:
    """Every file with code."""
    return sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def _imported(path: Path, files: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                for name in (f"{node.module}.{alias.name}", node.module, f"{node.module}.__init__"):
                    if name in files:
                        yield name
                        break


def packages() -> dict[str, set[str]]:
    """Package -> the packages that it imports, without those that it imports through another."""
    found: dict[str, set[str]] = {}
    for name, imported in imports().items():
        here = name.split(".")[1]
        if drawn(here):
            found.setdefault(here, set()).update(there for one in imported if drawn(there := one.split(".")[1]))
    direct = {name: imported - {name} for name, imported in found.items()}
    below: dict[str, set[str]] = {}
    for name in TopologicalSorter(direct).static_order():
        below[name] = direct[name].union(*(below[one] for one in direct[name]))
    return {
        name: {one for one in imported if not any(one in below[other] for other in imported)}
        for name, imported in direct.items()
    }


def drawn(name: str) -> bool:
    """Whether it is a package, or holds packages together."""
    return (SOURCE / name).is_dir() or name in BESIDE


def block() -> str:
    """The picture, and the packages from the lowest to the highest."""
    found = packages()
    arrows = [f"  {one} --> {name}" for name in found for one in sorted(found[name])]
    order = " → ".join(f"`{name}`" for name in TopologicalSorter(found).static_order())
    return "\n".join(["```mermaid", "flowchart LR", *sorted(arrows), "```", "", f"From the lowest up: {order}.", ""])


def page(text: str) -> str:
    """The page with the picture of today."""
    return BLOCK.sub(lambda found: found[1] + block() + found[2], text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
