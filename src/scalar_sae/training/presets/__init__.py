"""The studies that ship with the package, a YAML file each; `scalar train --help` lists them."""

from importlib.resources import files
from pathlib import Path


def names() -> list[str]:
    """Names of the presets."""
    return sorted(Path(entry.name).stem for entry in files(__name__).iterdir() if entry.name.endswith(".yaml"))


def text(name: str) -> str:
    """What a preset's file says."""
    return (files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
