"""What an upstream latent without a kept edge is set to: zero, its mean, or its activation elsewhere in the text.

- `mean`: its mean over the ordinary tokens of the ranking text.
- `resample`: its activation at one token of the ranking text, drawn for each scored prompt. All latents take their
  activations at the same token, so they are values that occur together.
- `adversarial`: eight such tokens are drawn for each scored prompt, and at each edge count the one with the largest KL
  counts. A circuit that is faithful under it does not owe this to the value that ablated latents are set to.

Under `resample` and `adversarial` edges are ranked under mean ablation, the expectation of a draw.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.lm.special import counted
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.pair import Pair, read

DRAWS = {"resample": 1, "adversarial": 8}
"""Tokens of the ranking text that are drawn for each scored prompt."""


@torch.no_grad()
def mean_ablated(pair: Pair, tokens: Int[Tensor, "prompt token"]) -> Pair:
    """The pair with ablated latents set to their mean over the ordinary tokens of a text, instead of zero."""
    total = pair.up.W_dec.new_zeros(pair.up.d_sae, dtype=torch.float64)
    for prompt in read(pair, tokens):
        total += prompt.z.double().sum(0)
    return replace(pair, ablation_value=(total / max(1, int(counted(tokens, pair.special).sum()))).float())


def ablated(pair: Pair, tokens: Int[Tensor, "prompt token"], config: ScoreConfig, number: int) -> Iterator[Pair]:
    """The pairs that a scored prompt is measured with: one, or one for each token that is drawn.

    Args:
        pair: the pair as edges are ranked.
        tokens: the ranking text.
        config: whose `ablation` and `seed` count.
        number: the prompt's place in the scored text.
    """
    n_draws = DRAWS.get(config.ablation, 0)
    if n_draws == 0:
        yield pair
        return
    places = counted(tokens, pair.special).nonzero()
    for row in np.random.default_rng([config.seed, number]).integers(len(places), size=n_draws):
        yield replace(pair, ablation_value=_activations(pair, tokens, *places[row].tolist()))


@torch.no_grad()
def _activations(pair: Pair, tokens: Int[Tensor, "prompt token"], row: int, column: int) -> Float[Tensor, " n_up"]:
    (prompt,) = read(pair, tokens[row : row + 1])
    return prompt.z[column]
