"""Questions about one prompt under a pair of SAEs, or under a chain of consecutive pairs.

    journey = Journey(pair, "def main():")
    journey.measure(circuit)                          # how much these edges carry, on this prompt
    journey.edges(position=4)                         # which edges act on the downstream latents at a token
    journey.outputs(position=4)                       # what those latents do to the prediction after it
    journey.curve(position=4)                         # how much of the prediction the strongest local edges carry
    journey.intervene([Intervention(up=17, down=40)]) # the prediction with and without an edge
    journey.split(17, 40, position=4)                 # the source positions and heads that carry an edge

In a chain, what a pair leaves at its downstream site is what the next pair starts from (scoring/chain.py). The full
circuit keeps every edge of every pair. Every number is computed by running the model; nothing is linearised.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.explore import local, split
from scalar_sae.explore.circuit import Circuit
from scalar_sae.explore.measure import measured
from scalar_sae.explore.passage import Passage, check_consecutive
from scalar_sae.explore.plain import (
    Change,
    Intervention,
    LocalCurve,
    LocalEdges,
    Measured,
    Outputs,
    Split,
    TokenChange,
)
from scalar_sae.explore.stage import Kept, Scaled, Stage, check_latents
from scalar_sae.lm.outputs import compare, kl, log_probs
from scalar_sae.scoring.pair import Pair
from scalar_sae.sites import Block

Circuits = Circuit | Sequence[Circuit]
"""A circuit, or one for each pair of a chain."""
OnProgress = Callable[[float], object]
"""Called with the share of the work that is done, from 0 to 1. An exception raised in it stops the work."""


class Journey:
    """One prompt under a pair or a chain of pairs, and what is computed once for it."""

    def __init__(self, pairs: Pair | Sequence[Pair], prompt: str | Integer[Tensor, "one token"]) -> None:
        """Read a prompt.

        Args:
            pairs: a pair, or consecutive pairs: each begins where the one before it ends.
            prompt: a text, or one prompt of token ids.

        Raises:
            UserError: the pairs are not consecutive, there are several prompts, or the model cannot read the prompt.
        """
        pairs = [pairs] if isinstance(pairs, Pair) else list(pairs)
        check_consecutive(pairs)
        tokens = pairs[0].lm.tokens(prompt) if isinstance(prompt, str) else prompt.long()
        if len(tokens) != 1:
            raise UserError(f"{len(tokens)} prompts: a journey takes one; give tokens[:1]")
        self._passage = Passage(pairs, tokens)
        self.lm = pairs[0].lm
        self.tokens: list[int] = tokens[0].tolist()
        self.stages = self._passage.stages
        self._last_local: tuple[Stage, int, local.Local] | None = None

    @property
    def pairs(self) -> list[Pair]:
        """The pairs, in the order of the forward pass."""
        return [stage.pair for stage in self.stages]

    @property
    def texts(self) -> list[str]:
        """The text of each token."""
        return self.lm.tokenizer.pieces(self.tokens)

    def latents(self, block: Block | str | None = None) -> tuple[Float[Tensor, "token n_up"], Tensor]:
        """Upstream and downstream activations in the full circuit: [token, n_up] and [token, n_down].

        Args:
            block: the pair's block; None: the only pair.

        Raises:
            UserError: there is no such pair.
        """
        stage = self.stage(block)
        return stage.prompt.z, stage.full

    def measure(self, circuits: Circuits | None = None, position: int | None = None) -> Measured:
        """Measure how much of the full circuit and of the model some edges carry on this prompt.

        Args:
            circuits: a circuit, or one for each pair; None: every edge.
            position: the token whose prediction is compared; None: the mean over the ordinary tokens.

        Raises:
            UserError: the circuits belong to other pairs, there is no such token, or an output is not finite.
        """
        readings = self._passage.readings(self._kept(circuits))
        return measured([readings if position is None else readings.at(self.index(position))])

    def intervene(
        self,
        interventions: Sequence[Intervention],
        circuits: Circuits | None = None,
        position: int = -1,
        n: int = 10,
    ) -> Change:
        """Compute the next-token distribution before and after some interventions.

        Interventions compose. The factors of those that name the same latent or edge at the same position are
        multiplied, so their order does not matter. An intervention changes numbers and not the circuit: an edge that
        the circuit lacks stays absent, and a latent whose edges are all removed is computed from ablated inputs.

        Args:
            interventions: what is changed.
            circuits: the circuit that is changed, or one for each pair; None: every edge.
            position: the token after which the prediction is shown.
            n: number of next tokens to show.

        Raises:
            UserError: a pair, latent or position does not exist, or the circuits belong to other pairs.
        """
        at, kept = self.index(position), self._kept(circuits)
        scaled = [self._scaled(one) for one in interventions]
        before = self._passage.run(kept)
        by_stage: list[list[Scaled]] = [[] for _ in self.stages]
        for number, one in scaled:
            by_stage[number].append(one)
        end, prompt = self._passage.end(self._passage.run(kept, by_stage)[-1][1]), self.stages[-1].prompt
        whole = (
            self._passage.full_log_probs if circuits is None else log_probs(self.lm, self._passage.end(before[-1][1]))
        )
        divergence = compare(self.lm, end, [whole], prompt.tokens).kl[0, 0]
        after = log_probs(self.lm, end[:, at : at + 1])[0, 0]
        return Change(
            tokens=tuple(self.tokens),
            interventions=tuple(interventions),
            reached=tuple(_reached(one, *before[number], kept[number]) for number, one in scaled),
            position=at,
            kl=float(divergence[at]),
            kl_mean=float(prompt.mean(divergence)),
            next_tokens=self._changes(whole[0, at], after, n),
        )

    def edges(
        self,
        position: int,
        n: int = 50,
        block: Block | str | None = None,
        on_progress: OnProgress = lambda done: None,
    ) -> LocalEdges:
        """The edges that act on the downstream latents at a token, by the exact effect of removing each.

        One active upstream latent is removed at one position from the input of one downstream latent, and everything
        else stays as in the full circuit. At a block with attention the source may be an earlier token.

        Args:
            position: the token of the downstream latents.
            n: number of edges to list, largest first.
            block: the pair's block in a chain; None: the only pair.
            on_progress: called with the share that is done.

        Raises:
            UserError: there is no such token or pair, or n is above local.MOST.
        """
        at, stage = self.index(position), self.stage(block)
        if not 0 <= n <= local.MOST:
            raise UserError(f"{n} edges: at most {local.MOST:,} are listed at once")
        return local.edges(stage, at, n, self._local_edges(stage, at, on_progress))

    def outputs(
        self, position: int, n: int = 5, most: int = 50, on_progress: OnProgress = lambda done: None
    ) -> Outputs:
        """The most probable next tokens after a token, and what each active downstream latent there adds to them.

        Each latent is removed at this token alone, and the rest of the model is run.

        Args:
            position: the token.
            n: number of next tokens.
            most: number of latents: those that are most active, in units of the model's activations.
            on_progress: called with the share that is done.

        Raises:
            UserError: there is no such token.
        """
        at = self.index(position)
        return local.outputs(self._passage, at, n, most, on_progress)

    def curve(
        self,
        position: int,
        counts: Sequence[int] | None = None,
        block: Block | str | None = None,
        on_progress: OnProgress = lambda done: None,
    ) -> LocalCurve:
        """How much of the prediction after a token the strongest local edges carry.

        The downstream latents at the token are computed from the n strongest edges of `edges`. Every other token, and
        every other pair of a chain, keeps the full circuit.

        Args:
            position: the token.
            counts: numbers of edges; None: 0, 1, 2, 5, 10, ... up to all edges with an effect. The full circuit is
                added.
            block: the pair's block in a chain; None: the only pair.
            on_progress: called with the share that is done.

        Raises:
            UserError: there is no such token or pair.
        """
        at, stage = self.index(position), self.stage(block)
        edges = self._local_edges(stage, at, lambda done: on_progress(done / 2))
        found = local.kept_at(stage, at, counts, edges, lambda done: on_progress((1 + done) / 2))
        acts = found.acts
        for behind in self.stages[self.stages.index(stage) + 1 :]:
            acts = local.acts_at(behind, at, acts)
        after = log_probs(self.lm, self._passage.ends_at(at, acts))
        kl_model, kl_circuit = (kl(before, after)[:, 0].tolist() for before in self._passage.log_probs_at(at))
        nothing = kl_circuit[0]
        on_progress(1.0)
        return LocalCurve(
            block=str(stage.pair.block),
            position=at,
            edges=tuple(found.counts),
            kl_model=tuple(kl_model),
            kl_circuit=tuple(kl_circuit),
            recovery=tuple(1 - value / (nothing if nothing > 0 else 1.0) for value in kl_circuit),
        )

    def split(
        self,
        up: int,
        down: int,
        position: int,
        block: Block | str | None = None,
        on_progress: OnProgress = lambda done: None,
    ) -> Split:
        """The source positions and attention heads that carry an edge to a token. The parts add up to the edge.

        Args:
            up: upstream latent.
            down: downstream latent.
            position: the token of the downstream latent.
            block: the pair's block in a chain; None: the only pair.
            on_progress: called with the share that is done.

        Raises:
            UserError: there is no such token, pair or latent; or the block holds several attention layers, or an
                attention module whose heads cannot be told apart.
        """
        at, stage = self.index(position), self.stage(block)
        check_latents(stage.pair, [up], [down])
        return split.split(stage, up, down, at, on_progress)

    def index(self, position: int) -> int:
        """A position from the beginning of the prompt.

        Raises:
            UserError: the prompt has no such token.
        """
        n = len(self.tokens)
        if not -n <= position < n:
            raise UserError(f"position {position}: the prompt has {n} tokens")
        return position % n

    def stage(self, block: Block | str | None = None) -> Stage:
        """The pair of a block, in the full circuit.

        Raises:
            UserError: there is no such pair, or several and none is named.
        """
        names = [str(stage.pair.block) for stage in self.stages]
        if block is None:
            if len(names) > 1:
                raise UserError(f"several pairs: name the block, one of {', '.join(names)}")
            return self.stages[0]
        wanted = str(Block.of(block))
        if wanted not in names:
            raise UserError(f"block {wanted}: expected one of {', '.join(names)}")
        return self.stages[names.index(wanted)]

    def _local_edges(self, stage: Stage, at: int, on_progress: OnProgress) -> local.Local:
        """All local edges at a token. The last ones are kept, since most questions are about the same token."""
        if self._last_local is None or self._last_local[:2] != (stage, at):
            self._last_local = (stage, at, local.local(stage, at, on_progress))
        on_progress(1.0)
        return self._last_local[2]

    def _kept(self, circuits: Circuits | None) -> list[Kept]:
        if circuits is None:
            return [None] * len(self.stages)
        circuits = [circuits] if isinstance(circuits, Circuit) else list(circuits)
        if [circuit.pair for circuit in circuits] != self.pairs:
            raise UserError("the circuits are not those of the journey's pairs; build one from each of its pairs")
        return [circuit.kept for circuit in circuits]

    def _scaled(self, one: Intervention) -> tuple[int, Scaled]:
        """An intervention on this prompt, and the number of its pair."""
        stage = self.stage(one.block)
        check_latents(stage.pair, [one.up], [one.down])
        factor = torch.ones(len(self.tokens), device=stage.pair.device)
        factor[... if one.positions is None else [self.index(position) for position in one.positions]] = one.factor
        return self.stages.index(stage), Scaled(one.up, one.down, factor)

    def _changes(
        self, before: Float[Tensor, " d_vocab"], after: Float[Tensor, " d_vocab"], n: int
    ) -> tuple[TokenChange, ...]:
        """The n tokens whose probability changes most, from log-probabilities."""
        shown = (after.exp() - before.exp()).abs().topk(min(n, len(before))).indices.tolist()
        logit, logit_after = before - before.mean(), after - after.mean()
        return tuple(
            TokenChange(
                token=token,
                text=text,
                logit=float(logit[token]),
                logit_after=float(logit_after[token]),
                change=float(logit_after[token] - logit[token]),
                p=float(before[token].exp()),
                p_after=float(after[token].exp()),
            )
            for token, text in zip(shown, self.lm.tokenizer.pieces(shown), strict=True)
        )


def _reached(one: Scaled, stage: Stage, acts: Float[Tensor, "token n_down"], kept: Kept) -> int:
    """Number of positions at which an intervention changes an activation."""
    there = one.factor != 1
    if one.up is None:
        return int((there & (acts[:, one.down] != 0)).sum())
    if one.down is not None and kept is not None and not kept[one.up, one.down]:
        return 0
    return int((there & (stage.change[:, one.up] != 0)).sum())
