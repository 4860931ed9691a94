"""Execute the notebooks of docs/notebooks/ and store their outputs: python docs/make_notebooks.py [NAME ...]

They run one after the other in an empty folder. The first one trains the SAEs that the others use.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent / "notebooks"
NAMES = ("first_score", "others_saes", "circuit_by_hand")


def execute(name: str, place: Path) -> None:
    """Execute a notebook in a folder and write it back."""
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, 4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(place)}}, record_timing=False)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    client.execute(env={**os.environ, "PATH": programs})
    nbformat.write(notebook, path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or NAMES:
            execute(name, Path(folder))
