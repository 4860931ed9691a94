"""Rankings by the exact change of a downstream latent's activation when an upstream latent is removed.

At a block with attention a latent is removed at every position of the prompt at once, as an edge of a sub-circuit is.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.lm.special import counted
from scalar_sae.scoring.pair import Pair, Prompt, read
from scalar_sae.scoring.rankings import effects
from scalar_sae.scoring.rankings.base import EdgeScores, EdgewiseRanking, GlobalRanking, RankingJob, Total, summed


def add_removals(
    pair: Pair,
    prompt: Prompt,
    columns: slice,
    total: Total,
    generator: torch.Generator,
    weight: Float[Tensor, "token n_col"] | None = None,
) -> None:
    """One changed pass per upstream latent."""
    for units, effect, _ in effects.of_removal(pair, prompt, columns):
        weighted = effect if weight is None else effect * weight
        units.add_squares(total, weighted, pair.block.mixes_tokens)


class WithPrior(GlobalRanking):
    """Leave-one-out; edges without an effect on the ranking text follow, in the order of what they may have on other
    text. The order does not depend on the scale of latents.
    """

    def scores(self, job: RankingJob) -> EdgeScores:
        """Effects in units of the model's activations; those of edges without any lie below the smallest effect."""
        scores = _shown_or_likely(job)
        least = min((float(row[row > 0].min()) for row in scores if bool((row > 0).any())), default=1.0)
        most = max(-float(scores.min()), 1e-30)
        for row in scores:  # in place: there may be billions
            row[row < 0] *= -least / (2 * most)
        return scores


def _shown_or_likely(job: RankingJob) -> EdgeScores:
    """The leave-one-out effect of each edge; where it is zero, below zero: how likely it has one on other text. Both in
    units of the model's activations (times the norm of the downstream latent's decoder row), so that the order does not
    depend on the scale of latents.

    Most edges have no effect on a short text, because the downstream latent is not selected where the upstream one is
    active. So these are ordered by the root mean square of the change of the latent's pre-activation, times the root of
    the share of tokens at which the latent is active.
    """
    pair = job.pair
    density = _density(pair, job.tokens).sqrt()
    scores = pair.up.W_dec.new_empty(pair.up.d_sae, pair.down.d_sae)
    for columns, both in summed(_add_both, job, parts=2):
        effect, drive = both.chunk(2, 1)
        norms = pair.down.W_dec[columns].norm(dim=1)
        scores[:, columns] = torch.where(effect > 0, effect, -drive * density[columns]).mul_(norms)
    return scores


def _add_both(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    """The change of activations, and beside it the change of pre-activations."""
    for_effect, for_drive = total.chunk(2, 1)
    for units, effect, drive in effects.of_removal(pair, prompt, columns):
        units.add_squares(for_effect, effect, pair.block.mixes_tokens)
        units.add_squares(for_drive, drive, pair.block.mixes_tokens)


@torch.no_grad()
def _density(pair: Pair, tokens: Int[Tensor, "prompt token"]) -> Float[Tensor, " n_down"]:
    """Share of tokens at which each downstream latent is active in the full circuit; a millionth is added, so that
    latents that are never active come last, in the order of their drive.
    """
    active = pair.up.W_dec.new_zeros(pair.down.d_sae)
    for number in distributed.shard(len(tokens)):
        for prompt in read(pair, tokens[number : number + 1], number):
            active += (pair.full_circuit(prompt) > 0).sum(0)
    distributed.all_sum(active)
    return active / max(1, int(counted(tokens, pair.special).sum())) + 1e-6


LEAVE_ONE_OUT = EdgewiseRanking(
    "leave_one_out",
    "exact change of latent j's activation, after selection, when this edge alone is removed",
    rule=add_removals,
)
LEAVE_ONE_OUT_WITH_PRIOR = WithPrior(
    "leave_one_out_with_prior",
    "`leave_one_out`, then the edges without an effect on the ranking text, by how likely they have one on other text",
)
