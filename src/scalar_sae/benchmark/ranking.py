"""How important is an edge? One line a ranking: from ranking text to a score for every (up, down) edge.

| name        | score of edge (i, j): root mean square over the tokens of the ranking text of ...                   |
|-------------|----------------------------------------------------------------------------------------------------|
| `ablation`  | the exact change of latent j's activation, after selection, when i is removed and all else in place |
| `output`    | the same, weighted per token by how much the model's output feels latent j (Fisher information)     |
| `insertion` | the same change when i alone is added to the reconstruction without any latent                      |
| `shapley`   | the mean of that change as latents enter in random orders                                           |
| `ig`        | i's change times the mean gradient of relu(p_j) on the path from the ablated input, midpoint rule   |
| `gradient`  | i's change times that gradient at the input                                                         |
| `published` | the SCALAR authors' arc-length path gradient (published.py)                                         |
| `random`    | nothing: a seeded permutation, the control                                                          |

At a block with attention a latent is removed, added or followed at every position of the prompt at once, as an edge
of a sub-circuit is. `ig` and `gradient` follow relu(p_j) and not the selected activation, whose jumps a gradient
misses: so the attributions of `ig` add up to relu(p_j) at the input less relu(p_j) at the ablated input.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae import workers
from scalar_sae.benchmark import effects, published
from scalar_sae.benchmark.pair import Pair, Prompt, read

Scores = Float[Tensor, "n_up n_down"]
Total = Float[Tensor, "n_up n_col"]
"""Squared effects summed over tokens, float64, for some downstream latents (`columns`)."""

IG_STEPS = 8
SHAPLEY_ORDERS = 8
FISHER_LABELS = 4


def rank(
    pair: Pair,
    tokens: Int[Tensor, "prompt token"],
    name: str,
    seed: int,
    done: Callable[[float], None] = lambda share: None,
    room: int = 2**30,
) -> Scores:
    """Score every edge of a pair on ranking text.

    Args:
        pair: whose edges.
        tokens: the ranking text; of several workers each takes its part.
        name: one of RANKINGS.
        seed: of what is sampled (`shapley`'s orders, `output`'s labels).
        done: called with the share of a prompt's work that is finished.
        room: bytes for the float64 sums; downstream latents are ranked as many at a time as fit.
    """
    scores = pair.up.W_dec.new_empty(pair.up.d_sae, pair.down.d_sae)
    for columns, some in ranked(pair, tokens, name, seed, done, room):
        scores[:, columns] = some
    return scores


def ranked(
    pair: Pair,
    tokens: Int[Tensor, "prompt token"],
    name: str,
    seed: int,
    done: Callable[[float], None] = lambda share: None,
    room: int = 2**30,
) -> Iterator[tuple[slice, Float[Tensor, "n_up n_col"]]]:
    """The same for some downstream latents at a time, none of which is kept."""
    rule = RANKINGS[name]
    width = max(1, min(pair.down.d_sae, room // (8 * pair.up.d_sae)))
    for start in range(0, pair.down.d_sae, width):
        columns = slice(start, min(start + width, pair.down.d_sae))
        total = pair.up.W_dec.new_zeros(pair.up.d_sae, columns.stop - start, dtype=torch.float64)
        for number in workers.mine(len(tokens)):
            generator = torch.Generator().manual_seed(1_000_003 * seed + number)
            for prompt in read(pair, tokens[number : number + 1], number):
                rule(pair, prompt, columns, total, generator)
            done((columns.stop - start) / pair.down.d_sae)
        workers.add_up(total)
        yield columns, (total / tokens.numel()).sqrt().float()


def ablation(
    pair: Pair,
    prompt: Prompt,
    columns: slice,
    total: Total,
    generator: torch.Generator,
    weight: Float[Tensor, "token n_col"] | None = None,
) -> None:
    """Leave one out: exact, one changed pass per upstream latent."""
    start = pair.reconstruct(prompt.z, prompt)
    for players, effect in effects.of_a_change(pair, prompt, start, -1.0, columns):
        weighted = effect if weight is None else effect * weight
        players.add_squares(total, weighted, pair.block.mixes_tokens)


def output(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    """The same, where it matters: the root of the Fisher information weights the change."""
    weight = effects.fisher(pair, prompt, FISHER_LABELS, generator)[:, columns].sqrt()
    ablation(pair, prompt, columns, total, generator, weight)


def insertion(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    """The mirror image of `ablation`."""
    start = pair.base(prompt)
    for players, effect in effects.of_a_change(pair, prompt, start, 1.0, columns):
        players.add_squares(total, effect, pair.block.mixes_tokens)


def shapley(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    """Between the two: sampled orders. The values of a token add up to its activation less that of the ablated
    input.
    """
    players, effect = effects.of_random_orders(pair, prompt, columns, SHAPLEY_ORDERS, generator)
    players.add_squares(total, effect, pair.block.mixes_tokens)


def ig(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    """Integrated gradients, midpoint rule."""
    alphas = [(step + 0.5) / IG_STEPS for step in range(IG_STEPS)]
    for players, effect in effects.of_a_gradient(pair, prompt, columns, alphas):
        players.add_squares(total, effect, pair.block.mixes_tokens)


def gradient(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    """Activation times gradient."""
    for players, effect in effects.of_a_gradient(pair, prompt, columns, [1.0]):
        players.add_squares(total, effect, pair.block.mixes_tokens)


def random(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    """Every edge ties with every other: the seeded permutation decides."""


RANKINGS: dict[str, Callable[[Pair, Prompt, slice, Total, torch.Generator], None]] = {
    "ablation": ablation,
    "output": output,
    "insertion": insertion,
    "shapley": shapley,
    "ig": ig,
    "gradient": gradient,
    "published": published.attribution,
    "random": random,
}
