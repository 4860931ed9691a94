"""A training step of TopK and BatchTopK SAEs, beside the same step written plainly in PyTorch, in turn.

Plain PyTorch: a dense encoder, `topk` (of each token, or of the batch), a dense decoder, autograd, fused Adam, decoder
rows held at norm 1. In float32 and, as most trainers of SAEs do, with matrix products in TF32.
"""

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.gpu.section import Found, Where
from benchmarks.training import LR, Shape, sparse_mixture
from scalar_sae.saes.methods.dictionary import SitePair
from scalar_sae.saes.methods.registry import CONFIGS
from scalar_sae.sites import Site
from scalar_sae.training.config import TrainConfig
from scalar_sae.training.learner import OptimizedSAEs

SITE = Site.parse("resid_post.0")
SHAPES = (Shape(768, 24_576, 64, 4096, 12), Shape(4096, 65_536, 64, 4096, 8))
SMALL = (Shape(16, 64, 4, 64, 3),)
PRECISIONS = {"float32": "highest", "TF32": "high"}
"""In torch's words; a device without TF32 computes in float32."""
Step = Callable[[Tensor], object]


def run(where: Where) -> Iterator[Found]:
    """Milliseconds a step."""
    found: Found = {}
    for shape in SMALL if where.small else SHAPES:
        batches = [sparse_mixture(shape, shape.batch, seed).to(where.device) for seed in (1, 2)]
        for method, (name, made), precision in product(("topk", "batch_topk"), STEPS.items(), PRECISIONS):
            torch.set_float32_matmul_precision(PRECISIONS[precision])
            where.begin_memory()
            ms = milliseconds(where, made(method, shape, batches[0]), batches, shape.steps)
            what = f"{shape.d_model} x {shape.d_sae}, {method}, {name}, {precision}"
            found |= {f"{what} (ms)": ms, f"{what}, peak memory (GiB)": where.peak_gib()}
            yield found


def milliseconds(where: Where, step: Step, batches: list[Tensor], repeats: int) -> float:
    """Median time of a step; the first two warm up."""
    seconds: list[float] = []
    for number in range(repeats):
        start = where.now()
        step(batches[number % len(batches)])
        seconds.append(where.now() - start)
    return 1000 * torch.tensor(seconds[min(2, repeats - 1) :]).median().item()


def ours(method: str, shape: Shape, x: Tensor) -> Step:
    """This package's step."""
    options = {"sites": [str(SITE)], "k": shape.k, "expansion": shape.d_sae // shape.d_model}
    config = CONFIGS[method](**options, **({"unit_norm": True} if method == "topk" else {"auxk": 0.0}))
    trainee = config.trainee(SitePair(SITE, SITE, shape.d_model), 0).to(x.device)
    trainee.prepare({SITE: x})
    train = TrainConfig(saes=[config], tokens=10**9, batch_tokens=shape.batch, buffer_tokens=shape.batch, lr=LR)
    learner, count = OptimizedSAEs(config, trainee, train), iter(range(10**9))
    return lambda x: learner.step({SITE: x}, next(count))


def plain(method: str, shape: Shape, x: Tensor) -> Step:
    """The same step in PyTorch alone."""
    W_dec = normalize(torch.randn(shape.d_sae, shape.d_model, device=x.device), dim=1).requires_grad_()
    W_enc = W_dec.detach().T.clone().requires_grad_()
    b_enc, b_dec = (torch.zeros(n, device=x.device, requires_grad=True) for n in (shape.d_sae, shape.d_model))
    parameters = [W_enc, b_enc, W_dec, b_dec]
    optimizer = torch.optim.Adam(parameters, lr=LR, fused=x.device.type == "cuda")

    def step(x: Tensor) -> None:
        acts = torch.addmm(b_enc, x - b_dec, W_enc).relu()
        if method == "topk":
            best = acts.topk(shape.k, dim=1, sorted=False)
            code = torch.zeros_like(acts).scatter(1, best.indices, best.values)
        else:
            flat = acts.flatten()
            best = flat.topk(shape.k * len(x), sorted=False)
            code = torch.zeros_like(flat).scatter(0, best.indices, best.values).view_as(acts)
        loss = (torch.addmm(b_dec, code, W_dec) - x).square().sum(1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            W_dec.copy_(normalize(W_dec, dim=1))

    return step


STEPS = {"scalar-sae": ours, "plain PyTorch": plain}
