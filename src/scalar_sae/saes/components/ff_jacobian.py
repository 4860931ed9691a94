"""The Jacobian of a feed-forward layer between active latents before and after it: closed forms, k x k per token.

    J[i, j] = d u_down[j] / d z_up[i] = W_dec[i] · (d out / d in) · W_enc[:, j]

The slopes are taken at the model's own activation (arXiv 2502.18147 App. D; SCALAR App. D; for LayerNorm the SCALAR
authors' code). No d_model x d_model matrix is formed. In row vectors, the norm maps a direction v to

    v_h = (1/sigma) weight ⊙ (v - mean(v) - x_n (v · x_n) / d)       x_n the normalised activation before weight and
    bias

RMSNorm has no mean. DyT is elementwise: v_h = weight ⊙ alpha (1 - tanh²(alpha x)) ⊙ v. An MLP with slopes s maps v_h to
((v_h W_in) ⊙ s) W_out; a gated MLP has two such paths. A norm after the MLP acts in the same way as the first.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding, pad

from scalar_sae.kernels import linear
from scalar_sae.lm.feedforward import FeedForward
from scalar_sae.lm.norms import DyT, Norm
from scalar_sae.saes.activation import TopK
from scalar_sae.saes.components.sparse import Coded, top_k
from scalar_sae.saes.methods.base import Weights
from scalar_sae.saes.sae import SAE

CACHED = 2**19
"""On a CPU, number of gathered entries on either side of a product that are processed at once. A GPU takes a whole
batch.
"""


def ff_jacobian(
    ff: FeedForward,
    x: Float[Tensor, "batch d_model"],
    up: Coded,
    down: Coded,
    *,
    block: bool,
) -> Float[Tensor, "batch k_up k_down"]:
    """The Jacobian between the selected latents. Entries of inactive latents (activation 0) are 0.

    Args:
        ff: the layer's norm and MLP, frozen.
        x: the model's activation before the layer: at resid_mid if `block`, else at mlp_in.
        up: the code of the SAE before the layer; its W_dec is used.
        down: the code of the SAE after the layer; its W_enc is used.
        block: whether to differentiate through norm, MLP and skip connection (FF block) or the MLP alone (FF layer).
    """
    dyt = block and isinstance(ff.norm, DyT)
    J = _through_dyt(ff, x, up, down) if dyt else _through(ff, x, up, down, block=block)
    active = (up.acts > 0).unsqueeze(2) & (down.acts > 0).unsqueeze(1)
    return torch.where(active, J, 0.0)


def _through(ff: FeedForward, x: Float[Tensor, "batch d_model"], up: Coded, down: Coded, *, block: bool) -> Tensor:
    """The Jacobian through the MLP and, for a block, through the norm before it and the skip connection, in one
    product.

    For a block, the d_model directions of the skip connection are appended to the hidden units. Both sides of the
    product get additional rows that belong to single tokens. They give the terms that the norms subtract: the component
    of each upstream direction along x_n and the response of each downstream one to x_n, and the same for the norm after
    the MLP.
    """
    W_dec, W_enc, d = up.weights.W_dec, down.weights.W_enc, x.shape[1]
    norm, post = ff.norm if block and isinstance(ff.norm, Norm) else None, ff.post
    one = x.new_ones(len(x), 1)
    sigma, x_n = (one, x) if norm is None else norm.divided(x)
    inwards = W_dec if norm is None else _centred(norm, W_dec) * norm.weight
    h = x if norm is None else x_n * norm.weight + norm.bias
    behind, y_n = (one, x) if post is None else post.divided(ff.raw(h))
    outwards = W_enc.T if post is None else _centred(post, W_enc.T * post.weight)
    paths = _paths(ff, h)
    ups = torch.cat([*(linear(inwards, W) for W, _ in paths), *([W_dec] if block else [])], 1)
    downs = torch.cat([linear(outwards, ff.W_out.T)] * len(paths) + ([W_enc.T] if block else []), 1)
    slopes = torch.cat([*(slope / behind for _, slope in paths), *([sigma.expand_as(x)] if block else [])], 1)
    own_ups: list[Tensor] = []
    own_downs: list[Tensor] = []
    if norm is not None:
        own_ups.append(pad(torch.cat([linear(x_n * norm.weight, W) for W, _ in paths], 1), (0, d)))
        own_downs.append(pad(x_n / (d * sigma), (slopes.shape[1] - d, 0)))
    if post is not None:
        own_downs.append(pad(linear(y_n, ff.W_out.T).repeat(1, len(paths)), (0, d if block else 0)))
    K = _Sandwich.apply(*_with_own(ups, up.latents, own_ups), slopes, *_with_own(downs, down.latents, own_downs))
    k_up, k_down = up.latents.shape[1], down.latents.shape[1]
    moved = K[:, :, :k_down]
    if post is not None:
        token = torch.arange(len(x), device=x.device).unsqueeze(1)
        moved = moved - K[:, :, -1:] * _Sandwich.apply(y_n, token, torch.full_like(x, 1 / d), outwards, down.latents)
    if norm is not None:
        moved = moved[:, :k_up] - K[:, :k_up, k_down : k_down + 1] * moved[:, k_up:]
    return moved / sigma.unsqueeze(2)


def _centred(norm: Norm, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """Directions after a norm's centring: without their mean, if the norm subtracts it."""
    return rows - rows.mean(1, keepdim=True) if norm.centred else rows


def _with_own(
    rows: Float[Tensor, "d_sae d"], latents: Int[Tensor, "batch k"], own: list[Float[Tensor, "batch d"]]
) -> tuple[Float[Tensor, "n d"], Int[Tensor, "batch k_and_own"]]:
    """Append each token's own rows, and index the rows of each token's latents followed by its own."""
    if not own:
        return rows, latents
    n_tokens = len(latents)
    first = torch.arange(len(rows), len(rows) + n_tokens, device=rows.device).unsqueeze(1)
    places = [first + number * n_tokens for number in range(len(own))]
    return torch.cat([rows, *own]), torch.cat([latents, *places], 1)


def _through_dyt(ff: FeedForward, x: Float[Tensor, "batch d_model"], up: Coded, down: Coded) -> Tensor:
    """The Jacobian through DyT, which scales the directions of every token differently, the MLP and the skip
    connection.
    """
    assert isinstance(ff.norm, DyT)
    rows_in, W_enc = embedding(up.latents, up.weights.W_dec), down.weights.W_enc
    stretched = rows_in * ff.norm.slope(x).unsqueeze(1)
    hidden = torch.stack([(stretched @ W) * slope.unsqueeze(1) for W, slope in _paths(ff, ff.norm(x))]).sum(0)
    through = hidden @ embedding(down.latents, (ff.W_out @ W_enc).T).transpose(1, 2)
    return through + rows_in @ embedding(down.latents, W_enc.T).transpose(1, 2)


class _Sandwich(torch.autograd.Function):
    """A[a] diag(s) B[b]^T for every token, forward and backward.

    On a CPU it takes as many tokens at a time as fit in the cache, since the gathered rows of a whole batch would have
    k times the size of its hidden layers.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor, up: Tensor, slopes: Tensor, B: Tensor, down: Tensor) -> Tensor:
        ctx.save_for_backward(A, slopes, B, up, down)
        return torch.cat(
            [(embedding(a, A) * s.unsqueeze(1)) @ embedding(b, B).mT for s, a, b in _pieces(A, slopes, up, down)]
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        A, slopes, B, up, down = ctx.saved_tensors
        to_A, to_B = torch.zeros_like(A), torch.zeros_like(B)
        for s, a, b, to_J in _pieces(A, slopes, up, down, grads[0]):
            to_A.index_add_(0, a.flatten(), (to_J @ embedding(b, B)).mul_(s.unsqueeze(1)).flatten(0, 1))
            to_B.index_add_(0, b.flatten(), (to_J.mT @ embedding(a, A)).mul_(s.unsqueeze(1)).flatten(0, 1))
        return to_A, None, None, to_B, None


def _pieces(
    rows: Float[Tensor, "_n d"], slopes: Tensor, latents: Tensor, *more: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Split the slopes, the latents and more tensors into groups of tokens."""
    gathered = latents.numel() * rows.shape[1]
    n = max(1, min(len(slopes), gathered // CACHED)) if rows.device.type == "cpu" else 1
    return zip(*(each.chunk(n) for each in (slopes, latents, *more)), strict=True)


def jacobian_penalty(J: Float[Tensor, "batch k_up k_down"], d_model: int) -> Float[Tensor, ""]:
    """The term that lambda multiplies: (d_model / (k_up k_down)) times the mean over tokens of sum |J|.

    The Jacobian SAE paper adds lambda's term to squared errors averaged over d_model. Ours are summed, hence the factor
    d_model. The SCALAR authors sum |J| over the tokens of a batch: lambda = lambda_theirs * batch_tokens / d_model.
    """
    return d_model / (J.shape[1] * J.shape[2]) * J.abs().sum((1, 2)).mean()


@torch.no_grad()
def mean_jacobian(ff: FeedForward, ends: Sequence[tuple[SAE, Float[Tensor, "batch d_model"]]], *, block: bool) -> float:
    """Mean |J| over tokens and pairs of selected latents. This is the Jacobian SAE paper's unit: the penalty over
    d_model.

    Args:
        ff: the layer's norm and MLP.
        ends: the two TopK SAEs, each with the model's activations that it reads.
        block: as for `ff_jacobian`.
    """
    up, down = (_coded(sae, x) for sae, x in ends)
    return ff_jacobian(ff, ends[0][1], up, down, block=block).abs().mean().item()


def _coded(sae: SAE, x: Float[Tensor, "batch d_model"]) -> Coded:
    assert isinstance(sae.activation, TopK)
    return top_k(Weights(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec), x, sae.activation.k)


def _paths(ff: FeedForward, h: Float[Tensor, "batch d_model"]) -> list[tuple[Tensor, Tensor]]:
    """The MLP's input matrices, each with the slopes of the hidden units along it."""
    hidden = linear(h, ff.W_in, ff.b_in)
    if ff.W_gate is None:
        return [(ff.W_in, _slope(ff, hidden))]
    gate = h @ ff.W_gate + (0.0 if ff.b_gate is None else ff.b_gate)
    return [(ff.W_in, ff.act(gate)), (ff.W_gate, _slope(ff, gate) * hidden)]


def _slope(ff: FeedForward, z: Tensor) -> Tensor:
    """Derivative of the elementwise nonlinearity."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        handed = z.view_as(z)  # torch's operation counter (cost.py) cannot follow a module whose input is a leaf
        (slope,) = torch.autograd.grad(ff.act(handed).sum(), z)
    return slope
