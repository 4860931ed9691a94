"""When does an edge matter? The prompts of a text on which its removal changes the prediction most."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from scalar_sae.explore.passage import passages
from scalar_sae.explore.plain import QUANTILES, EdgeExample, EdgeExamples
from scalar_sae.explore.stage import Scaled, Stage, check_latents
from scalar_sae.lm.outputs import compare
from scalar_sae.scoring.pair import Pair


@torch.no_grad()
def edge_examples(
    pair: Pair,
    up: int,
    down: int,
    tokens: Integer[Tensor, "prompt token"],
    n: int = 20,
    on_progress: Callable[[float], object] = lambda done: None,
) -> EdgeExamples:
    """The prompts of a text on which one edge matters most.

    The edge is removed from the full circuit at every position. Prompts are ordered by KL(full circuit || without the
    edge).

    Args:
        pair: the pair.
        up: upstream latent.
        down: downstream latent.
        tokens: the text.
        n: number of prompts to list, largest KL first.
        on_progress: called with the share that is done.

    Raises:
        UserError: the pair has no such latent, or the model cannot read the text.
    """
    check_latents(pair, [up], [down])
    found: list[tuple[float, int, int, float]] = []
    sums, n_reached, n_text = 0.0, 0, 0
    for number, passage in enumerate(passages([pair], tokens)):
        stage = passage.last
        acts, effect = without_edge(stage, up, down)
        kl, at = 0.0, int(effect.abs().argmax())
        if effect.any():
            after = compare(passage.lm, passage.end(acts), [passage.full_log_probs], passage.tokens).kl[0, 0]
            kl = float(stage.prompt.mean(after))
            n_reached += 1
        n_here = int(stage.prompt.text.sum())
        sums, n_text = sums + kl * n_here, n_text + n_here
        found.append((kl, number, at, float(effect[at])))
        on_progress((number + 1) / len(tokens))
    found.sort(key=lambda row: (-row[0], row[1]))
    return EdgeExamples(
        up=up,
        down=down,
        n_prompts=len(found),
        n_reached=n_reached,
        kl=sums / max(1, n_text),
        quantiles=tuple(np.quantile([row[0] for row in found], QUANTILES).tolist()),
        examples=tuple(
            EdgeExample(prompt=number, position=at, effect=effect, kl=kl) for kl, number, at, effect in found[:n]
        ),
    )


def without_edge(stage: Stage, up: int, down: int) -> tuple[Float[Tensor, "token n_down"], Float[Tensor, " token"]]:
    """Downstream activations of the full circuit without one edge, at every position, and what the edge adds to the
    downstream latent's. It is computed in one way with and without the edge, so that it is 0 where nothing is removed.
    """
    with_it, without = (
        stage.acts(None, [Scaled(up, down, stage.change.new_full((len(stage.change),), factor))]) for factor in (1, 0)
    )
    return without, (with_it - without)[:, down]
