"""How important is an edge? One function a ranking: from ranking text to a score for every (up, down) edge.

| name        | score of edge (i, j)                                                                              |
|-------------|---------------------------------------------------------------------------------------------------|
| `ablation`  | root mean square over tokens of the exact change of latent j's activation, after selection, when  |
|             | the edge alone is removed and everything else is in place                                         |
| `published` | the SCALAR authors' arc-length path gradient (their code; see `published`)                        |
| `random`    | control: no information                                                                           |

`levels` turns scores into the order in which edges are kept.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from scalar_sae.benchmark.pair import Pair, Text
from scalar_sae.benchmark.subcircuits import LiveSlots
from scalar_sae.benchmark.tokenwise import ROWS_AT_ONCE
from scalar_sae.errors import UserError

Scores = Float[Tensor, "n_up n_down"]


def levels(scores: Scores, counts: Int[np.ndarray, " n_counts"], seed: int) -> UInt8[Tensor, "n_up n_down"]:
    """For every edge the index of the first count that keeps it, edges taken in descending order of score.

    Ties, and zeros among them, are ordered by a seeded permutation. 255 means that no count keeps the edge.

    Raises:
        UserError: a score is NaN.
    """
    assert len(counts) < 255
    if scores.isnan().any():
        up, down = (int(i) for i in scores.isnan().nonzero()[0])
        raise UserError(f"ranking: the score of edge ({up}, {down}) is NaN")
    shuffle = torch.randperm(scores.numel(), generator=torch.Generator().manual_seed(seed))
    order = shuffle[scores.flatten()[shuffle].argsort(descending=True, stable=True)]
    bounds = np.concatenate([[0], counts, [scores.numel()]])
    level = torch.empty(scores.numel(), dtype=torch.uint8)
    for index, (start, end) in enumerate(pairwise(bounds)):
        level[order[start:end]] = index if index < len(counts) else 255
    return level.view(scores.shape)


@torch.no_grad()
def ablation(pair: Pair, text: Text, done: Callable[[], None]) -> Scores:
    """Leave-one-out on what counts: exact, one changed pass per live upstream latent.

    At blocks with attention an edge is removed at every position of the prompt at once, as it is in a sub-circuit.
    """
    total = torch.zeros(pair.up.d_sae, pair.down.d_sae, dtype=torch.float64)
    for z in text.z:
        pre_acts = pair.down.pre_acts(pair.compute(pair.up.decode(z).unsqueeze(0))).squeeze(0)
        acts = pair.down.activation.select(pre_acts)
        changed = _without_one_in_prompt if pair.block.mixes_tokens else _without_one_at_token
        for latent, others in changed(pair, z):
            effect = (pair.down.activation.select_alone(others, pre_acts) - acts).double()
            if pair.block.mixes_tokens:  # a row per latent
                total.index_add_(0, latent, effect.square().sum(1))
            else:  # a row per slot, a latent per token
                total.index_add_(0, latent.flatten(), effect.square().flatten(0, 1))
        done()
    return (total / text.tokens.numel()).sqrt().float()


def _without_one_in_prompt(
    pair: Pair, z: Float[Tensor, "token n_up"]
) -> Iterable[tuple[Int[Tensor, " row"], Float[Tensor, "row token n_down"]]]:
    """For batches of latents live somewhere in the prompt: downstream pre-activations without each of them."""
    x = pair.up.decode(z)
    for latent in (z > 0).any(0).nonzero()[:, 0].split(max(1, ROWS_AT_ONCE // z.shape[0])):
        removed = z.T[latent].unsqueeze(-1) * pair.up.W_dec[latent].unsqueeze(1)
        yield latent, pair.down.pre_acts(pair.compute(x - removed))


def _without_one_at_token(
    pair: Pair, z: Float[Tensor, "token n_up"]
) -> Iterable[tuple[Int[Tensor, "slot token"], Float[Tensor, "slot token n_down"]]]:
    """The same where tokens do not interact: every slot's latent is removed at every token."""
    slots = LiveSlots.of(z)
    x = pair.up.decode(z).unsqueeze(1) - slots.contributions(pair)
    yield slots.latent.T, pair.down.pre_acts(pair.compute(x)).transpose(0, 1)


def published(pair: Pair, text: Text, done: Callable[[], None]) -> Scores:
    """The SCALAR authors' attribution, as their code computes it (integrate_gradient; the paper's §3.4.1 names it IG).

        g_i(t; a) = d/dz_i(t) of the sum over target positions of F_j(a z), F_j after ReLU and TopK
        A_ij      = sqrt( sum over prompts and t of ( |z(t)|_2 / 5 * sum over a in {0, 1/4, .., 1} of g_i(t; a) )^2 )

    It multiplies by the norm of the whole latent vector, so latents that are never active are ranked too.
    """
    total = torch.zeros(pair.down.d_sae, pair.up.d_sae, dtype=torch.float64)
    alphas = torch.linspace(0, 1, PUBLISHED_STEPS)
    for z in text.z:
        norm = z.norm(dim=-1) / PUBLISHED_STEPS
        path_gradient = torch.zeros(pair.down.d_sae, z.shape[0], pair.up.d_model)
        for alpha in alphas:
            _add_gradients(pair, pair.up.decode(alpha * z), path_gradient)
        for some in path_gradient.abs().amax((1, 2)).nonzero()[:, 0].split(64):
            attribution = norm.unsqueeze(-1) * (path_gradient[some] @ pair.up.W_dec.T)
            total[some] += attribution.square().sum(1).double()
        done()
    return total.T.sqrt().float().contiguous()


PUBLISHED_STEPS = 5


def _add_gradients(
    pair: Pair, x: Float[Tensor, "token d_model"], path_gradient: Float[Tensor, "n_down token d_model"]
) -> None:
    """Add to `path_gradient[j]` the gradient of F_j, summed over target positions, with respect to x.

    F_j is selected somewhere for only a few j; the others' gradients are zero. Where tokens do not interact one
    backward pass serves a different j at every token.
    """
    with torch.no_grad():
        selected = pair.down.encode(pair.compute(x.unsqueeze(0))).squeeze(0) > 0
    if pair.block.mixes_tokens:
        targets = [(latent.unsqueeze(1).expand(-1, x.shape[0]), selected[:, latent].T)
                   for latent in selected.any(0).nonzero()[:, 0].split(max(1, ROWS_AT_ONCE // x.shape[0]))]  # fmt: skip
    else:
        n_selected = max(1, int(selected.sum(1).max()))
        chosen, latent = selected.byte().topk(n_selected, dim=-1)
        targets = [(latent.T, chosen.T > 0)]
    for latent, chosen in targets:  # row, token
        rows = x.expand(latent.shape[0], -1, -1).clone().requires_grad_()
        y = pair.compute(rows)
        objective = torch.einsum("rtd,rtd,rt->", y, pair.down.W_enc.T[latent], chosen.to(y.dtype))
        (gradient,) = torch.autograd.grad(objective, rows)
        if pair.block.mixes_tokens:
            path_gradient[latent[:, 0]] += gradient
        else:
            token = torch.arange(x.shape[0]).expand_as(latent)
            path_gradient.index_put_((latent[chosen], token[chosen]), gradient[chosen], accumulate=True)


def random(pair: Pair, text: Text, done: Callable[[], None]) -> Scores:
    """Every edge ties with every other: the seeded permutation decides."""
    for _ in text.z:
        done()
    return torch.zeros(pair.up.d_sae, pair.down.d_sae)


RANKINGS: dict[str, Callable[[Pair, Text, Callable[[], None]], Scores]] = {
    "ablation": ablation,
    "published": published,
    "random": random,
}
