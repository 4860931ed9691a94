"""`python -m benchmarks.features`: tables and page of one wide SAE on the shipped model, one thread.

The SAE's latents are directions of activations (k = 32): nobody's features, but the real amount of work. Prints seconds
of this process, which do not count what others do on the machine, and peak memory.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.__main__ import data_sae
from scalar_sae.corpora import load_corpus, windows
from scalar_sae.evaluation.features.features import read_features
from scalar_sae.lm.model import LanguageModel
from scalar_sae.malloc import keep_freed_memory
from scalar_sae.report.features import write_page
from scalar_sae.sites import Site

SITE = Site("resid_mid", 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--latents", type=int, default=24_576)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    lm = LanguageModel.load("python-stdlib")
    corpus = load_corpus("python-stdlib", lm)
    rows = windows(corpus.train, 128, corpus.name, corpus.start)
    acts = lm.activations(rows[-(given.latents // 128 + 1) :], [SITE])[SITE]
    sae = data_sae(acts, given.latents, 32, 0)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "sae"
        start = time.process_time()
        read_features(lm, SITE, sae, rows[: given.prompts], out)
        tables = time.process_time()
        write_page(out, "wide")
        page = time.process_time()
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{given.latents:,} latents, {128 * given.prompts:,} tokens: tables {tables - start:.0f} s, "
        f"page {page - tables:.0f} s, {size / 2**20:.0f} MiB on disk, peak {peak:.1f} GiB"
    )


if __name__ == "__main__":
    main()
