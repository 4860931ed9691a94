"""One prompt under a pair, or under a chain of consecutive pairs, and what is computed once for it.

In a chain, what a pair leaves at its downstream site is what the next pair starts from (scoring/chain.py).
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.explore.measure import Readings, References
from scalar_sae.explore.stage import Kept, Scaled, Stage
from scalar_sae.kernels import FastCPUOps
from scalar_sae.lm.cached_run import CachedRun
from scalar_sae.lm.outputs import compare, kl, log_probs
from scalar_sae.scoring.pair import Pair, read


class Passage:
    """One prompt under some pairs."""

    def __init__(self, pairs: Sequence[Pair], tokens: Integer[Tensor, "one token"]) -> None:
        """Run the model on a prompt.

        Args:
            pairs: consecutive pairs.
            tokens: one prompt.

        Raises:
            UserError: the model cannot read the tokens, or an activation is not finite.
        """
        self.lm = pairs[0].lm
        self.tokens = tokens.to(pairs[0].device)
        self.stages: list[Stage] = []
        """The pairs in the full circuit: each starts from what the one before it leaves with every edge."""
        for pair in pairs:
            stage = Stage(pair, next(read(pair, tokens)))
            self.stages.append(stage.starting_from(self.stages[-1].full) if self.stages else stage)

    @property
    def last(self) -> Stage:
        """The last pair."""
        return self.stages[-1]

    @torch.no_grad()
    def run(
        self, kept: Sequence[Kept], scaled: Sequence[Sequence[Scaled]] | None = None
    ) -> list[tuple[Stage, Float[Tensor, "token _n_down"]]]:
        """Each pair as it is reached under circuits and interventions, with its downstream activations."""
        found: list[tuple[Stage, Tensor]] = []
        for number, stage in enumerate(self.stages):
            here = stage.starting_from(found[-1][1]) if found else stage
            found.append((here, here.acts(kept[number], () if scaled is None else scaled[number])))
        return found

    @torch.no_grad()
    def end(self, acts: Float[Tensor, "token n_down"]) -> Float[Tensor, "one token d_model"]:
        """What stands behind the model's last layer when the last pair leaves these activations."""
        prompt = self.last.prompt
        return self.last.pair.run_on(self.last.pair.decoded(acts, prompt).unsqueeze(0), prompt)

    @cached_property
    @torch.no_grad()
    def full_run(self) -> CachedRun:
        """The rest of the model behind the full circuit."""
        pair, prompt = self.last.pair, self.last.prompt
        with FastCPUOps():
            x = pair.decoded(self.last.full, prompt).unsqueeze(0)
            return self.lm.cached_run(pair.splice_site, x, prompt.down_skip)

    @torch.no_grad()
    def ends_at(self, position: int, acts: Float[Tensor, "row n_down"]) -> Float[Tensor, "row one d_model"]:
        """What stands behind the model's last layer at a token when the last pair leaves these activations there, and
        those of the full circuit at every other token.
        """
        here = self.last.rows(slice(position, position + 1)).prompt
        with FastCPUOps():
            x = self.last.pair.decoded(acts.unsqueeze(1), here)
            return self.full_run.varied(position, x[:, 0]).unsqueeze(1)

    @cached_property
    @torch.no_grad()
    def own_end(self) -> Float[Tensor, "one token d_model"]:
        """What stands behind the last layer in the model."""
        prompt = self.last.prompt
        return self.last.pair.run_on(prompt.x_spliced, prompt)

    @cached_property
    def own_log_probs(self) -> Float[Tensor, "one token d_vocab"]:
        """Next-token log-probabilities of the model."""
        return log_probs(self.lm, self.own_end)

    @cached_property
    def full_log_probs(self) -> Float[Tensor, "one token d_vocab"]:
        """Next-token log-probabilities of the full circuit."""
        return log_probs(self.lm, self.full_run.end)

    def log_probs_at(self, position: int) -> tuple[Float[Tensor, "one one d_vocab"], Float[Tensor, "one one d_vocab"]]:
        """Next-token log-probabilities of the model and of the full circuit, after one token."""
        own, full = (log_probs(self.lm, end[:, position : position + 1]) for end in (self.own_end, self.full_run.end))
        return own, full

    @torch.no_grad()
    def readings(self, kept: Sequence[Kept]) -> Readings:
        """KL divergences and counts at every token under a circuit."""
        found = self.run(kept)
        references = [self.own_log_probs, self.full_log_probs]
        kl = compare(self.lm, self.end(found[-1][1]), references, self.tokens).kl[:, 0]
        live = [stage.n_live_edges(k, acts) for (stage, acts), k in zip(found, kept, strict=True)]
        return Readings(
            edges=sum(s.pair.n_edges if k is None else int(k.sum()) for s, k in zip(self.stages, kept, strict=True)),
            text=self.last.prompt.text,
            kl_model=kl[0],
            kl_circuit=kl[1],
            live_edges=torch.stack(live).sum(0),
            l0_down=(found[-1][1] > 0).sum(1),
            references=self._references,
        )

    @cached_property
    def _references(self) -> References:
        nothing = [s.change.new_zeros(s.pair.up.d_sae, s.pair.down.d_sae, dtype=torch.bool) for s in self.stages]
        own, full = self.own_log_probs, self.full_log_probs
        prompt, mean = self.last.prompt, self.last.pair.site_mean
        of_mean = None
        if mean is not None:
            x = prompt.with_own(mean.expand_as(prompt.x_spliced), prompt.x_spliced)
            of_mean = compare(self.lm, self.last.pair.run_on(x, prompt), [own], self.tokens).kl[0, 0]
        return References(
            kl_nothing=compare(self.lm, self.end(self.run(nothing)[-1][1]), [full], self.tokens).kl[0, 0],
            kl_mean=of_mean,
            floor_kl=torch.stack([kl(p, q) for p, q in zip(own[0], full[0], strict=True)]),
        )


def passages(pairs: Sequence[Pair], tokens: Integer[Tensor, "prompt token"]) -> Iterator[Passage]:
    """The prompts of a text, one after the other.

    Raises:
        UserError: the model cannot read the tokens, or an activation is not finite.
    """
    for row in tokens.long().split(1):
        yield Passage(pairs, row)


def check_consecutive(pairs: Sequence[Pair]) -> None:
    """Check that each pair begins where the one before it ends, with the same SAE.

    Raises:
        UserError: they do not, or there is no pair.
    """
    if not pairs:
        raise UserError("no pairs: a journey takes at least one")
    for first, second in pairwise(pairs):
        same = (
            first.lm is second.lm and first.block.down.same_place(second.block.up) and first.special == second.special
        )
        if not same or first.down.W_dec.shape != second.up.W_dec.shape or not first.down.W_dec.equal(second.up.W_dec):
            raise UserError(f"{first.block}, {second.block}: the second pair does not begin where the first ends")
