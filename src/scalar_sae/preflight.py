"""What would stop a study later, found before it trains anything."""

import torch

from scalar_sae.activations.reading import Gradient
from scalar_sae.corpora import Corpus, windows
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.scoring.config import ScoreConfig, StudyScores, counts_of, held_out
from scalar_sae.scoring.controls import CONTROLS
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.rankings.registry import find_ranking
from scalar_sae.training.config import TrainConfig


def check_training(config: TrainConfig, lm: LanguageModel, corpus: Corpus) -> None:
    """Raise a UserError for whatever would stop training: vocabulary, context, text, sites."""
    lm.check_tokens(torch.tensor([corpus.extremes]))
    _check_context("train.context", config.context, lm)
    windows(corpus.train, config.context, corpus.name, corpus.start)
    for method in config.saes:
        for read in (read for trainee in method.trainees(lm, 0) for read in trainee.reads):
            lm.check(read.site if isinstance(read, Gradient) else read)


def check_texts(config: StudyScores, lm: LanguageModel, corpus: Corpus) -> None:
    """Raise a UserError if a text is too short to be scored on, or its prompts too long for the model."""
    _check_context("score.context", config.context, lm)
    held_out(corpus, config)


def check_pairs(train: TrainConfig, config: StudyScores, lm: LanguageModel) -> None:
    """Raise a UserError for a pair that cannot be scored: its edges do not fit the memory or the grid, or a block that
    is named is not there. It needs no text, so it comes first.
    """
    blocks = [(method, block) for method in train.saes for block in method.blocks(lm.n_layers)]
    there = {name for _, block in blocks for name in (str(block), block.kind)}
    for name in config.blocks:
        if name not in there:
            raise UserError(
                f"score.blocks: {name} is no block between two SAEs of this study; there are {', '.join(sorted(there))}"
            )
    chosen = [(method, block) for method, block in blocks if config.takes(block)]
    for method in train.saes:
        mine = [block for owner, block in chosen if owner is method]
        ends = [(site, trainee) for trainee in (method.trainees(lm, 0) if mine else ()) for site in trainee.sites]
        for block in mine:
            here = [end for end in ends if end[0].same_place(block.up) or end[0].same_place(block.down)]
            pair = Pair.between(lm, block, {site: trainee.sae(site) for site, trainee in here})
            counts_of(config.edges, pair.n_edges)
            try:
                _check_room(pair, config)
            except UserError as error:
                raise UserError(
                    f"{method.name} at {block}: {error} (this study scores {len(chosen)} pairs of SAEs in all "
                    f"{lm.n_layers} layers; --set score.blocks=[ff_block.0] scores one block)"
                ) from error


def _check_room(pair: Pair, config: StudyScores) -> None:
    for one in config.scores():
        _room(pair, one)
    for one in config.control_scores():
        if one.control == "padded" and find_ranking(one.ranking).scope == "global":
            _room(CONTROLS["padded"](pair, 0), one)


def _room(pair: Pair, config: ScoreConfig) -> int:
    n_counts = len(counts_of(config.edges, pair.n_edges))
    return find_ranking(config.ranking).room(pair, config.memory, config.context, n_counts)


def _check_context(name: str, context: int, lm: LanguageModel) -> None:
    if context > lm.context:
        raise UserError(f"{name} = {context}: {lm.name} reads at most {lm.context} tokens")
