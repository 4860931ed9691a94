"""How pairs are scored: the settings, the two texts, the edge counts."""

import re
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torch import Tensor

from scalar_sae.bounds import Address, Count, Seed, Size
from scalar_sae.corpora import Corpus, prompts_fingerprint, windows
from scalar_sae.errors import UserError, unknown
from scalar_sae.lm.special import Rule
from scalar_sae.records.results import Control
from scalar_sae.scoring import metrics
from scalar_sae.scoring.metrics import Counts
from scalar_sae.scoring.rankings.local import LOCAL
from scalar_sae.scoring.rankings.order import MOST_COUNTS
from scalar_sae.scoring.rankings.registry import DEFAULT, find_ranking
from scalar_sae.scoring.texts import Texts
from scalar_sae.sites import Block

GRIDS = ("published", "full", "coarse")
_COUNT = re.compile(r"\s*[0-9]{1,18}\s*")
PUBLISHED_PROMPTS = 576
"""Prompts that the SCALAR authors rank edges on."""
REMEDY = {
    "rank": "--rank-prompts or --context (in a preset, score.rankings or score.context)",
    "score": "--prompts or --context (in a preset, score.prompts or score.context)",
}
"""What to lower where a text is too short."""


def _written(edges: Any) -> Any:
    """A list of edge counts as text; anything else as it is."""
    if isinstance(edges, list | tuple) and all(type(count) is int for count in edges):
        return ",".join(map(str, edges))
    return edges


class ScoreSettings(BaseModel, ABC):
    """What the scores of a study have in common: text, edge counts, what happens to what is removed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompts: Count = 50
    """Prompts that are scored."""
    context: Size = Field(default=128, gt=1)
    """Tokens per prompt."""
    edges: Annotated[str, BeforeValidator(_written)] = "full"
    """Edge counts: `full` (factors of sqrt 2 to all edges), `coarse` (factors of 2), `published`, or numbers: "1,2,4"
    or [1, 2, 4]."""
    conventions: Literal["exact", "published"] = "exact"
    """`published`: as the authors' code computes the curve (see published.py)."""
    ablation: Literal["zero", "mean", "resample", "adversarial"] = Field(
        default_factory=lambda of: "zero" if of.get("conventions") == "published" else "mean"
    )
    """What an upstream latent without a kept edge is set to: `mean`, its mean over the ranking text; `zero`, as the
    authors' conventions do; `resample`, its activation at a random token of the ranking text; `adversarial`, the worst
    of several such tokens (ablation.py)."""
    special: Rule = Field(default_factory=lambda of: "count" if of.get("conventions") == "published" else "skip")
    """Special tokens: `skip` keeps the model's own activation there and counts them nowhere, `first` does so at the
    first token of every prompt too, `count` treats them like other tokens, a list of ids names others (lm/special.py).
    The authors' conventions count them."""
    overlap: bool = False
    """Rank on the scored text and take the first prompts of it, as the authors do."""
    rank_halves: bool = False
    """Also rank on each half of the ranking prompts and score both orders: intervals then include what a score owes to
    the ranking text. Scoring takes three times as long."""
    memory: float = Field(default=8.0, gt=0, le=1e6)
    """Gigabytes that scoring may take."""
    seed: Seed = 0
    """Seed of the choice of prompts, of ties and of the bootstrap."""

    @property
    @abstractmethod
    def n_rank_prompts(self) -> int:
        """Prompts of the ranking text."""

    @model_validator(mode="after")
    def _consistent(self) -> "ScoreSettings":
        if self.conventions == "published" and self.special != "count":
            raise ValueError(
                f"special = {self.special}: the published conventions count every token; leave special or conventions"
                " out"
            )
        if self.conventions == "published" and self.ablation != "zero":
            raise ValueError(
                f"ablation = {self.ablation}: the published conventions set removed latents to zero; leave ablation or"
                " conventions out"
            )
        return self


class ScoreConfig(ScoreSettings):
    """How one score of a pair is computed."""

    ranking: Address = DEFAULT
    """The order in which edges are kept: the name of a ranking, or a path to a saved score matrix."""
    rank_prompts: Count | None = None
    """Prompts that edges are ranked on; none of them is scored, unless `overlap` is set. None: as many as is usual for
    the ranking."""
    control: Control | None = None
    """Score this control of the pair instead of the pair (controls.py)."""
    allow_trained_text: bool = False
    """Score although the SAEs were trained on the text. The record says so."""

    @classmethod
    def published(cls, **changes: Any) -> "ScoreConfig":
        """The settings of the SCALAR paper's code: its ranking, edge counts and conventions. It ranks on 576 prompts
        and scores the first of them.

        Args:
            changes: fields with other values.

        Raises:
            ValidationError: the published conventions do not allow a change.
        """
        fields: dict[str, Any] = {
            "ranking": "published",
            "edges": "published",
            "conventions": "published",
            "overlap": True,
        } | changes
        if fields["ranking"] != LOCAL.name:
            fields.setdefault("rank_prompts", PUBLISHED_PROMPTS)
        return cls(**fields)

    @property
    def n_rank_prompts(self) -> int:
        """Prompts that edges are ranked on."""
        return self.rank_prompts or find_ranking(self.ranking).prompts

    def steps(self, n_ranked: int, n_scored: int) -> int:
        """Prompts that are ranked on or swept, each as often as it is."""
        return 2 * n_ranked + 3 * n_scored if self.rank_halves else n_ranked + n_scored


class StudyScores(ScoreSettings):
    """The scores that a study computes: every pair under every ranking, and controls of some pairs."""

    rankings: dict[Address, Count] = Field(
        default={DEFAULT: 64, "published": 64, "local": 1, "random": 64}, min_length=1
    )
    """Rankings by name or path to a saved score matrix, each with the number of prompts that edges are ranked on. The
    first is the study's main one."""
    blocks: tuple[Address, ...] = ()
    """Blocks that are scored, by name (`ff_block.0`) or by kind (`ff_block`); of none named, all between two SAEs."""
    fidelity_prompts: Count = 64
    """Prompts, of the training's context, on which the fidelity of the SAEs is measured."""
    controls: tuple[Control, ...] = ("padded",)
    """Controls (controls.py) of each group of SAEs at its first block, under the main ranking."""

    @property
    def n_rank_prompts(self) -> int:
        """Prompts of the ranking text: the most that a ranking uses."""
        return max(self.rankings.values())

    def takes(self, block: Block) -> bool:
        """Whether a block is scored."""
        return not self.blocks or str(block) in self.blocks or block.kind in self.blocks

    def scores(self) -> list[ScoreConfig]:
        """A score of a pair under each ranking."""
        return [self._score(ranking) for ranking in self.rankings]

    def control_scores(self) -> list[ScoreConfig]:
        """A score of each control under the main ranking."""
        return [self._score(next(iter(self.rankings)), control) for control in self.controls]

    def _score(self, ranking: str, control: Control | None = None) -> ScoreConfig:
        shared = {name: getattr(self, name) for name in ScoreSettings.model_fields}
        shared["rank_halves"] = self.rank_halves and find_ranking(ranking).reads_text
        return ScoreConfig(**shared, ranking=ranking, rank_prompts=self.rankings[ranking], control=control)


def held_out(corpus: Corpus, config: ScoreSettings) -> Texts:
    """Prompts from the validation part: ranking text from its first half, scoring text from its second.

    However few are chosen, they are spread evenly over their half (`spread`), and the first of a longer choice are the
    shorter choice. With `overlap` both are the first prompts of all of it, as they come.

    Raises:
        UserError: the text has too few windows.
    """
    first, second = (corpus.val, corpus.val) if config.overlap else corpus.halves
    parts = {"rank": (first, config.n_rank_prompts), "score": (second, config.prompts)}
    chosen: list[Tensor] = []
    for salt, (what, (tokens, wanted)) in enumerate(parts.items()):
        rows = windows(tokens, config.context, f"{corpus.name}, text to {what} on", corpus.start)
        if rows.shape[0] < wanted:
            raise UserError(
                f"{corpus.name}: {wanted} prompts of {config.context} tokens to {what} on, only {rows.shape[0]} there; "
                f"lower {REMEDY[what]}, or give a longer text"
            )
        order = spread(rows.shape[0], 2 * config.seed + salt)
        chosen.append(rows[:wanted] if config.overlap else rows[order[:wanted]])
    where = {"ranked_on": "first half of the validation part", "scored_on": "second half of the validation part"}
    if config.overlap:
        where = dict.fromkeys(where, "the start of the validation part: ranking and scoring text overlap")
    prompts = {"ranking": prompts_fingerprint(chosen[0]), "scoring": prompts_fingerprint(chosen[1])}
    return Texts(*chosen, data={**corpus.describe(), **where, "prompts": prompts})


def spread(n: int, seed: int) -> Int[Tensor, " n"]:
    """The numbers below n in an order of which every beginning is spread evenly over them, as the seed shifts it.

    The order is van der Corput's sequence: the first 2^k numbers divide the range into equal parts, and the next 2^k
    halve these.
    """
    bits = max(1, (n - 1).bit_length())
    index, reversed_ = np.arange(2**bits), np.zeros(2**bits, np.int64)
    for bit in range(bits):
        reversed_ = 2 * reversed_ + (index >> bit & 1)
    place = (reversed_ / 2**bits + np.random.default_rng(seed).random()) % 1
    order = np.minimum((place * n).astype(np.int64), n - 1)
    _, first = np.unique(order, return_index=True)  # of 2^bits >= n places some share a number
    return torch.from_numpy(order[np.sort(first)])


def counts_of(grid: str, n_edges: int) -> Counts:
    """The edge counts of a named grid or of a list such as `10,100`.

    Always among them: 0, 1, all edges, and 2^18, where the published area ends.

    Raises:
        UserError: not a grid, a count beyond the pair's edges, or more than 254 counts.
    """
    check_grid(grid)
    if grid == "full":
        counts = metrics.edge_counts(n_edges)
    elif grid == "coarse":
        counts = metrics.edge_counts(n_edges, halvings=1)
    elif grid == "published":
        counts = metrics.published_counts(n_edges)
    else:
        counts = np.array([int(part) for part in grid.split(",")])
    if counts.max() > n_edges:
        raise UserError(f"edges {counts.max()}: the pair has {n_edges} possible edges")
    counts = np.unique(np.concatenate([counts, [0, 1, min(metrics.PUBLISHED_MOST, n_edges), n_edges]]))
    if len(counts) > MOST_COUNTS:
        raise UserError(f"edges: {len(counts)} counts are more than {MOST_COUNTS}; take fewer")
    return counts


def check_grid(grid: str) -> None:
    """Raise a UserError if this is neither a grid's name nor a list of edge counts."""
    if grid not in GRIDS and not all(_COUNT.fullmatch(part) for part in grid.split(",")):
        raise unknown("edge grid", grid, [*GRIDS, "a list such as 10,100,1000"])
