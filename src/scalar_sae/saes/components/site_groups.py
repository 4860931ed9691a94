"""Groups of sites at which a method trains SAEs, and the blocks between pairs of them."""

from scalar_sae.errors import UserError
from scalar_sae.sites import Block, Site


def ff_blocks(n_layers: int) -> list[tuple[Site, Site]]:
    """The two sites of every FF block."""
    return [(Site("resid_mid", layer), Site("resid_post", layer)) for layer in range(n_layers)]


def ff_layers(n_layers: int) -> list[tuple[Site, Site]]:
    """The two sites of every FF layer: the MLP's input and output."""
    return [(Site("mlp_in", layer), Site("mlp_out", layer)) for layer in range(n_layers)]


def at_layers(pairs: list[tuple[Site, Site]], layers: tuple[int, ...]) -> list[tuple[Site, Site]]:
    """The pairs of some layers, in the order of the layers; all of them if no layer is named.

    Raises:
        UserError: the model lacks a layer.
    """
    if missing := [layer for layer in layers if layer >= len(pairs)]:
        raise UserError(f"layers: {missing[0]}: the model has {len(pairs)} layers (0-{len(pairs) - 1})")
    return [pairs[layer] for layer in sorted(set(layers))] if layers else pairs


def residual_stream(n_layers: int) -> tuple[Site, ...]:
    """The residual stream before the first layer and after every layer."""
    return (Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(n_layers)))


def site_list(names: list[str], n_layers: int) -> list[Site]:
    """The sites that a config names, each place once, in the order of the forward pass.

    Raises:
        UserError: a name is not a site, or the model lacks the layer.
    """
    groups = {
        "ff_blocks": [site for pair in ff_blocks(n_layers) for site in pair],
        "ff_layers": [site for pair in ff_layers(n_layers) for site in pair],
        "residual_stream": list(residual_stream(n_layers)),
    }
    found: dict[int, Site] = {}
    for name in names:
        for site in groups[name] if name in groups else [parsed(name, n_layers)]:
            found.setdefault(site.depth, site)
    return [found[depth] for depth in sorted(found)]


def parsed(name: str, n_layers: int) -> Site:
    """Parse a site and check that the model has its layer.

    Raises:
        UserError: the name is not a site, or the model lacks the layer.
    """
    site = Site.parse(name)
    if site.layer >= n_layers:
        raise UserError(f"{site}: the model has {n_layers} layers (0-{n_layers - 1})")
    return site


def spanned(sites: list[Site], n_layers: int) -> list[Block]:
    """The FF blocks, transformer blocks and FF layers with a site at both ends."""
    transformer = [Block.parse(f"transformer_block.{layer}") for layer in range(n_layers)]
    candidates = [*map(_block, ff_blocks(n_layers)), *transformer, *map(_block, ff_layers(n_layers))]
    depths = {site.depth for site in sites}
    return [block for block in candidates if {block.up.depth, block.down.depth} <= depths]


def _block(ends: tuple[Site, Site]) -> Block:
    return Block(*ends)
