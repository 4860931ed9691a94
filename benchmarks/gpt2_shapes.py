"""`python -m benchmarks.gpt2_shapes`: an FF block at GPT-2-small shapes, 24,576 latents a side, all 6.04e8 edges.

A GPT-2 with seeded weights and SAEs whose latents are directions of its activations (k = 32): nobody's numbers, but the
real amount of work. Prints seconds and peak memory; takes the better part of an hour on two cores. A Staircase
pair has `--latents 24576 49152`.
"""

import argparse
import resource
import time
from collections.abc import Sequence

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.__main__ import data_sae
from scalar_sae.console import say
from scalar_sae.lm.model import LanguageModel
from scalar_sae.malloc import keep_freed_memory
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.score import score
from scalar_sae.scoring.texts import Texts
from scalar_sae.sites import Block


def gpt2_pair(latents: Sequence[int], device: str = "cpu", n_layers: int = 12) -> tuple[Pair, torch.Tensor]:
    """A pair of an FF block in the middle, and random tokens to rank and score on: 128 prompts, and 128 more."""
    torch.manual_seed(0)
    config = GPT2Config(use_cache=False, bos_token_id=None, eos_token_id=None, n_layer=n_layers)
    lm = LanguageModel(GPT2LMHeadModel(config).to(device), "seeded")
    block = Block.parse(f"ff_block.{(n_layers - 1) // 2}")
    tokens = torch.randint(lm.d_vocab, (max(latents) // 128 + 257, 128))
    acts = lm.activations(tokens[256:].to(device), [block.up, block.down])
    ends = zip((block.up, block.down), latents, strict=True)
    return Pair(lm, block, *(data_sae(acts[site], d_sae, 32, 0) for site, d_sae in ends)), tokens[:256]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--rank-prompts", type=int, default=5)
    parser.add_argument("--latents", type=int, nargs=2, default=(24_576, 24_576), help="upstream and downstream")
    parser.add_argument("--edges", default="full")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    pair, tokens = gpt2_pair(given.latents)
    texts = Texts(tokens[: given.rank_prompts], tokens[128 : 128 + given.prompts], {"text": "random tokens"})
    sizes = {"rank_prompts": given.rank_prompts, "prompts": given.prompts, "context": 128}
    config = ScoreConfig(ranking="leave_one_out", edges=given.edges, memory=8, **sizes)
    start = time.perf_counter()
    record = score(pair, texts, config, method="data")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(
        f"{pair.n_edges:,} edges, {len(record.edges)} counts, {given.prompts} prompts: "
        f"{time.perf_counter() - start:.0f} s, peak {peak:.1f} GiB; KL(full circuit || n) "
        + " ".join(f"{value:.2e}" for value in record.kl_circuit[::8])
    )


if __name__ == "__main__":
    main()
