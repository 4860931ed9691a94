"""Sparse codes with a fixed or a varying number of latents per token: selection, decoding and gradients on few rows.

Only the pre-activations need a product of all tokens with all latents. Everything else uses the selected latents alone:
the reconstruction and W_dec's gradient (`embedding_bag` over W_dec's rows), and W_enc's gradient (the same over
tokens).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scalar_sae.saes.methods.base import Weights

GROUP = 8
PARTS = 16
SAMPLE = 61
"""Sampling stride. It is prime, so that a sample of a [batch, d_sae] matrix covers all latents."""


class Coded(NamedTuple):
    """The selected latents of each token, and the weights that selected them."""

    weights: Weights
    acts: Float[Tensor, "batch k"]
    """Activations of the selected latents, not negative."""
    latents: Int[Tensor, "batch k"]

    def first(self, k: int) -> "Coded":
        """The first k latents of each token. They are the largest if the code is ordered."""
        if k == self.acts.shape[1]:
            return self
        return self._replace(acts=self.acts[:, :k].contiguous(), latents=self.latents[:, :k].contiguous())

    def fired(self) -> Bool[Tensor, " d_sae"]:
        """Mask of the latents that are active on any token."""
        return _marked(self.latents[self.acts > 0], len(self.weights.W_dec))

    def of_tokens(self, n: int) -> "Coded":
        """The code of the first n tokens."""
        return self._replace(acts=self.acts[:n], latents=self.latents[:n])

    def decoded(self) -> Float[Tensor, "batch d_out"]:
        """The reconstruction."""
        summed = F.embedding_bag(self.latents, self.weights.W_dec, per_sample_weights=self.acts, mode="sum")
        return summed + self.weights.b_dec


class Ragged(NamedTuple):
    """A varying number of selected latents per token, and the weights that selected them."""

    weights: Weights
    acts: Float[Tensor, " n"]
    """Activations of the selected latents, positive, ordered by token and then by latent."""
    tokens: Int[Tensor, " n"]
    latents: Int[Tensor, " n"]
    n_tokens: int

    def fired(self) -> Bool[Tensor, " d_sae"]:
        """Mask of the latents that are active on any token."""
        return _marked(self.latents, len(self.weights.W_dec))

    def decoded(self) -> Float[Tensor, "batch d_out"]:
        """The reconstruction."""
        return self.shares([len(self.weights.W_dec)]).squeeze(1) + self.weights.b_dec

    def shares(self, ends: Sequence[int]) -> Float[Tensor, "batch group d_out"]:
        """The contribution of each group of latents to each token's reconstruction. `ends` are the groups' ends."""
        group = torch.bucketize(self.latents, torch.tensor(ends, device=self.latents.device), right=True)
        sizes = (self.tokens * len(ends) + group).bincount(minlength=self.n_tokens * len(ends))
        summed = F.embedding_bag(
            self.latents, self.weights.W_dec, _starts(sizes), mode="sum", per_sample_weights=self.acts,
            include_last_offset=True,
        )  # fmt: skip
        return summed.unflatten(0, (self.n_tokens, len(ends)))


def ragged(
    weights: Weights, x: Float[Tensor, "batch d_in"], u: Float[Tensor, "batch d_sae"], kept: Bool[Tensor, "batch d_sae"]
) -> Ragged:
    """The code of the kept latents, which must have positive pre-activations.

    Args:
        weights: encoder and decoder.
        x: the encoder's input.
        u: all pre-activations, without gradients.
        kept: mask of the latents to keep.
    """
    tokens, latents = kept.nonzero(as_tuple=True)
    acts = _Chosen.apply(x, weights.centre, weights.W_enc, weights.b_enc, u, tokens, latents)
    return Ragged(weights, acts, tokens, latents, len(x))


def top_k(weights: Weights, x: Float[Tensor, "batch d_in"], k: int, ordered: bool = False) -> Coded:
    """The k largest pre-activations of each token, after ReLU."""
    u = pre_acts(weights, x)
    latents = largest(u, k, ordered)
    return Coded(weights, chosen(weights, x, u, latents).relu(), latents)


@torch.no_grad()
def pre_acts(weights: Weights, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
    """All pre-activations without gradients, for selecting latents."""
    return weights.pre_acts(x)


def largest(u: Float[Tensor, "batch d_sae"], k: int, ordered: bool = False) -> Int[Tensor, "batch k"]:
    """Indices of the k largest entries of each row. Ties are broken arbitrarily.

    The k largest entries lie in the k of many small groups with the largest maxima, so `torch.topk` has less to search.
    At small widths it would otherwise take more of a training step than anything else.
    """
    n_groups = u.shape[1] // GROUP
    if u.shape[1] % GROUP or n_groups < 2 * k:
        return u.topk(k, sorted=ordered).indices
    groups = u.unflatten(1, (GROUP, n_groups))
    best = groups.amax(1).topk(k, sorted=False).indices
    few = groups.gather(2, best.unsqueeze(1).expand(-1, GROUP, -1)).flatten(1).topk(k, sorted=ordered).indices
    return best.gather(1, few % k) + few // k * n_groups


def largest_values(flat: Float[Tensor, " n"], k: int) -> Float[Tensor, " k"]:
    """The k largest entries in any order.

    `torch.topk` is slow for large k and allocates 16 bytes per entry. It therefore receives, in parts, only the entries
    that a sample suggests are large enough.
    """
    sample = flat[::SAMPLE]
    n = k // SAMPLE * 5 // 4 + 8
    if n < len(sample):
        few = flat[flat >= sample.topk(n, sorted=False).values.amin()]
        flat = few if len(few) >= k else flat
    best = [part.topk(min(k, len(part)), sorted=False).values for part in flat.chunk(PARTS)]
    return torch.cat(best).topk(k, sorted=False).values


def chosen(
    weights: Weights,
    x: Float[Tensor, "batch d_in"],
    u: Float[Tensor, "batch d_sae"],
    latents: Int[Tensor, "batch k"],
) -> Float[Tensor, "batch k"]:
    """`weights.pre_acts(x)` at the latents selected for each token. Gradients reach the weights, not x.

    Args:
        weights: the encoder.
        x: the encoder's input.
        u: all pre-activations, without gradients.
        latents: indices of the selected latents.
    """
    tokens = torch.arange(len(x), device=x.device).unsqueeze(1).expand_as(latents)
    return _Chosen.apply(x, weights.centre, weights.W_enc, weights.b_enc, u, tokens, latents)


class _Chosen(torch.autograd.Function):
    """Pre-activations at (token, latent) pairs, with the gradients of the weights that produce them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        centre: Tensor | None,
        W_enc: Tensor,
        b_enc: Tensor,
        u: Tensor,
        tokens: Tensor,
        latents: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, centre, W_enc, tokens, latents)
        return u.take(tokens * u.shape[1] + latents)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, centre, W_enc, tokens, latents = ctx.saved_tensors
        grad, latent = grads[0].flatten(), latents.flatten()
        d_b = torch.zeros_like(W_enc[0]).index_add_(0, latent, grad)
        order, ends = _by_latent(latent, len(d_b))
        x = x if centre is None else x - centre
        token, weights = tokens.flatten()[order], grad[order]
        d_W = F.embedding_bag(token, x, ends, mode="sum", per_sample_weights=weights, include_last_offset=True).T
        return None, None if centre is None else -(W_enc @ d_b), d_W, d_b, None, None, None


def _by_latent(latent: Int[Tensor, " n"], d_sae: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " ends"]]:
    """The order that sorts by latent, and the boundaries of each latent's part."""
    return latent.argsort(), _starts(latent.bincount(minlength=d_sae))


def _starts(sizes: Int[Tensor, " n"]) -> Int[Tensor, " n_and_end"]:
    """The starts of consecutive parts of these sizes, and the end of the last."""
    return F.pad(sizes.cumsum(0), (1, 0))


def _marked(latents: Int[Tensor, " n"], d_sae: int) -> Bool[Tensor, " d_sae"]:
    return torch.zeros(d_sae, dtype=torch.bool, device=latents.device).index_fill_(0, latents, True)
