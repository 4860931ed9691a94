"""Training steps of one TopK SAE against SAELens, dictionary_learning and sparsify: the second part of `make bench`.

The same activations, width, k, batch, optimiser (Adam, one learning rate) and number of threads for all, in one run:
tokens a second (median step), the ratio to the fastest peer, and the FVU on other activations after the same steps.
Then the same with a tenth of the latents held dead and every auxiliary loss at work.
"""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from scalar_sae.lm.model import LanguageModel
from scalar_sae.malloc import keep_freed_memory
from scalar_sae.saes.methods.dictionary import SitePair
from scalar_sae.saes.methods.jacobian import JacobianConfig
from scalar_sae.saes.methods.topk import TopKConfig, TopKTrainee
from scalar_sae.sites import Site
from scalar_sae.training.config import TrainConfig
from scalar_sae.training.learner import OptimizedSAEs

THREADS = 2
LR = 1e-3
OURS = "scalar-sae"
DEAD_SHARE = 10
"""One latent in so many is held dead."""


class Shape(NamedTuple):
    """What is trained."""

    d_model: int
    d_sae: int
    k: int
    batch: int
    steps: int


SHAPES = (Shape(768, 12_288, 32, 1024, 14), Shape(64, 512, 10, 4096, 60))


class Peer(NamedTuple):
    """A trainer: a step on a batch, its reconstruction, and its count of tokens (or steps) since a latent fired."""

    step: Callable[[Tensor], object]
    reconstruct: Callable[[Tensor], Tensor]
    idle: Callable[[], Tensor]


def ours(shape: Shape, unit_norm: bool) -> Peer:
    """This package's trainer; with `unit_norm`, decoder rows are held at norm 1, as the peers do."""
    method = TopKConfig(
        sites=["resid_post.0"], k=shape.k, expansion=shape.d_sae // shape.d_model, unit_norm=unit_norm,
        auxk=1 / 32, median_bias=unit_norm, k_aux=shape.d_model // 2,
    )  # fmt: skip
    config = TrainConfig(
        saes=[method], tokens=10**9, batch_tokens=shape.batch, buffer_tokens=shape.batch, lr=LR, warmup_steps=0
    )
    site = Site.parse("resid_post.0")
    trainee = method.trainee(SitePair(site, site, shape.d_model), 0)
    assert isinstance(trainee, TopKTrainee)
    trainee.prepare({site: sparse_mixture(shape, shape.batch, 1)})
    learner, count = OptimizedSAEs(method, trainee, config), iter(range(10**9))

    def reconstruct(x: Tensor) -> Tensor:
        sae = trainee.sae(site)
        return sae.decode(sae.encode(x))

    return Peer(
        lambda x: learner.step({site: x}, next(count)), reconstruct, lambda: trainee.dead_latents.tokens_since_fired
    )


def sae_lens(shape: Shape, **options: Any) -> Peer:
    """SAELens' TopK."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=shape.d_model, d_sae=shape.d_sae, k=shape.k, **options))
    config = SAETrainerConfig(10**9, shape.batch, lr=LR, lr_end=LR)
    trainer: Any = SAETrainer(config, sae, iter(()))
    return Peer(trainer.step, lambda x: sae(x).to_dense(), lambda: trainer.n_forward_passes_since_fired)


def dictionary_learning(shape: Shape) -> Peer:
    """dictionary_learning's TopK."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer: Any = TopKTrainer(
        10**9, shape.d_model, shape.d_sae, shape.k, layer=0, lm_name="none", lr=LR, warmup_steps=0, seed=0,
        device="cpu",
    )  # fmt: skip
    count = iter(range(10**9))
    return Peer(lambda x: trainer.update(next(count), x), trainer.ae, lambda: trainer.num_tokens_since_fired)


def sparsify(shape: Shape, signum: bool) -> Peer:
    """sparsify's step as its trainer does it, with Adam or with its default optimiser."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD

    sae = SparseCoder(shape.d_model, SparseCoderConfig(num_latents=shape.d_sae, k=shape.k))
    sae.b_dec.data = sparse_mixture(shape, shape.batch, 1).mean(0)
    idle = torch.zeros(shape.d_sae, dtype=torch.long)
    if signum:
        rate = 5e-3 / (shape.d_sae / 2**14) ** 0.5
        optimizer: Any = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=rate), momentum=0.95)
        optimizer.train()
    else:
        optimizer = torch.optim.Adam(sae.parameters(), lr=LR)

    def step(x: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x, x, dead_mask=idle > 10_000_000, total_variance=(x - x.mean(0)).pow(2).sum())
        (out.fvu + out.auxk_loss / 32).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        fired = torch.zeros_like(idle, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        idle.add_(len(x)).masked_fill_(fired, 0)

    return Peer(step, lambda x: sae(x).sae_out, lambda: idle)


TRAINERS: dict[str, Callable[[Shape], Peer]] = {
    "scalar-sae": lambda shape: ours(shape, unit_norm=True),
    "scalar-sae, norms free (its default)": lambda shape: ours(shape, unit_norm=False),
    "sparsify, Adam": lambda shape: sparsify(shape, signum=False),
    "sparsify, signum (its default)": lambda shape: sparsify(shape, signum=True),
    "dictionary_learning": dictionary_learning,
    "SAELens, defaults": sae_lens,
    "SAELens, sparse": lambda shape: sae_lens(shape, use_sparse_activations=True, rescale_acts_by_decoder_norm=False),
}


def sparse_mixture(shape: Shape, n: int, seed: int) -> Tensor:
    """Activations with something to find: k of d_sae random directions with |N(0, 1)| coefficients, and noise."""
    directions = torch.randn(shape.d_sae, shape.d_model, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(seed)
    which = torch.randint(shape.d_sae, (n, shape.k), generator=g)
    amounts = torch.randn(n, shape.k, generator=g).abs() / shape.k**0.5
    clean = torch.nn.functional.embedding_bag(which, directions, per_sample_weights=amounts, mode="sum")
    return clean + 0.1 * torch.randn(clean.shape, generator=g) + 0.5


def trained(name: str, shape: Shape, dead: bool) -> tuple[float, float] | str:
    """Median seconds a step, and the FVU on other activations after the steps; or why not."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    if name.startswith(OURS):
        keep_freed_memory()  # as `scalar train` does
    try:
        peer, seconds = TRAINERS[name](shape), []
    except ImportError as error:
        return f"{name}: left out ({error}); `make bench` installs it"
    batches = sparse_mixture(shape, 4 * shape.batch, 1).split(shape.batch)
    for number in range(shape.steps):
        if dead:
            peer.tokens_since_fired()[::DEAD_SHARE] = 10**9
        start = time.perf_counter()
        peer.step(batches[number % len(batches)])
        seconds.append(time.perf_counter() - start)
    x = sparse_mixture(shape, 2048, 2)
    with torch.no_grad():
        missed = (x - peer.reconstruct(x)).square().sum() / (x - x.mean(0)).square().sum()
    return torch.tensor(seconds[2:]).median().item(), missed.item()


def table(shape: Shape, dead: bool) -> Table:
    """All trainers at one shape, each in a process of its own, with the allocator as it finds it."""
    results: dict[str, tuple[float, float]] = {}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        for name in TRAINERS:
            result = processes.submit(trained, name, shape, dead).result()
            if isinstance(result, str):
                Console().print(result)
            else:
                results[name] = result
    fastest = min((s for name, (s, _) in results.items() if not name.startswith(OURS)), default=None)
    size = f"{shape.d_model} x {shape.d_sae:,}, k = {shape.k}, batch {shape.batch:,}, {shape.steps} steps"
    rows = Table(title=f"{size}{', a tenth of the latents dead' if dead else ''}; {THREADS} threads")
    for column in ("trainer", "ms a step", "tokens a second", "against the fastest peer", "FVU"):
        rows.add_column(column, justify="left" if column == "trainer" else "right")
    for name, (s, fvu) in results.items():
        ratio = f"{fastest / s:.2f}" if fastest else "-"
        rows.add_row(name, f"{1000 * s:.1f}", f"{shape.batch / s:,.0f}", ratio, f"{fvu:.3f}")
    return rows


def jacobian_pairs(lm: LanguageModel, layer: int, shape: Shape, repeats: int) -> Table:
    """What a pair of Jacobian SAEs costs against a pair of TopK SAEs, step by step in turn."""
    torch.set_num_threads(THREADS)
    keep_freed_memory()
    rows = Table(title=f"{shape.d_model} x {shape.d_sae:,}, k = {shape.k}, batch {shape.batch:,}: a pair, ms a step")
    for column in ("around", "TopK", "Jacobian", "ratio", "Jacobian at all tokens", "ratio"):
        rows.add_column(column, justify="right")
    some = {"k": shape.k, "expansion": shape.d_sae // shape.d_model}
    for along, kinds in (("ff_blocks", ("resid_mid", "resid_post")), ("ff_layers", ("mlp_in", "mlp_out"))):
        ends = [Site(kind, layer) for kind in kinds]
        acts = {site: sparse_mixture(shape, shape.batch, seed) for seed, site in enumerate(ends)}
        pairs = [
            [OptimizedSAEs(method, one, TrainConfig(saes=[method], tokens=10**9, batch_tokens=shape.batch, lr=LR))
             for one in method.trainees(lm, 0) if one.sites[0] in ends]
            for method in (
                TopKConfig(sites=[str(site) for site in ends], **some),
                JacobianConfig(along=along, **some),
                JacobianConfig(along=along, share=1.0, **some),
            )
        ]  # fmt: skip
        seconds = torch.zeros(repeats, len(pairs))
        for step in range(repeats):
            for number, pair in enumerate(pairs):
                start = time.perf_counter()
                for learner in pair:
                    learner.step(acts, step)
                seconds[step, number] = time.perf_counter() - start
        ms = (1000 * seconds[2:].median(0).values).tolist()
        ratios = [f"{one / ms[0]:.1f}" for one in ms]
        rows.add_row(along, f"{ms[0]:,.0f}", f"{ms[1]:,.0f}", ratios[1], f"{ms[2]:,.0f}", ratios[2])
    return rows


def main() -> None:
    for shape in SHAPES:
        for dead in (False, True):
            Console(width=110).print(table(shape, dead))
    Console(width=110).print(jacobian_pairs(LanguageModel.load("python-stdlib"), 1, SHAPES[-1], 25))
    gpt = GPT2Config(n_layer=1, bos_token_id=None, eos_token_id=None)  # d_model 768, 3,072 hidden units
    lm = LanguageModel(GPT2LMHeadModel(gpt), "GPT-2's shapes, random")
    Console(width=110).print(jacobian_pairs(lm, 0, Shape(768, 12_288, 32, 4096, 0), 6))


if __name__ == "__main__":
    main()
