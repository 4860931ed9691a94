"""Integrated gradients from the ablated input to the full reconstruction, midpoint rule.

The gradient is that of relu(p_j), because the selected activation jumps where a gradient sees nothing. So attributions
add up to relu(p_j) at the input less relu(p_j) at the ablated input.
"""

import torch

from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.scoring.rankings import effects
from scalar_sae.scoring.rankings.base import EdgewiseRanking, Total

STEPS = 8
"""Points on the path."""


def _add(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    alphas = [(step + 0.5) / STEPS for step in range(STEPS)]
    for units, effect in effects.of_a_gradient(pair, prompt, columns, alphas):
        units.add_squares(total, effect, pair.block.mixes_tokens)


IG = EdgewiseRanking(
    "ig",
    f"integrated gradients of the positive part of latent j's pre-activation, from the ablated input ({STEPS} steps)",
    rule=_add,
)
