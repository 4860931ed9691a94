"""TopK SAEs (Gao et al., arXiv 2406.04093), in the form the SCALAR authors train: the baseline of every comparison.

Squared error only; W_dec Kaiming-uniform, W_enc its transpose, biases zero; no decoder normalisation and no auxiliary
loss (SCALAR App. B and its code).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import TopK
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site


class TopKConfig(BaseModel):
    """Independent TopK SAEs, one a site."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["topk"] = "topk"
    name: str = Field(default="topk", pattern=r"^[A-Za-z0-9_.-]+$")
    """Folder of these SAEs in a run."""
    sites: list[str]
    """Where to train: site names, `ff_blocks` (both ends of each), `residual_stream`."""
    k: int = Field(default=10, gt=0)
    """Latents kept per token."""
    expansion: int = Field(default=8, gt=0)
    """Latents per dimension of the activations: d_sae = expansion * d_model."""


class TopKTrainee(nn.Module):
    """One TopK SAE in training."""

    def __init__(self, site: Site, d_model: int, d_sae: int, k: int, generator: torch.Generator) -> None:
        super().__init__()
        if k > d_sae:
            raise UserError(f"{site}: k = {k} is above d_sae = {d_sae}")
        self.sites = (site,)
        self.k = k
        self.W_enc, self.W_dec = encoder_and_decoder(d_sae, d_model, generator)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_model))

    def sae(self, site: Site) -> SAE:
        """The present weights; gradients reach the parameters.

        b_dec's share of the pre-activations is taken out of the large product: its gradient would cost another one.
        """
        assert site in self.sites
        return SAE(self.W_enc, self.b_enc - self.b_dec @ self.W_enc, self.W_dec, self.b_dec, TopK(self.k))


def encoder_and_decoder(d_sae: int, d_model: int, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
    """W_enc [d_model, d_sae] and W_dec [d_sae, d_model] at the start: Kaiming-uniform and its transpose."""
    W_dec = torch.empty(d_sae, d_model)
    nn.init.kaiming_uniform_(W_dec, generator=generator)
    return nn.Parameter(W_dec.T.contiguous()), nn.Parameter(W_dec)


def reconstruction_loss(sae: SAE, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, ""]:
    """Squared error summed over d_model, mean over tokens.

    The same numbers as `sae.decode(sae.encode(x))`, with a gradient that touches k rows of W_dec per token.
    """
    assert isinstance(sae.activation, TopK)
    acts, latents = sae.pre_acts(x).topk(sae.activation.k, dim=-1, sorted=False)
    x_hat = F.embedding_bag(latents, sae.W_dec, per_sample_weights=acts.relu(), mode="sum") + sae.b_dec
    return (x - x_hat).square().sum(-1).mean()
