"""Staircase SAEs (SCALAR §3.3): SAEs at consecutive sites read growing slices of one shared dictionary.

With n latents a chunk, the SAE at the i-th site (i = 1, 2, ...) uses the first n i columns of W_enc and rows of W_dec,
and has its own b_enc (which lets it switch features off) and b_dec. Every site's loss updates all the weights it reads,
so a feature found at one site serves the later ones. k is the same at every site.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import TopK
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.topk import encoder_and_decoder
from scalar_sae.sites import Site


class StaircaseConfig(BaseModel):
    """Staircase SAEs: one staircase per FF block, or one along the whole residual stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["staircase"] = "staircase"
    name: str = Field(default="staircase", pattern=r"^[A-Za-z0-9_.-]+$")
    """Folder of these SAEs in a run."""
    along: Literal["ff_blocks", "residual_stream"]
    """`ff_blocks`: resid_mid and resid_post of each layer share; `residual_stream`: all layers share."""
    k: int = Field(default=10, gt=0)
    """Latents kept per token, at every site."""
    expansion: int = Field(default=8, gt=0)
    """Latents per dimension in each chunk: the i-th site has expansion * d_model * i."""


class StaircaseTrainee(nn.Module):
    """The SAEs of one staircase in training."""

    def __init__(self, sites: tuple[Site, ...], d_model: int, chunk: int, k: int, generator: torch.Generator) -> None:
        super().__init__()
        if k > chunk:
            raise UserError(f"{sites[0]}: k = {k} is above the {chunk} latents of the first step")
        self.sites = sites
        self.k = k
        self.ends = tuple(chunk * (step + 1) for step in range(len(sites)))
        self.W_enc, self.W_dec = encoder_and_decoder(self.ends[-1], d_model, generator)
        self.b_enc = nn.ParameterList(nn.Parameter(torch.zeros(end)) for end in self.ends)
        self.b_dec = nn.ParameterList(nn.Parameter(torch.zeros(d_model)) for _ in sites)

    def sae(self, site: Site) -> SAE:
        """The present weights of one step; gradients reach the staircase's parameters."""
        step = self.sites.index(site)
        end = self.ends[step]
        W_enc, b_dec = self.W_enc[:, :end], self.b_dec[step]
        b_enc = self.b_enc[step] - b_dec @ W_enc
        return SAE(W_enc, b_enc, self.W_dec[:end], b_dec, TopK(self.k), self.ends[: step + 1])
