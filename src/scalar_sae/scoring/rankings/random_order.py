"""The control among rankings: all edges tie, so the seed alone decides."""

import torch

from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.scoring.rankings.base import EdgewiseRanking, Total


def _add(pair: Pair, prompt: Prompt, columns: slice, total: Total, generator: torch.Generator) -> None:
    pass


RANDOM = EdgewiseRanking("random", "a random order that the seed fixes, as a control", reads_text=False, rule=_add)
