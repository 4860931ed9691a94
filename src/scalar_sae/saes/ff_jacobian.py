"""How the active latents before a feed-forward layer move those after it: closed forms, k x k a token.

    J[i, j] = d u_down[j] / d z_up[i] = W_dec[i] · (d out / d in) · W_enc[:, j]

with the slopes taken at the model's own activation (arXiv 2502.18147 App. D; SCALAR App. D, and for LayerNorm the
SCALAR authors' code). No d_model x d_model object is built. In row vectors, a direction v in front of the norm arrives
behind it as

    v_h = (1/sigma) weight ⊙ (v - mean(v) - x_n (v · x_n) / d)       x_n the normalised activation before weight and
    bias

(RMSNorm has no mean), and behind an MLP with slopes s as  ((v_h W_in) ⊙ s) W_out; a gated MLP has two such paths.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.lm.feedforward import FeedForward
from scalar_sae.saes.sparse import Coded


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
    sigma, x_n = _normalised(ff, x)
    gain = ff.norm.weight
    h = x_n * gain + ff.norm.bias if block else x
    inwards = W_dec - W_dec.mean(1, keepdim=True) if block and ff.norm.centred else W_dec
    along = torch.bmm(W_dec[up.latents], x_n.unsqueeze(2)) / x.shape[1] if block else None
    hidden: Tensor | None = None
    for W, slope in _paths(ff, h):
        moved = ((inwards * gain) @ W if block else inwards @ W)[up.latents]
        if along is not None:
            moved = (moved - along * ((x_n * gain) @ W).unsqueeze(1)) / sigma.unsqueeze(2)
        path = moved * slope.unsqueeze(1)
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


def _normalised(ff: FeedForward, x: Tensor) -> tuple[Tensor, Tensor]:
    """The norm's divisor [batch, 1] and the normalised activation before weight and bias."""
    centred = x - x.mean(-1, keepdim=True) if ff.norm.centred else x
    sigma = (centred.square().mean(-1, keepdim=True) + ff.norm.eps).sqrt()
    return sigma, centred / sigma


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
