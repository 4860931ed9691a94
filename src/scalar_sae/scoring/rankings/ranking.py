"""How important is an edge? One line a ranking: from ranking text to a score for every (up, down) edge.

| name | score of edge (i, j): root mean square over the tokens of the ranking text of ... |
|---|---|
| `leave_one_out` | the exact change of latent j's activation, after selection, when i alone is removed |
| `leave_one_out_with_prior` | the same; edges without an effect follow, by the change of p_j and j's density |
| `fisher` | `leave_one_out`, weighted per token by the Fisher information of j for the model's output |
| `shapley` | the mean of the change as latents enter in random orders |
| `ig` | integrated gradients of relu(p_j) from the ablated input, midpoint rule |
| `published` | the SCALAR authors' arc-length path gradient (published.py) |
| `random` | nothing: a seeded permutation, the control |

Special tokens (lm/special.py) hold no latents and are not among the tokens that are summed over.

At a block with attention a latent is removed or followed at every position of the prompt at once, as an edge of a
sub-circuit is. `ig` follows relu(p_j) and not the selected activation, because a gradient misses the jumps of the
selected activation. So its attributions add up to relu(p_j) at the input less relu(p_j) at the ablated input.

The orders by `leave_one_out_with_prior` and `fisher` do not depend on the scale of latents. The others are in units of
the downstream latent.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.lm.special import counted
from scalar_sae.scoring.pair import Pair, Prompt, read
from scalar_sae.scoring.rankings import effects, published
from scalar_sae.scoring.rankings.unfinished import Unfinished

EdgeScores = Float[Tensor, "n_up n_down"]
Total = Float[Tensor, "n_up n_col"]
"""Squared effects summed over tokens, float64, for some downstream latents (`columns`)."""

Rule = Callable[[Pair, Prompt, slice, Total, torch.Generator], None]
"""Adds a prompt's squared effects to the total."""

IG_STEPS = 8
SHAPLEY_ORDERS = 8
FISHER_LABELS = 4


@dataclass(frozen=True, eq=False)
class RankingJob:
    """What is ranked, and what is told and kept of it on the way."""

    pair: Pair
    """Whose edges."""
    tokens: Int[Tensor, "prompt token"]
    """The ranking text; of several workers each takes its part."""
    seed: int
    """Of what is sampled (`shapley`'s orders, `fisher`'s labels)."""
    on_progress: Callable[[float], object]
    """Called with the share of a prompt's work that is finished."""
    room: int
    """Bytes for the float64 sums; downstream latents are ranked as many at a time as fit."""
    kept: Unfinished = field(default_factory=Unfinished)
    """Where what is found is written, and read if it is there already."""


def rank(
    pair: Pair,
    tokens: Int[Tensor, "prompt token"],
    name: str,
    seed: int,
    on_progress: Callable[[float], object] = lambda share: None,
    room: int = 2**30,
    kept: Unfinished | None = None,
) -> EdgeScores:
    """Score every edge of a pair on ranking text; `name` is one of RANKINGS, the others are as in Work."""
    return RANKINGS[name](RankingJob(pair, tokens, seed, on_progress, room, kept or Unfinished()))


def whole(rule: Rule, work: RankingJob) -> EdgeScores:
    """What a rule finds, for all downstream latents."""
    scores = work.pair.up.W_dec.new_empty(work.pair.up.d_sae, work.pair.down.d_sae)
    for columns, some in summed(rule, work):
        scores[:, columns] = some
    return scores


def summed(rule: Rule, work: RankingJob, parts: int = 1) -> Iterator[tuple[slice, Float[Tensor, "n_up n_total"]]]:
    """Root mean square over tokens of what a rule finds, some downstream latents at a time, none of which stays in
    memory.

    A rule may find several numbers an edge, in `parts` side by side.
    """
    n_up, n_down = work.pair.up.d_sae, work.pair.down.d_sae
    width = max(1, min(n_down, work.room // (8 * parts * n_up)))
    for start in range(0, n_down, width):
        columns = slice(start, min(start + width, n_down))
        found = work.kept.found(columns)
        (missing,) = distributed.all_max([int(found is None)])
        if found is None or missing:
            found = _sum(rule, work, columns, parts)
            work.kept.keep_found(columns, found)
        else:
            work.on_progress(len(distributed.shard(len(work.tokens))) * (columns.stop - start) / n_down)
        yield columns, found.to(work.pair.device)


def _sum(rule: Rule, work: RankingJob, columns: slice, parts: int) -> Float[Tensor, "n_up n_total"]:
    """What a rule finds for some downstream latents."""
    pair, tokens, n_col = work.pair, work.tokens, columns.stop - columns.start
    total = pair.up.W_dec.new_zeros(pair.up.d_sae, parts * n_col, dtype=torch.float64)
    n_before = work.kept.sums(columns, total)
    for n, number in enumerate(distributed.shard(len(tokens)), 1):
        if n > n_before:
            generator = torch.Generator().manual_seed(1_000_003 * work.seed + number)
            for prompt in read(pair, tokens[number : number + 1], number):
                rule(pair, prompt, columns, total, generator)
            work.kept.keep_sums(columns, n, total)
        work.on_progress(n_col / pair.down.d_sae)
    distributed.all_sum(total)
    return total.div_(max(1, int(counted(tokens, pair.special).sum()))).clamp_(min=0.0).sqrt_().float()


def leave_one_out_with_prior(work: RankingJob) -> EdgeScores:
    """`leave_one_out`, and behind it the edges that had no effect, in the order of what they may have on other text."""
    scores = _shown_or_likely(work)
    least = min((float(row[row > 0].min()) for row in scores if bool((row > 0).any())), default=1.0)
    most = max(-float(scores.min()), 1e-30)
    for row in scores:  # in place: there may be billions
        row[row < 0] *= -least / (2 * most)
    return scores


def _shown_or_likely(work: RankingJob) -> EdgeScores:
    """The effect of each edge by `leave_one_out`; where it is zero, below zero: how likely it has one on other text.
    Both in units of the model's activations (times the norm of the downstream latent's decoder row), so that the order
    does not depend on the scale of latents.

    Most edges have none on a short text, because the downstream latent is not selected where the upstream one is
    active. What they lack is chance: so the root mean square of the change of the latent's pre-activation, times the
    root of the share of tokens at which it is active.
    """
    pair = work.pair
    density = _density(pair, work.tokens).sqrt()
    scores = pair.up.W_dec.new_empty(pair.up.d_sae, pair.down.d_sae)
    for columns, both in summed(_removal, work, parts=2):
        effect, drive = both.chunk(2, 1)
        norms = pair.down.W_dec[columns].norm(dim=1)
        scores[:, columns] = torch.where(effect > 0, effect, -drive * density[columns]).mul_(norms)
    return scores


def _removal(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    """`leave_one_out`, and beside it the same change of pre-activations."""
    for_effect, for_drive = total.chunk(2, 1)
    for players, effect, drive in effects.of_removal(pair, prompt, columns):
        players.add_squares(for_effect, effect, pair.block.mixes_tokens)
        players.add_squares(for_drive, drive, pair.block.mixes_tokens)


@torch.no_grad()
def _density(pair: Pair, tokens: Int[Tensor, "prompt token"]) -> Float[Tensor, " n_down"]:
    """Share of tokens at which each downstream latent is active in the full circuit; a millionth is added, so
    that those that never are come last, in the order of the rest.
    """
    active = pair.up.W_dec.new_zeros(pair.down.d_sae)
    for number in distributed.shard(len(tokens)):
        for prompt in read(pair, tokens[number : number + 1], number):
            active += (pair.full_circuit(prompt) > 0).sum(0)
    distributed.all_sum(active)
    return active / max(1, int(counted(tokens, pair.special).sum())) + 1e-6


def leave_one_out(
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


def fisher(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    """The same, where it matters: the root of the Fisher information weights the change."""
    weight = effects.fisher(pair, prompt, FISHER_LABELS, generator)[:, columns].sqrt()
    leave_one_out(pair, prompt, columns, total, generator, weight)


def shapley(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    """Between the two: sampled orders. The values of a token add up to its activation less that of the ablated
    input.
    """
    state = generator.get_state()
    for some in effects.narrowed(pair, prompt, columns):
        generator.set_state(state)  # the same orders for all latents
        players, effect = effects.of_random_orders(pair, prompt, some, SHAPLEY_ORDERS, generator)
        of_some = total[:, some.start - columns.start : some.stop - columns.start]
        players.add_squares(of_some, effect, pair.block.mixes_tokens)


def ig(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    """Integrated gradients, midpoint rule."""
    alphas = [(step + 0.5) / IG_STEPS for step in range(IG_STEPS)]
    for players, effect in effects.of_a_gradient(pair, prompt, columns, alphas):
        players.add_squares(total, effect, pair.block.mixes_tokens)


def random(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    """Every edge ties with every other: the seeded permutation decides."""


RULES: dict[str, Rule] = {
    "leave_one_out": leave_one_out,
    "fisher": fisher,
    "shapley": shapley,
    "ig": ig,
    "published": published.attribution,
    "random": random,
}
"""Rankings that score an edge by itself."""

RANKINGS: dict[str, Callable[[RankingJob], EdgeScores]] = {
    **{name: partial(whole, rule) for name, rule in RULES.items()},
    "leave_one_out_with_prior": leave_one_out_with_prior,
}

EDGE_BYTES = dict.fromkeys(RANKINGS, 4)
"""Bytes that a ranking holds for every edge while it works, beside its sums."""
