"""What a ranking is: it says which edges of a pair each edge count keeps.

A global ranking keeps one map of edges for the whole text. It scores every edge on the ranking text, and edges are kept
in descending order of their scores. A local ranking keeps edges anew at every token of the scored text.

To add a ranking, write a file beside this one that ends in a `Ranking`, import it in `registry.py` and list it there.
Then name it in the help of `--ranking` (cli/score.py) and copy what `registry.table()` returns to scoring/README.md. A
test says what is missing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.lm.special import counted
from scalar_sae.malloc import trim_malloc
from scalar_sae.scoring.memory import ranking_bytes
from scalar_sae.scoring.metrics import Counts
from scalar_sae.scoring.pair import Pair, Prompt, n_live_edges, read
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.rankings.unfinished import Unfinished
from scalar_sae.scoring.resume import Partial
from scalar_sae.scoring.sweep.edges import Edges, GlobalEdges
from scalar_sae.scoring.texts import Texts

EdgeScores = Float[Tensor, "n_up n_down"]
Total = Float[Tensor, "n_up n_col"]
"""Squared effects summed over tokens, float64, for some downstream latents (`columns`)."""

Rule = Callable[[Pair, Prompt, slice, Total, torch.Generator], None]
"""Adds a prompt's squared effects to the total."""

OnProgress = Callable[[float], object]
"""Called with the number of prompts finished, or a share of one."""


def nothing(share: float) -> None:
    """No progress is shown."""


class KeptEdges(NamedTuple):
    """Which edges each count keeps."""

    of: Callable[[Prompt], Edges]
    """The edges, seen from a prompt."""
    n_live: int
    """Edges that can matter. Of a global ranking: those whose two latents both live somewhere in the ranking text. Of a
    local ranking: those of the busiest token."""


@dataclass(frozen=True, eq=False)
class KeepJob:
    """The edges of what pair are wanted, at which counts, on which text."""

    pair: Pair
    texts: Texts
    n_ranked: int
    """Prompts of the ranking text to rank on."""
    counts: Counts
    seed: int
    memory: float
    """Gigabytes that the process may take."""
    checkpoint: Partial
    """Where finished work is written, and read if it is there already."""
    on_progress: OnProgress


@dataclass(frozen=True, eq=False)
class RankingJob:
    """What is ranked, and what is told and kept of it on the way."""

    pair: Pair
    """Whose edges."""
    tokens: Int[Tensor, "prompt token"]
    """The ranking text; of several workers each takes its part."""
    seed: int
    """Of what is sampled (`shapley`'s orders, `fisher`'s labels)."""
    on_progress: OnProgress = nothing
    """Called with the share of a prompt's work that is finished."""
    room: int = 2**30
    """Bytes for the float64 sums; downstream latents are ranked as many at a time as fit."""
    kept: Unfinished = field(default_factory=Unfinished)
    """Where what is found is written, and read if it is there already."""


@dataclass(frozen=True)
class Ranking(ABC):
    """An order in which edges are kept."""

    name: str
    summary: str
    """What the score of an edge is: a phrase for the table in the documentation."""
    prompts: int = 64
    """Prompts that edges are ranked on by default."""
    reads_text: bool = True
    """Whether the order depends on the ranking text."""
    scope: ClassVar[Literal["global", "local"]]

    def fingerprint(self, pair: Pair) -> str:
        """What tells the ranking's scores of a pair apart.

        Raises:
            UserError: it cannot rank this pair.
        """
        return self.name

    @abstractmethod
    def room(self, pair: Pair, memory: float, n_token: int, n_counts: int) -> int:
        """Bytes that ranking can use within `memory` gigabytes, on prompts of `n_token` tokens.

        Raises:
            UserError: the memory is too small for the pair.
        """

    @abstractmethod
    def edges(self, job: KeepJob) -> KeptEdges:
        """Rank the edges of a pair.

        Raises:
            UserError: a score is NaN, or the memory is too small.
        """


@dataclass(frozen=True)
class GlobalRanking(Ranking):
    """One order of a pair's edges for the whole text."""

    edge_bytes: int = 4
    """Bytes that ranking holds for every edge, beside its sums."""
    scope = "global"

    @abstractmethod
    def scores(self, job: RankingJob) -> EdgeScores:
        """A score of every edge, on ranking text."""

    def room(self, pair: Pair, memory: float, n_token: int, n_counts: int, beside: int = 0) -> int:
        """Bytes for the float64 sums, where `beside` bytes are held for other pairs."""
        return ranking_bytes(pair, memory, n_token, n_counts, self.edge_bytes, beside)

    def edges(self, job: KeepJob) -> KeptEdges:
        """The edges of highest score."""
        trim_malloc()
        scores = self.found_scores(job)
        trim_malloc()
        edges = GlobalEdges(keep_indices(scores.to(job.pair.device), job.counts, job.seed))
        del scores  # the sweep needs one byte an edge

        def of(prompt: Prompt) -> Edges:
            return edges

        return KeptEdges(of, n_live_edges(job.pair, job.texts.ranking))

    def found_scores(self, job: KeepJob) -> EdgeScores:
        """The scores, from the checkpoint if they are there."""
        tokens = job.texts.ranking[: job.n_ranked]
        room = self.room(job.pair, job.memory, tokens.shape[1], len(job.counts))
        scores = job.checkpoint.ranking()
        if scores is not None:
            job.on_progress(len(tokens) / distributed.world_size())
            return scores
        unfinished = job.checkpoint.unfinished_ranking()
        scores = self.scores(RankingJob(job.pair, tokens, job.seed, job.on_progress, room, unfinished))
        job.checkpoint.keep_ranking(scores)
        return scores


@dataclass(frozen=True)
class EdgewiseRanking(GlobalRanking):
    """A global ranking that scores an edge by itself: scores of different pairs can be compared, and some downstream
    latents can be ranked without the others.
    """

    rule: Rule = field(kw_only=True)

    def scores(self, job: RankingJob) -> EdgeScores:
        """Root mean square over tokens of what the rule finds."""
        scores = job.pair.up.W_dec.new_empty(job.pair.up.d_sae, job.pair.down.d_sae)
        for columns, some in summed(self.rule, job):
            scores[:, columns] = some
        return scores


def summed(rule: Rule, job: RankingJob, parts: int = 1) -> Iterator[tuple[slice, Float[Tensor, "n_up n_total"]]]:
    """Root mean square over tokens of what a rule finds, some downstream latents at a time, none of which stays in
    memory.

    A rule may find several numbers an edge, in `parts` side by side.
    """
    n_up, n_down = job.pair.up.d_sae, job.pair.down.d_sae
    width = max(1, min(n_down, job.room // (8 * parts * n_up)))
    for start in range(0, n_down, width):
        columns = slice(start, min(start + width, n_down))
        found = job.kept.found(columns)
        (missing,) = distributed.all_max([int(found is None)])
        if found is None or missing:
            found = _sum(rule, job, columns, parts)
            job.kept.keep_found(columns, found)
        else:
            job.on_progress(len(distributed.shard(len(job.tokens))) * (columns.stop - start) / n_down)
        yield columns, found.to(job.pair.device)


def _sum(rule: Rule, job: RankingJob, columns: slice, parts: int) -> Float[Tensor, "n_up n_total"]:
    """What a rule finds for some downstream latents."""
    pair, tokens, n_col = job.pair, job.tokens, columns.stop - columns.start
    total = pair.up.W_dec.new_zeros(pair.up.d_sae, parts * n_col, dtype=torch.float64)
    n_before = job.kept.sums(columns, total)
    for n, number in enumerate(distributed.shard(len(tokens)), 1):
        if n > n_before:
            generator = torch.Generator().manual_seed(1_000_003 * job.seed + number)
            for prompt in read(pair, tokens[number : number + 1], number):
                if prompt.active.used.any():  # a prompt without active latents has no edges
                    rule(pair, prompt, columns, total, generator)
            job.kept.keep_sums(columns, n, total)
        job.on_progress(n_col / pair.down.d_sae)
    distributed.all_sum(total)
    return total.div_(max(1, int(counted(tokens, pair.special).sum()))).clamp_(min=0.0).sqrt_().float()
