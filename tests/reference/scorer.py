"""The obvious scorer: one masked pass per downstream latent that has an edge, per edge count, in plain PyTorch.

The yardstick for the benchmark's exactness and speed. Nothing here is clever; check it by eye.
"""

import torch

from scalar_sae.benchmark.pair import Pair


def pre_acts(pair: Pair, z: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """p(E) of one prompt: z [token, n_up], kept [n_up, n_down] -> [token, n_down]."""
    p = torch.zeros(z.shape[0], pair.down.d_sae)
    with_edge = kept.any(0).nonzero()[:, 0]
    for some in with_edge.split(128) if len(with_edge) else ():
        x = torch.stack([pair.up.decode(z * kept[:, j]) for j in some])
        p[:, some] = torch.stack([u[:, j] for u, j in zip(pair.down.pre_acts(pair.compute(x)), some, strict=True)], 1)
    return p


def leave_one_out(pair: Pair, z: torch.Tensor) -> torch.Tensor:
    """Squared change of each latent's activation, summed over tokens, when one edge is removed: [n_up, n_down]."""
    everything = torch.ones(pair.up.d_sae, pair.down.d_sae, dtype=torch.bool)
    p = pre_acts(pair, z, everything)
    before = pair.down.activation.select(p)
    change = torch.zeros(pair.up.d_sae, pair.down.d_sae)
    for i in (z > 0).any(0).nonzero()[:, 0]:
        kept = everything.clone()
        kept[i] = False
        without = pre_acts(pair, z, kept)
        for j in range(pair.down.d_sae):
            alone = p.clone()
            alone[:, j] = without[:, j]
            change[i, j] = (pair.down.activation.select(alone) - before)[:, j].square().sum()
    return change


def published_attribution(pair: Pair, z: torch.Tensor) -> torch.Tensor:
    """The authors' attribution of one prompt, by one backward pass per downstream latent: [n_up, n_down], squared."""
    total = torch.zeros(pair.up.d_sae, pair.down.d_sae)
    for j in range(pair.down.d_sae):
        gradient = torch.zeros_like(z)
        for alpha in torch.linspace(0, 1, 5):
            path = (alpha * z).requires_grad_()
            acts = pair.down.encode(pair.compute(pair.up.decode(path).unsqueeze(0)))
            gradient += torch.autograd.grad(acts[..., j].sum(), path)[0]
        total[:, j] = (z.norm(dim=-1, keepdim=True) / 5 * gradient).square().sum(0)
    return total


def log_probs(pair: Pair, p: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
    """Log-probabilities with the assembled pre-activations p [token, n_down] put in downstream."""
    x = pair.down.decode(pair.down.activation.select(p)).unsqueeze(0)
    return pair.lm.logits_from(pair.block.down, x, skip).squeeze(0).log_softmax(-1)
