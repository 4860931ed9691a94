"""The table of SAE methods: from a config to the SAEs to train. A new method adds its file and a line here."""

from collections.abc import Iterable
from typing import Annotated, Protocol

import torch
from pydantic import Field

from scalar_sae.errors import UserError
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.staircase import StaircaseConfig, StaircaseTrainee
from scalar_sae.saes.topk import TopKConfig, TopKTrainee
from scalar_sae.sites import Block, Site

MethodConfig = Annotated[TopKConfig | StaircaseConfig, Field(discriminator="method")]


class Trainee(Protocol):
    """SAEs that share parameters, and so one optimiser, one gradient clip and one schedule."""

    sites: tuple[Site, ...]

    def sae(self, site: Site) -> SAE:
        """The present SAE at one of the sites."""
        ...

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """What the optimiser changes."""
        ...


def ff_blocks(n_layers: int) -> list[tuple[Site, Site]]:
    """Both ends of every FF block."""
    return [(Site("resid_mid", layer), Site("resid_post", layer)) for layer in range(n_layers)]


def residual_stream(n_layers: int) -> tuple[Site, ...]:
    """The residual stream before the first layer and after each."""
    return (Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(n_layers)))


def site_list(names: list[str], n_layers: int) -> list[Site]:
    """The sites that a config names, each place once, in the order of the forward pass.

    Raises:
        UserError: not a site, or a layer that the model lacks.
    """
    groups = {
        "ff_blocks": [site for pair in ff_blocks(n_layers) for site in pair],
        "residual_stream": list(residual_stream(n_layers)),
    }
    found: dict[int, Site] = {}
    for name in names:
        for site in groups[name] if name in groups else [Site.parse(name)]:
            if site.layer >= n_layers:
                raise UserError(f"{site}: the model has {n_layers} layers (0-{n_layers - 1})")
            found.setdefault(site.depth, site)
    return [found[depth] for depth in sorted(found)]


def build(
    config: TopKConfig | StaircaseConfig, d_model: int, n_layers: int, seed: int
) -> list[TopKTrainee | StaircaseTrainee]:
    """The SAEs of one method, with initial weights that depend on the seed and the site alone."""
    d_sae = config.expansion * d_model
    if isinstance(config, TopKConfig):
        sites = site_list(config.sites, n_layers)
        return [TopKTrainee(site, d_model, d_sae, config.k, _generator(seed, site)) for site in sites]
    flights = ff_blocks(n_layers) if config.along == "ff_blocks" else [residual_stream(n_layers)]
    return [StaircaseTrainee(sites, d_model, d_sae, config.k, _generator(seed, sites[0])) for sites in flights]


def blocks(config: TopKConfig | StaircaseConfig, n_layers: int) -> list[Block]:
    """The FF blocks and transformer blocks that a method's SAEs were trained to stand at both ends of."""
    ff = [Block(*ends) for ends in ff_blocks(n_layers)]
    transformer = [Block.parse(f"transformer_block.{layer}") for layer in range(n_layers)]
    if isinstance(config, StaircaseConfig):
        return ff if config.along == "ff_blocks" else transformer
    depths = {site.depth for site in site_list(config.sites, n_layers)}
    return [block for block in ff + transformer if {block.up.depth, block.down.depth} <= depths]


def _generator(seed: int, site: Site) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + site.depth)
