"""Staircase SAEs (SCALAR §3.3): SAEs at consecutive sites read growing slices of one shared dictionary.

With n latents per chunk, the SAE at the i-th site (i = 1, 2, ...) uses the first n i columns of W_enc and rows of
W_dec. It has its own b_enc, with which it can switch features off, and its own b_dec. The loss of each site updates all
the weights that the site reads, so later sites can reuse a feature found at an earlier one. k is the same at every
site.

The paper's control experiments share weights differently (App. B, E); see `Sharing`.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor, nn

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import TopK
from scalar_sae.saes.components.dead_latents import DeadLatents
from scalar_sae.saes.components.site_groups import at_layers, ff_blocks, residual_stream
from scalar_sae.saes.components.sparse import Coded, top_k
from scalar_sae.saes.methods.base import (
    Acts,
    Method,
    Name,
    Progress,
    TrainableSAEs,
    Transformer,
    Weights,
    encoder_and_decoder,
    generator_at,
    squared_error,
)
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Block, Site

Sharing = Literal["shared", "detached", "untied", "tied"]
"""`shared`: a Staircase. `detached`: each site reads the older chunks but its loss trains only its own chunk. `untied`:
the same widths, with separate matrices. `tied`: every site reads the whole dictionary."""


class StaircaseMethod(Method, frozen=True):
    """Staircases: one per FF block, or one along the whole residual stream."""

    along: Literal["ff_blocks", "residual_stream"]
    """`ff_blocks`: resid_mid and resid_post of each layer share a dictionary. `residual_stream`: all layers share
    one.
    """
    layers: tuple[NonNegativeInt, ...] = ()
    """Layers whose FF blocks get a staircase; all of them if none is named. Only with `along: ff_blocks`."""
    expansion: int = Field(default=8, gt=0)
    """Latents per dimension in each chunk: the SAE at the i-th site has expansion * d_model * i latents."""
    sharing: Sharing = "shared"
    """How the sites share weights."""

    @model_validator(mode="after")
    def _layers_of_ff_blocks(self) -> "StaircaseMethod":
        if self.layers and self.along != "ff_blocks":
            raise ValueError(f"layers = {self.layers}: a staircase along the residual stream has all layers")
        return self

    def flights(self, n_layers: int) -> list[tuple[Site, ...]]:
        """The sites of each staircase."""
        return (
            [*at_layers(ff_blocks(n_layers), self.layers)] if self.along == "ff_blocks" else [residual_stream(n_layers)]
        )

    def blocks(self, n_layers: int) -> list[Block]:
        """The blocks between neighbouring sites."""
        if self.along == "ff_blocks":
            return [Block(*ends) for ends in at_layers(ff_blocks(n_layers), self.layers)]
        return [Block.parse(f"transformer_block.{layer}") for layer in range(n_layers)]


class StaircaseConfig(StaircaseMethod, frozen=True):
    """Staircase SAEs with TopK."""

    method: Literal["staircase"] = "staircase"
    name: Name = "staircase"
    """Folder of these SAEs in a run."""
    k: int = Field(default=10, gt=0)
    """Latents kept per token, at every site."""

    def trainees(self, lm: Transformer, seed: int) -> list[TrainableSAEs]:
        """One trainee per staircase."""
        return [StaircaseTrainee(self, sites, lm.d_model, seed) for sites in self.flights(lm.n_layers)]


class Stairs(nn.Module):
    """The weights of one staircase.

    Args:
        config: width and sharing.
        n_sites: number of sites.
        d_model: width of the activations.
        generator: source of the initial weights.
        threshold: initial threshold of every latent, or None for activation rules without thresholds. Thresholds are
            shared in the same way as the matrices.
    """

    def __init__(
        self,
        config: StaircaseMethod,
        n_sites: int,
        d_model: int,
        generator: torch.Generator,
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        chunk = config.expansion * d_model
        top = chunk * n_sites
        self._sharing = config.sharing
        self._own = config.sharing == "untied"
        self.ends = (top,) * n_sites if config.sharing == "tied" else tuple(chunk * (i + 1) for i in range(n_sites))
        widths = self.ends if self._own else (top,)
        first = [] if threshold is None else [torch.full((width,), threshold).log() for width in widths]
        self.log_threshold = nn.ParameterList(map(nn.Parameter, first))
        pairs = [encoder_and_decoder(width, d_model, generator) for width in widths]
        self.W_enc = nn.ParameterList(W_enc for W_enc, _ in pairs)
        self.W_dec = nn.ParameterList(W_dec for _, W_dec in pairs)
        self.b_enc = nn.ParameterList(nn.Parameter(torch.zeros(end)) for end in self.ends)
        self.b_dec = nn.ParameterList(nn.Parameter(torch.zeros(d_model)) for _ in self.ends)

    def chunks(self, i: int) -> tuple[int, ...]:
        """Ends of the chunks that the i-th site reads."""
        return () if self._sharing == "tied" else self.ends[: i + 1]

    def weights(self, i: int) -> Weights:
        """The weights that the i-th site reads. Its b_dec is also the pre-encoder bias."""
        end, matrix = self.ends[i], i if self._own else 0
        W_enc, b_dec = self.W_enc[matrix].T[:end].T, self.b_dec[i]
        if self._sharing == "detached" and i > 0:
            old = self.ends[i - 1]
            W_enc = torch.cat([W_enc[:, :old].detach(), W_enc[:, old:]], 1)
        return Weights(W_enc, self.b_enc[i], self._rows(self.W_dec, i), b_dec, centre=b_dec)

    def threshold(self, i: int) -> Float[Tensor, " d_sae"]:
        """The thresholds of the i-th site."""
        return self._rows(self.log_threshold, i).exp()

    def _rows(self, kept: nn.ParameterList, i: int) -> Tensor:
        """The rows, one per latent, that the i-th site reads."""
        rows = kept[i if self._own else 0][: self.ends[i]]
        if self._sharing == "detached" and i > 0:
            old = self.ends[i - 1]
            rows = torch.cat([rows[:old].detach(), rows[old:]])
        return rows


class StaircaseTrainee(TrainableSAEs):
    """The TopK SAEs of one staircase in training."""

    def __init__(self, config: StaircaseConfig, sites: tuple[Site, ...], d_model: int, seed: int) -> None:
        super().__init__()
        self.sites = sites
        self.k = config.k
        self.stairs = Stairs(config, len(sites), d_model, generator_at(seed, sites[0]))
        if config.k > self.stairs.ends[0]:
            raise UserError(f"{sites[0]}: k = {config.k} is above the {self.stairs.ends[0]} latents of the first step")
        self.dead_latents = nn.ModuleList(DeadLatents(end) for end in self.stairs.ends)

    def losses(self, acts: Acts, progress: Progress) -> dict[Site, Tensor]:
        """Each site's squared error."""
        return {site: squared_error(acts[site], self.coded(site, acts).decoded()) for site in self.sites}

    def coded(self, site: Site, acts: Acts) -> Coded:
        """The sparse code at a site. The latents that fired are counted."""
        i = self.sites.index(site)
        coded = top_k(self.stairs.weights(i), acts[site], self.k)
        dead_latents = self.dead_latents[i]
        assert isinstance(dead_latents, DeadLatents)
        dead_latents.record(coded.fired(), len(acts[site]))
        return coded

    def sae(self, site: Site) -> SAE:
        """The inference SAE at one site, with the current weights."""
        i = self.sites.index(site)
        return self.stairs.weights(i).sae(TopK(self.k), chunks=self.stairs.chunks(i))
