"""Leave-one-out, where it matters for the model's output: each token's change is weighted by Fisher information."""

import torch

from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.scoring.rankings import effects
from scalar_sae.scoring.rankings.base import EdgewiseRanking, Total
from scalar_sae.scoring.rankings.leave_one_out import add_removals

LABELS = 4
"""Labels drawn per prompt to estimate the Fisher information."""


def _add(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    weight = effects.fisher(pair, prompt, LABELS, generator)[:, columns].sqrt()
    add_removals(pair, prompt, columns, total, generator, weight)


FISHER = EdgewiseRanking(
    "fisher",
    "`leave_one_out`, weighted at each token by the Fisher information of latent j for the model's output",
    rule=_add,
)
