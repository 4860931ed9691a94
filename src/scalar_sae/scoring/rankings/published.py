"""What the SCALAR authors' code does differently: each difference is named here, and none of it is used elsewhere.

- `attribution`: gradient times the norm of the whole latent vector, both end points included, summed over target
  positions before squaring. Ours: base.py.
- `select`: TopK of the assembled vector without ReLU, so a negative pre-activation survives where fewer than k are
  positive. Ours: ReLU, then TopK.
- `full_circuit`: at an FF block only the norm's input is the reconstruction, at a transformer block nothing is.
  Ours: down.encode(F(up.decode(z))) everywhere.
- `EPSILON`: added to the probabilities inside the logarithm of the KL divergence. Ours: log-probabilities.
- The last point, n = N, is not a sub-circuit but `full_circuit`, which is also the reference of `pure`. Ours: a
  sub-circuit like the others.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.saes.activation import TopK
from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.scoring.rankings.base import EdgewiseRanking
from scalar_sae.scoring.rankings.effects import BATCH_BYTES

STEPS = 5
EPSILON = 1e-8
GRADIENT_BYTES = 2**28
ATTRIBUTED_BYTES = 2**27


def attribution(
    pair: Pair, prompt: Prompt, columns: slice, total: Float[Tensor, "n_up n_col"], generator: torch.Generator
) -> None:
    """The authors' attribution, as their code computes it (integrate_gradient; the paper's §3.4.1 names it IG).

        g_i(t; a) = d/dz_i(t) of the sum over target positions of F_j(a z), F_j after ReLU and TopK
        A_ij      = sqrt( mean over prompts and t of ( |z(t)|_2 / 5 * sum over a in {0, 1/4, .., 1} of g_i(t; a) )^2 )

    Their code takes the sum and not the mean: the same order. It multiplies by the norm of the whole latent
    vector, so latents that are never active are ranked too.
    """
    z = prompt.z
    norm = (z.norm(dim=-1) / STEPS).unsqueeze(-1)
    if pair.up.norm is not None:
        norm = norm * pair.up.norm.scale(prompt.x_up)
    width = max(1, GRADIENT_BYTES // (4 * len(z) * pair.up.d_model))
    some_targets = max(1, min(64, ATTRIBUTED_BYTES // (4 * z.numel())))
    for start in range(0, total.shape[1], width):
        some = slice(columns.start + start, min(columns.start + start + width, columns.stop))
        path_gradient = z.new_zeros(some.stop - some.start, len(z), pair.up.d_model)
        for alpha in torch.linspace(0, 1, STEPS, device=z.device):
            _add_gradients(pair, prompt, pair.reconstruct(alpha * z, prompt), some, path_gradient)
        for targets in path_gradient.abs().amax((1, 2)).nonzero()[:, 0].split(some_targets):
            attributed = (path_gradient[targets] @ pair.up.W_dec.T).mul_(norm)
            total[:, start + targets] += attributed.square_().sum(1).double().T


def _add_gradients(
    pair: Pair,
    prompt: Prompt,
    x: Float[Tensor, "token d_model"],
    columns: slice,
    path_gradient: Float[Tensor, "n_col token d_model"],
) -> None:
    """Add to `path_gradient[j]` the gradient of F_j, summed over target positions, with respect to x.

    F_j is selected somewhere for only a few j; the others' gradients are zero. Where tokens do not interact one
    backward pass serves a different j at every token.
    """
    with torch.no_grad():
        selected = pair.down.activation.select(pair.pre_acts(x.unsqueeze(0), prompt))[0, :, columns] > 0
    if pair.block.mixes_tokens:
        batch = max(1, BATCH_BYTES // (16 * x.numel()))
        targets = [(latent.unsqueeze(1).expand(-1, len(x)), selected[:, latent].T)
                   for latent in selected.any(0).nonzero()[:, 0].split(batch)]  # fmt: skip
    else:
        n_selected = max(1, int(selected.sum(1).max()))
        chosen, latent = selected.byte().topk(n_selected, dim=-1)
        targets = [(latent.T, chosen.T > 0)]
    for latent, chosen in targets:  # row, token
        if not chosen.any():
            continue
        rows = x.expand(len(latent), -1, -1).clone().requires_grad_()
        y = pair.down.normalize_input(pair.compute(rows, prompt.up_skip))
        directions = pair.down.W_enc[:, columns].T[latent]
        (gradient,) = torch.autograd.grad(torch.einsum("rtd,rtd,rt->", y, directions, chosen.to(y.dtype)), rows)
        if pair.block.mixes_tokens:
            path_gradient[latent[:, 0]] += gradient
        else:
            token = torch.arange(len(x), device=x.device).expand_as(latent)
            path_gradient.index_put_((latent[chosen], token[chosen]), gradient[chosen], accumulate=True)


def select(pair: Pair, pre_acts: Float[Tensor, "*batch n_down"]) -> Float[Tensor, "*batch n_down"]:
    """Their TopK; other activation rules are not in their code and stay what they are."""
    rule = pair.down.activation
    if not isinstance(rule, TopK):
        return rule.select(pre_acts)
    kth = pre_acts.topk(rule.k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    return torch.where(pre_acts >= kth, pre_acts, 0.0)


def full_circuit(pair: Pair, prompt: Prompt) -> Float[Tensor, "token n_down"]:
    """What their hooked forward pass leaves at the downstream site, encoded."""
    x_hat = pair.reconstruct(prompt.z, prompt).unsqueeze(0)
    if pair.block.kind == "ff_block":
        x = pair.lm.activations(prompt.tokens, [pair.block.up])[pair.block.up]  # the skip keeps the model's own
        y = x + pair.compute(x_hat, None) - x_hat
    elif pair.block.kind == "transformer_block":
        y = prompt.x_down
    else:
        y = pair.compute(x_hat, prompt.up_skip)
    return pair.down.encode(y)[0]


def kl(p: Float[Tensor, "one token d_vocab"], q: Float[Tensor, "batch token d_vocab"]) -> Float[Tensor, "batch token"]:
    """KL(p || q) in nats from log-probabilities, with their epsilon."""
    return (p.exp() * ((p.exp() + EPSILON) / (q.exp() + EPSILON)).log()).sum(-1)


PUBLISHED = EdgewiseRanking(
    "published",
    "the SCALAR authors' attribution: gradients along a path in steps of equal arc length",
    rule=attribution,
)
