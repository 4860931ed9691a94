"""Sparse codes with k latents a token: selection, and a decoder and gradients that touch k rows a token.

Only the pre-activations need a product of all tokens with all latents. Everything else goes by the selected latents:
the reconstruction and W_dec's gradient (`embedding_bag` over W_dec's rows), and W_enc's (the same over tokens).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.kernels import linear
from scalar_sae.saes.trainee import Weights

GROUP = 8
PARTS = 16


class Coded(NamedTuple):
    """The selected latents of each token, and the weights that selected them."""

    weights: Weights
    acts: Float[Tensor, "batch k"]
    """Their activations, not negative."""
    latents: Int[Tensor, "batch k"]

    def first(self, k: int) -> "Coded":
        """The first k of each token: the largest, if they are ordered."""
        if k == self.acts.shape[1]:
            return self
        return self._replace(acts=self.acts[:, :k].contiguous(), latents=self.latents[:, :k].contiguous())

    def of_tokens(self, n: int) -> "Coded":
        """Of the first n tokens."""
        return self._replace(acts=self.acts[:n], latents=self.latents[:n])

    def decoded(self) -> Float[Tensor, "batch d_out"]:
        """The reconstruction."""
        summed = F.embedding_bag(self.latents, self.weights.W_dec, per_sample_weights=self.acts, mode="sum")
        return summed + self.weights.b_dec


def top_k(weights: Weights, x: Float[Tensor, "batch d_in"], k: int, ordered: bool = False) -> Coded:
    """The k largest pre-activations of each token, made non-negative."""
    u = pre_acts(weights, x)
    latents = largest(u, k, ordered)
    return Coded(weights, chosen(weights, x, u, latents).relu(), latents)


@torch.no_grad()
def pre_acts(weights: Weights, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
    """All pre-activations, outside the graph: for choosing latents."""
    return linear(x, weights.W_enc, weights.bias())


def largest(u: Float[Tensor, "batch d_sae"], k: int, ordered: bool = False) -> Int[Tensor, "batch k"]:
    """Indices of the k largest of each row; which of equal ones is open.

    They lie in the k of many small groups whose maxima are largest, which leaves `torch.topk` less to search: at
    small widths it takes more of a training step than anything else.
    """
    n_groups = u.shape[1] // GROUP
    if u.shape[1] % GROUP or n_groups < 2 * k:
        return u.topk(k, sorted=ordered).indices
    groups = u.unflatten(1, (GROUP, n_groups))
    best = groups.amax(1).topk(k, sorted=False).indices
    few = groups.gather(2, best.unsqueeze(1).expand(-1, GROUP, -1)).flatten(1).topk(k, sorted=ordered).indices
    return best.gather(1, few % k) + few // k * n_groups


def largest_values(flat: Float[Tensor, " n"], k: int) -> Float[Tensor, " k"]:
    """The k largest entries in any order, looked for in parts first: `torch.topk` fills 16 bytes for every entry."""
    best = [part.topk(min(k, len(part)), sorted=False).values for part in flat.chunk(PARTS)]
    return torch.cat(best).topk(k, sorted=False).values


def chosen(
    weights: Weights,
    x: Float[Tensor, "batch d_in"],
    u: Float[Tensor, "batch d_sae"],
    latents: Int[Tensor, "batch k"],
) -> Float[Tensor, "batch k"]:
    """`weights.pre_acts(x)` at the latents chosen for each token; gradients reach the weights, not x.

    Args:
        weights: the encoder.
        x: what it reads.
        u: all pre-activations, outside the graph.
        latents: which are wanted.
    """
    return _Chosen.apply(x, weights.centre, weights.W_enc, weights.b_enc, u, latents)


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, centre: Tensor | None, W_enc: Tensor, b_enc: Tensor, u: Tensor, latents: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, centre, W_enc, latents)
        return u.gather(1, latents)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, centre, W_enc, latents = ctx.saved_tensors
        grad, latent = grads[0].flatten(), latents.flatten()
        d_b = torch.zeros_like(W_enc[0]).index_add_(0, latent, grad)
        order, ends = _by_latent(latent, len(d_b))
        token = order // latents.shape[1]
        x = x if centre is None else x - centre
        weights = grad[order]
        d_W = F.embedding_bag(token, x, ends, mode="sum", per_sample_weights=weights, include_last_offset=True).T
        return None, None if centre is None else -(W_enc @ d_b), d_W, d_b, None, None


def summed_by_latent(
    rows: Float[Tensor, "batch k d"], latents: Int[Tensor, "batch k"], d_sae: int
) -> Float[Tensor, "d_sae d"]:
    """For each latent the sum of the rows of all tokens that chose it."""
    order, ends = _by_latent(latents.flatten(), d_sae)
    return F.embedding_bag(order, rows.flatten(0, 1), ends, mode="sum", include_last_offset=True)


def _by_latent(latent: Int[Tensor, " n"], d_sae: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " ends"]]:
    """The order that brings equal latents together, and where each latent's part begins and ends."""
    return latent.argsort(), F.pad(latent.bincount(minlength=d_sae).cumsum(0), (1, 0))
