"""The versions of the software that a result was computed with."""

import subprocess
from pathlib import Path


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, with `+` if it has changes; None outside a checkout."""
    folder = Path(__file__).parent
    if not any((parent / ".git").exists() for parent in folder.parents):
        return None
    try:
        git = ["git", "-C", str(folder)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if dirty.strip() else "")


def versions() -> dict[str, str | None]:
    """The versions of the software that a result is computed with."""
    import platform

    import torch
    import transformers

    from scalar_sae._version import __version__

    return {
        "scalar_sae": __version__,
        "git": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
