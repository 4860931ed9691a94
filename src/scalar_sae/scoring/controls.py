"""Controls: pairs whose scores are known beforehand.

| control    | what it is                                           | what its scores must do                      |
|------------|------------------------------------------------------|----------------------------------------------|
| `padded`   | the pair, with as many dead latents more at each end | stay; the published `relative` falls         |
| `shuffled` | the same SAEs on a model whose weights are shuffled  | be worse than those of the real model        |

Under `padded` an edge whose score is zero ties with four times as many: a count that is reached
among them (`edges@99`, often) does move.

The third control is an order of edges, the ranking `random`.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from scalar_sae.records.results import Control
from scalar_sae.saes.activation import GroupMax, JumpReLU
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring.pair import Pair


def padded(pair: Pair, seed: int) -> Pair:
    """The pair with n_up and n_down latents more, none of which ever fires."""
    return replace(pair, up=_with_dead(pair.up, seed), down=_with_dead(pair.down, seed + 1))


def shuffled(pair: Pair, seed: int) -> Pair:
    """The same SAEs on the model with the entries of each weight tensor in another order."""
    return replace(pair, lm=pair.lm.shuffled(seed))


CONTROLS: dict[Control, Callable[[Pair, int], Pair]] = {"padded": padded, "shuffled": shuffled}


def _with_dead(sae: SAE, seed: int) -> SAE:
    """Twice as wide: the new latents read nothing and stay below zero, their decoder rows are those of the others."""
    order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(seed)).to(sae.W_dec.device)
    activation, groups = sae.activation, 1
    if isinstance(activation, JumpReLU):
        activation = JumpReLU(torch.cat([activation.threshold, activation.threshold[order]]))
    if isinstance(activation, GroupMax):
        groups = activation.k

    def joined(old: Tensor, new: Tensor, dim: int) -> Tensor:
        """Within each group of neighbours the new ones behind the old."""
        return torch.cat([t.unflatten(dim, (groups, -1)) for t in (old, new)], dim + 1).flatten(dim, dim + 1)

    return replace(
        sae,
        W_enc=joined(sae.W_enc, torch.zeros_like(sae.W_enc), 1),
        b_enc=joined(sae.b_enc, torch.full_like(sae.b_enc, -1.0), 0),
        W_dec=joined(sae.W_dec, sae.W_dec[order], 0),
        activation=activation,
        chunks=(),
    )
