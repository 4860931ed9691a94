"""Sparse codes with k latents a token: selection, and decoding that touches k decoder rows a token."""

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.saes.trainee import Weights


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

    def decoded(self) -> Float[Tensor, "batch d_out"]:
        """The reconstruction."""
        summed = F.embedding_bag(self.latents, self.weights.W_dec, per_sample_weights=self.acts, mode="sum")
        return summed + self.weights.b_dec


def top_k(weights: Weights, x: Float[Tensor, "batch d_in"], k: int, ordered: bool = False) -> Coded:
    """The k largest pre-activations of each token, made non-negative."""
    acts, latents = weights.pre_acts(x).topk(k, dim=-1, sorted=ordered)
    return Coded(weights, acts.relu(), latents)
