"""`python -m benchmarks.before SRC`: this source against another, on a real model.

    git worktree add ../before 270f6e9
    make smollm2
    python -m benchmarks.before ../before/src

The model is SmolLM2 135M. SAEs of 4,608 latents (k = 32) stand at both ends of an FF block and of a transformer block
of layer 8. Their latents are directions of activations, so that both sources have the same SAEs. The cases are
fidelity, one score of each block, and thirty training steps. Each case runs in a process of its own, first with the
other source and then with this one. CPU seconds do not count what other processes do. The results are compared too.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

D_SAE, K, CONTEXT = 4608, 32, 64
SITES = ("resid_pre.8", "resid_mid.8", "resid_post.8")
CASES = ("fidelity", "ff_block.8", "transformer_block.8", "train")
DTYPES = ("float32", "bfloat16")
MODEL = Path("runs/models/smollm2")


class Taken(NamedTuple):
    """What a case took, and the numbers that it found."""

    cpu: float
    peak_gib: float
    found: Any


def run(case: str, model: Path, dtype: str, threads: int) -> Taken:
    """Run a case with the source that is on the path."""
    from scalar_sae.lm.model import LanguageModel

    torch.set_num_threads(threads)
    memory = "scalar_sae.malloc" if find_spec("scalar_sae.malloc") else "scalar_sae.runs"  # its name in older sources
    import_module(memory).keep_freed_memory()
    lm = LanguageModel.load(model, dtype=getattr(torch, dtype))
    library = sorted(Path(os.__file__).parent.glob("*.py"))[:60]
    ids, _ = lm.tokenizer.encode(" ".join(path.read_text(errors="replace") for path in library))
    work = {"fidelity": fidelity, "train": train}.get(case, score)(lm, case, ids.long())
    start = time.process_time()
    found = work()
    return Taken(time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, found)


def fidelity(lm: Any, case: str, ids: torch.Tensor) -> Callable[[], Any]:
    """Six SAEs of two methods on 16 prompts of 128 tokens."""
    from scalar_sae.evaluation.fidelity.fidelity import fidelity
    from scalar_sae.sites import Site

    sites, tokens = [Site.parse(name) for name in SITES], ids[: 40 * 128].view(40, 128)
    acts = lm.activations(tokens[16:], sites)
    saes = {name: {site: data_sae(acts[site], seed) for site in sites} for seed, name in enumerate(("a", "b"))}

    def work() -> Any:
        found = fidelity(lm, saes, tokens[:16])
        return [[one.kl, one.ce_increase] for one in (*found.saes, *found.spliced)] + [one.fvu for one in found.saes]

    return work


def score(lm: Any, case: str, ids: torch.Tensor) -> Callable[[], Any]:
    """A pair ranked on some prompts and scored on others: on one of each where attention makes that long."""
    from scalar_sae.scoring.config import ScoreConfig
    from scalar_sae.scoring.pair import Pair
    from scalar_sae.scoring.score import score
    from scalar_sae.scoring.texts import Texts
    from scalar_sae.sites import Block

    block, tokens = Block.parse(case), ids[: 128 * CONTEXT].view(128, CONTEXT)
    acts = lm.activations(tokens[:96], [block.up, block.down])
    pair = Pair(lm, block, *(data_sae(acts[site], seed) for seed, site in enumerate((block.up, block.down))))
    n_ranked, n_scored = (1, 1) if block.mixes_tokens else (8, 4)
    texts = Texts(tokens[100 : 100 + n_ranked], tokens[120 : 120 + n_scored], {})
    config = ScoreConfig(rank_prompts=n_ranked, prompts=n_scored, context=CONTEXT, edges="coarse")

    def work() -> Any:
        record = score(pair, texts, config, method="data")
        return [record.kl_model, record.kl_circuit, record.floor.kl]

    return work


def train(lm: Any, case: str, ids: torch.Tensor) -> Callable[[], Any]:
    """Thirty steps of 1,024 tokens: three TopK and three BatchTopK SAEs, activations read on the way."""
    from scalar_sae.activations.stream import ActivationStream
    from scalar_sae.sites import Site
    from scalar_sae.training.config import TrainConfig
    from scalar_sae.training.learner import learners

    shape: dict[str, Any] = {"sites": list(SITES), "k": K, "expansion": 8}
    methods: list[Any] = [{"method": name} | shape for name in ("topk", "batch_topk")]
    config = TrainConfig(saes=methods, tokens=10**9, batch_tokens=1024, warmup_steps=5)
    group = learners(config, lm)
    stream = ActivationStream(lm, ids[: 400 * 128].view(400, 128), [Site.parse(name) for name in SITES], 10_240, 0)

    def work() -> Any:
        losses: list[float] = []
        for number, buffer in zip(range(3), stream.buffers(), strict=False):
            for step, row in enumerate(range(0, 10_240, 1024), 10 * number):
                if step == 0:
                    for learner in group:
                        learner.trainee.prepare(buffer)
                acts = {read: x[row : row + 1024] for read, x in buffer.items()}
                losses = [float(loss) for one in group for loss in one.step(acts, step).values()]
        return losses

    return work


def data_sae(x: torch.Tensor, seed: int) -> Any:
    """Latents are directions of the data: realistic sparsity without training."""
    from scalar_sae.saes.activation import TopK
    from scalar_sae.saes.sae import SAE

    rows = x.flatten(0, 1)
    mean = rows.mean(0)
    chosen = torch.randint(len(rows), (D_SAE,), generator=torch.Generator().manual_seed(seed))
    W_dec = torch.nn.functional.normalize(rows[chosen] - mean, dim=1)
    return SAE(W_dec.T.contiguous(), -mean @ W_dec.T, W_dec, mean, TopK(K))


def numbers(found: Any) -> Iterator[float]:
    """All numbers in nested lists."""
    for one in found if isinstance(found, list) else [found]:
        yield from numbers(one) if isinstance(one, list) else [float(one)]


def apart(a: Any, b: Any) -> float:
    """The largest difference of two results, relative to the larger of a number and a thousandth."""
    return max(abs(x - y) / max(abs(x), 1e-3) for x, y in zip(numbers(a), numbers(b), strict=True))


def in_a_process(source: Path, case: str, model: Path, dtype: str, threads: int) -> Taken:
    """A case with a source."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "taken.json"
        command = [sys.executable, __file__, "--run", case, dtype, str(into), "--model", str(model)]
        environment = {**os.environ, "PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": str(threads)}
        subprocess.run([*command, "--threads", str(threads)], env=environment, check=True, stderr=subprocess.DEVNULL)
        return Taken(*json.loads(into.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description="This source and another, on a real model.")
    parser.add_argument("before", type=Path, nargs="?", help="the other source: the src folder of a checkout")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        case, dtype, into = given.run
        Path(into).write_text(json.dumps(run(case, given.model, dtype, given.threads)))
        return
    from rich.console import Console
    from rich.table import Table

    now = Path(__file__).parents[1] / "src"
    table = Table(title=f"{given.model.name}, CPU seconds with {given.threads} threads, peak of memory in GiB")
    for column in ("case", "model in", "before", "now", "ratio", "GiB before", "GiB now", "largest difference"):
        table.add_column(column, justify="right")
    for case in given.cases.split(","):
        for dtype in DTYPES:
            old, new = (in_a_process(source, case, given.model, dtype, given.threads) for source in (given.before, now))
            sizes = f"{old.cpu:.1f}", f"{new.cpu:.1f}", f"{old.cpu / new.cpu:.1f}", f"{old.peak_gib:.1f}"
            table.add_row(case, dtype, *sizes, f"{new.peak_gib:.1f}", f"{apart(old.found, new.found):.0e}")
            Console(stderr=True).print(case, dtype, *sizes, highlight=False)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
