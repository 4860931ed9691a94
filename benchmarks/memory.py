"""`python -m benchmarks.memory`: the most memory that training was predicted to hold, against what the process took.

Methods of the zoo, on a random two-layer model, a process each, and each twice. *In use* is the peak of resident memory
with freed memory handed back at once, less what the process had after a small run of the same; it is held against the
forecast without what is kept though freed. *Taken* is the peak as `scalar train` runs (malloc.keep_freed_memory).
"""

import ctypes
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

from scalar_sae import malloc
from scalar_sae.corpora import Corpus, load_corpus
from scalar_sae.io import Events
from scalar_sae.lm.model import LanguageModel
from scalar_sae.malloc import keep_freed_memory, trim_malloc
from scalar_sae.tokenizer import Ascii
from scalar_sae.training.config import TrainConfig, read_preset
from scalar_sae.training.loop import train

SHAPES = {"toy": (64, 8, 4096), "middle": (256, 16, 2048), "large": (768, 16, 1024)}
"""Width, latents per dimension, tokens of a batch."""
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def resident(what: str) -> float:
    """This process's memory in MiB: `VmRSS` now, `VmHWM` at the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def run(method: dict[str, Any], shape: tuple[int, int, int], corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Train it; the event of its start."""
    width, expansion, batch = shape
    gpt = GPT2Config(
        vocab_size=128, n_positions=128, n_embd=width, n_layer=2, n_head=width // 64, use_cache=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    config = TrainConfig(
        saes=[{**method, "expansion": expansion}], tokens=12 * batch, batch_tokens=batch, buffer_tokens=8 * batch,
        validations=2,
    )  # fmt: skip
    folder.mkdir()
    log = folder / "events.jsonl"
    train(config, LanguageModel(GPT2LMHeadModel(gpt), "random"), corpus, folder, Events(log))
    return json.loads(log.read_text().splitlines()[0])


def measured(method: dict[str, Any], shape: tuple[int, int, int], keep: bool) -> tuple[float, float]:
    """MiB predicted and taken."""
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    else:
        malloc.keep_freed_memory = lambda: None  # training would keep it again after a validation
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("".join(chr(32 + (7 * i * i + i // 9) % 90) for i in range(1_000_000)))
        corpus = load_corpus(str(text), Ascii())
        corpus_bytes = corpus.train.nbytes + corpus.val.nbytes
        run(method, (64, 8, 256), corpus, Path(folder) / "small")
        trim_malloc()
        base = resident("VmRSS") - corpus_bytes / 2**20
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        start = run(method, shape, corpus, Path(folder) / "measured")
    parts = start["memory"]
    if not keep:
        del parts["kept though freed"]
    return sum(parts.values()) / 2**20, resident("VmHWM") - base


def main() -> None:
    """All methods at both shapes, or those named on the command line (`large topk`)."""
    for shape in [name for name in SHAPES if name in sys.argv] or SHAPES:
        width, expansion, batch = SHAPES[shape]
        table = Table(title=f"width {width}, {width * expansion:,} latents, batches of {batch:,}")
        for column in (
            "method",
            "predicted in use (MiB)",
            "in use",
            "predicted taken",
            "taken",
            "in use: ratio",
            "taken: ratio",
        ):
            table.add_column(column, justify="right")
        for method in read_preset("zoo")["train"]["saes"]:
            name = method.get("name", method["method"])
            method.pop("dead_tokens", None)  # longer than these runs
            if "sites" in method:
                method["sites"] = ["resid_mid.0"]
            if {*sys.argv[1:]} - {*SHAPES} and name not in sys.argv:
                continue
            found: list[tuple[float, float]] = []
            for keep in (False, True):
                with multiprocessing.get_context("spawn").Pool(1) as alone:
                    found.append(alone.apply(measured, (method, SHAPES[shape], keep)))
            table.add_row(name, *(f"{n:,.0f}" for two in found for n in two), *(f"{b / a:.2f}" for a, b in found))
        Console().print(table)


if __name__ == "__main__":
    main()
