"""Shapley values, estimated from random orders in which latents enter.

The values of a token add up to its activation less that of the ablated input.
"""

import torch

from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.scoring.rankings import effects
from scalar_sae.scoring.rankings.base import EdgewiseRanking, Total

ORDERS = 8
"""Orders drawn per prompt."""


def add_shapley(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    """Squared Shapley values; every downstream latent sees the same orders."""
    state = generator.get_state()
    for some in effects.narrowed(pair, prompt, columns):
        generator.set_state(state)
        units, effect = effects.of_random_orders(pair, prompt, some, ORDERS, generator)
        of_some = total[:, some.start - columns.start : some.stop - columns.start]
        units.add_squares(of_some, effect, pair.block.mixes_tokens)


SHAPLEY = EdgewiseRanking(
    "shapley",
    f"mean change of latent j's activation when latent i enters, over {ORDERS} random orders of entry",
    rule=add_shapley,
)
