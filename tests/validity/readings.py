"""What the suite reads of a score: the headline, whether a ladder worsens it, and how many planted edges come first."""

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.records.results import Faithfulness, Record
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.rankings.order import strongest
from scalar_sae.scoring.score import score
from scalar_sae.scoring.texts import Texts
from tests.validity.circuits import Planted

LEVELS: tuple[Faithfulness, ...] = get_args(Faithfulness)
TOLERANCE = 1.02
"""A headline improves if it falls by more than this factor: less is the interpolation between edge counts."""


def scored(pair: Pair, texts: Texts, **changes: Any) -> Record:
    """A score on all of the texts, with the default settings but for some."""
    return score(pair, texts, ScoreConfig(rank_prompts=len(texts.ranking), **changes), on_progress=lambda n: None)


def headline(record: Record, level: Faithfulness) -> float:
    """`faithful_at`; infinite for "never"."""
    found = record.faithful_at[level]
    return math.inf if found is None else found


def said(n: float | None) -> str:
    """An edge count as the tables say it."""
    return "never" if n is None or math.isinf(n) else f"{n:,.0f}"


def improvements(records: Iterable[Record]) -> Iterator[tuple[int, Faithfulness, float, float]]:
    """The steps of a ladder at which a worse pair has a better headline: number of the step, level, before, after."""
    for step, (better, worse) in enumerate(pairwise(records), 1):
        for level in LEVELS:
            before, after = headline(better, level), headline(worse, level)
            if after * TOLERANCE < before:
                yield step, level, before, after


def found_among(scores: Float[Tensor, "n_up n_down"], circuit: Planted, n: int) -> int:
    """How many planted edges are among the n edges of highest score."""
    up, down = strongest(scores, n, seed=0).T
    return int(circuit.edges[up, down].sum())


def permuted_labels(scores: Float[Tensor, "n_up n_down"], seed: int = 0) -> Float[Tensor, "n_up n_down"]:
    """A ranking whose downstream latents have lost their names."""
    return scores[:, torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(seed))]
