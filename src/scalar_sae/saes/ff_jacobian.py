"""How the active latents before a feed-forward layer move those after it: closed forms, k x k a token.

    J[i, j] = d u_down[j] / d z_up[i] = W_dec[i] · (d out / d in) · W_enc[:, j]

with the slopes taken at the model's own activation (arXiv 2502.18147 App. D; SCALAR App. D, and for LayerNorm the
SCALAR authors' code). No d_model x d_model object is built. In row vectors, a direction v in front of the norm arrives
behind it as

    v_h = (1/sigma) weight ⊙ (v - mean(v) - x_n (v · x_n) / d)       x_n the normalised activation before weight and
    bias

(RMSNorm has no mean; DyT is elementwise: v_h = weight ⊙ alpha (1 - tanh²(alpha x)) ⊙ v), and behind an MLP with slopes
s as  ((v_h W_in) ⊙ s) W_out; a gated MLP has two such paths.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.lm.feedforward import DyT, FeedForward, Norm
from scalar_sae.saes.activation import TopK
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.sparse import Coded, top_k
from scalar_sae.saes.trainee import Weights


def ff_jacobian(
    ff: FeedForward,
    x: Float[Tensor, "batch d_model"],
    up: Coded,
    down: Coded,
    *,
    block: bool,
) -> Float[Tensor, "batch k_up k_down"]:
    """The Jacobian between the selected latents; entries of latents that are not active (0) are 0.

    Args:
        ff: the layer's norm and MLP; frozen.
        x: the model's activation in front: at resid_mid if `block`, else at mlp_in.
        up: what the SAE in front selected; its W_dec is read.
        down: what the SAE behind selected; its W_enc is read.
        block: through norm, MLP and the skip connection (FF block), or through the MLP alone (FF layer).
    """
    W_dec, W_enc = up.weights.W_dec, down.weights.W_enc
    arriving = _arriving(ff.norm if block else None, x, W_dec, up.latents)
    hidden: Tensor | None = None
    for W, slope in _paths(ff, ff.norm(x) if block else x):
        path = arriving(W) * slope.unsqueeze(1)
        hidden = path if hidden is None else hidden + path
    assert hidden is not None
    outwards = (ff.W_out @ W_enc).T[down.latents]
    through_mlp = torch.bmm(hidden, outwards.transpose(1, 2))
    skipped = torch.bmm(W_dec[up.latents], W_enc.T[down.latents].transpose(1, 2)) if block else 0.0
    active = (up.acts > 0).unsqueeze(2) & (down.acts > 0).unsqueeze(1)
    return torch.where(active, through_mlp + skipped, 0.0)


def jacobian_penalty(J: Float[Tensor, "batch k_up k_down"], d_model: int) -> Float[Tensor, ""]:
    """The term that lambda multiplies: (d_model / (k_up k_down)) times the mean over tokens of sum |J|.

    The Jacobian SAE paper's lambda stands beside squared errors averaged over d_model; ours are sums, hence d_model.
    The SCALAR authors sum |J| over the tokens of a batch instead: lambda = lambda_theirs * batch_tokens / d_model.
    """
    return d_model / (J.shape[1] * J.shape[2]) * J.abs().sum((1, 2)).mean()


@torch.no_grad()
def mean_jacobian(ff: FeedForward, ends: Sequence[tuple[SAE, Float[Tensor, "batch d_model"]]], *, block: bool) -> float:
    """Mean |J| over tokens and pairs of selected latents: the Jacobian SAE paper's unit, the penalty over d_model.

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


def _arriving(
    norm: Norm | None,
    x: Float[Tensor, "batch d_model"],
    W_dec: Float[Tensor, "d_sae d_model"],
    latents: Int[Tensor, "batch k_up"],
) -> Callable[[Tensor], Tensor]:
    """From an input matrix of the MLP to where the selected directions arrive behind the norm, if any, and it."""
    if norm is None:
        return lambda W: (W_dec @ W)[latents]
    if isinstance(norm, DyT):
        stretched = W_dec[latents] * norm.slope(x).unsqueeze(1)
        return lambda W: stretched @ W
    centred = x - x.mean(-1, keepdim=True) if norm.centred else x
    sigma = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    x_n = centred / sigma
    inwards = (W_dec - W_dec.mean(1, keepdim=True) if norm.centred else W_dec) * norm.weight
    along = torch.bmm(W_dec[latents], x_n.unsqueeze(2)) / x.shape[1]
    return lambda W: ((inwards @ W)[latents] - along * ((x_n * norm.weight) @ W).unsqueeze(1)) / sigma.unsqueeze(2)


def _paths(ff: FeedForward, h: Float[Tensor, "batch d_model"]) -> list[tuple[Tensor, Tensor]]:
    """The input matrices of the MLP, each with the hidden units' slopes along it."""
    hidden = h @ ff.W_in + ff.b_in
    if ff.W_gate is None:
        return [(ff.W_in, _slope(ff, hidden))]
    gate = h @ ff.W_gate + (0.0 if ff.b_gate is None else ff.b_gate)
    return [(ff.W_in, ff.act(gate)), (ff.W_gate, _slope(ff, gate) * hidden)]


def _slope(ff: FeedForward, z: Tensor) -> Tensor:
    """Derivative of the elementwise nonlinearity."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(ff.act(z).sum(), z)
    return slope
