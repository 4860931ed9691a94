"""The benchmark from end to end: rank edges on one text, sweep sub-circuits on another, score the curve.

record = score(pair, texts, "leave_one_out")
record = score(pair, texts, ScoreConfig(ranking="local", edges="coarse"), method="topk")
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.console import Bar
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import say_special
from scalar_sae.malloc import trim_malloc
from scalar_sae.records.results import Curves, Record
from scalar_sae.scoring.ablation import ablated, mean_ablated
from scalar_sae.scoring.config import ScoreConfig, ScoreSettings, counts_of
from scalar_sae.scoring.controls import CONTROLS
from scalar_sae.scoring.conventions import CONVENTIONS
from scalar_sae.scoring.curve import measure
from scalar_sae.scoring.metrics import Counts
from scalar_sae.scoring.pair import Pair, Prompt, read, with_site_mean
from scalar_sae.scoring.rankings.base import KeepJob, OnProgress, Ranking
from scalar_sae.scoring.rankings.registry import DEFAULT, find_ranking
from scalar_sae.scoring.record import addresses, describe_pair, record_of, rules, settings_of
from scalar_sae.scoring.resume import Partial
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import Edges
from scalar_sae.scoring.texts import Texts

DEFINITIONS = 5
"""Changes when what a ranking or a curve is does: nothing that was begun before is gone on with."""

PROMPTS_A_TRIM = 8
"""Prompts after which a sweep hands back what was freed. Their buffers differ in size, so that the gaps between those
that live grow from prompt to prompt, by up to a few megabytes."""


def score(
    pair: Pair,
    texts: Texts,
    ranking: str | ScoreConfig = DEFAULT,
    *,
    method: str = "saes",
    on_progress: OnProgress | None = None,
    partial: Path | None = None,
) -> Record:
    """Rank the edges of a pair on one text, sweep its sub-circuits on another, and score the curve.

    Args:
        pair: what is scored.
        texts: ranking and scoring prompts.
        ranking: how edges are ranked: the name of a ranking, or a path to a score matrix [n_up, n_down], with the
            default settings; or all settings.
        method: the name under which the record is filed.
        on_progress: called with the number of prompts that this worker finished, first of ranking, then of scoring.
            None: a progress bar is shown.
        partial: folder for what is done of an unfinished record; the same call goes on from it.

    Raises:
        UserError: an unknown ranking, a score matrix of the wrong shape, NaN anywhere, too little memory, text of
            special tokens alone, of another tokenizer than the model's, or that the SAEs were trained on.
    """
    config = ranking if isinstance(ranking, ScoreConfig) else ScoreConfig(ranking=ranking)
    if on_progress is not None:
        return _score(pair, texts, config, method, on_progress, partial)
    total = config.steps(len(texts.ranking[: config.n_rank_prompts]), len(texts.scoring))
    with Bar("score", total / distributed.world_size()) as bar:
        return _score(pair, texts, config, method, bar.step, partial)


def _score(
    pair: Pair, texts: Texts, config: ScoreConfig, method: str, on_progress: OnProgress, partial: Path | None
) -> Record:
    start, ranking = time.perf_counter(), find_ranking(config.ranking)
    texts = texts.compared([pair.up, pair.down], allow=config.allow_trained_text)
    pair = prepared(pair, texts, config)
    counts = counts_of(config.edges, pair.n_edges)
    about = describe_pair(pair, texts)
    half_texts = _halves(texts, config, ranking)
    identity = _identity(pair, texts, config, ranking, method, about["hashes"])

    def curves_of(ranked: Texts, identity: dict[str, Any]) -> tuple[Curves, int]:
        """The curves of the order of edges that some ranking text gives, and the edges that can matter. What ablated
        latents are set to comes from all of the ranking text.
        """
        checkpoint, n_ranked = Partial(partial, identity), min(config.n_rank_prompts, len(ranked.ranking))
        job = KeepJob(pair, ranked, n_ranked, counts, config.seed, config.memory, checkpoint, on_progress)
        edges = ranking.edges(job)
        return _sweep(pair, texts, edges.of, counts, config, checkpoint, on_progress), edges.n_live

    curves, n_live = curves_of(texts, identity)
    halves = [
        curves_of(replace(texts, ranking=half), identity | {"half": number})[0]
        for number, half in enumerate(half_texts)
    ]
    return record_of(
        curves,
        counts,
        n_live,
        config,
        halves=halves,
        method=method,
        ranking=config.ranking,
        scope=ranking.scope,
        control=config.control,
        config=settings_of(config, texts) | pair.lm.describe() | addresses(pair),
        seconds=round(time.perf_counter() - start, 2),
        **about,
    )


def _halves(texts: Texts, config: ScoreConfig, ranking: Ranking) -> list[Int[Tensor, "prompt token"]]:
    """The two halves of the ranking prompts, if they are ranked on too.

    Raises:
        UserError: the ranking does not depend on them, or there is only one prompt.
    """
    if not config.rank_halves:
        return []
    if not ranking.reads_text:
        raise UserError(f"rank_halves: the order {config.ranking} does not depend on the ranking text; leave it out")
    tokens = texts.ranking[: config.n_rank_prompts]
    if len(tokens) < 2:
        raise UserError("rank_halves: one ranking prompt has no halves; rank on more prompts, or leave it out")
    return [tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]]


def prepared(pair: Pair, texts: Texts, config: ScoreConfig) -> Pair:
    """The pair as it is scored: with its special tokens, as a control, with the means of the ranking text.

    Raises:
        UserError: text of special tokens alone or of another tokenizer than the model's.
    """
    pair = replace(pair, special=pair.lm.special_ids(config.special))
    texts.check(pair.lm, pair.special)
    pair = CONTROLS[config.control](pair, config.seed) if config.control else pair
    pair = pair if config.ablation == "zero" else mean_ablated(pair, texts.ranking)
    return with_site_mean(pair, texts.ranking)


def _identity(
    pair: Pair, texts: Texts, config: ScoreConfig, ranking: Ranking, method: str, hashes: dict[str, str]
) -> dict[str, Any]:
    """Everything that a record depends on: work that was begun under the same identity goes on."""
    n = [len(texts.ranking[: config.n_rank_prompts]), len(texts.ranking)]
    identity: dict[str, Any] = {"definitions": DEFINITIONS, "method": method, "n": n, "hashes": hashes}
    identity |= {"block": str(pair.block), "reads": str(pair.encode_site), "special_ids": pair.special}
    identity |= {"data": texts.data, "saes": [rules(sae) for sae in (pair.up, pair.down)]}
    identity |= {"scores": ranking.fingerprint(pair)}
    return identity | config.model_dump(mode="json", exclude={"memory"})


def say_left_out(lm: LanguageModel, texts: Texts, config: ScoreSettings) -> None:
    """Tell the user how many positions hold special tokens."""
    ids = lm.special_ids(config.special)
    say_special(torch.cat([texts.ranking, texts.scoring]), ids, "positions of the ranking and the scored text")


def _sweep(
    pair: Pair,
    texts: Texts,
    edges_of: Callable[[Prompt], Edges],
    counts: Counts,
    config: ScoreConfig,
    kept: Partial,
    on_progress: OnProgress,
) -> Curves:
    """The curve of every prompt, each written down as it is finished."""
    found = kept.curves()
    tokens, readout = texts.scoring, Readout.of(pair)
    reaches_all = bool(counts[-1] == pair.n_edges)
    for done_before, number in enumerate(distributed.shard(len(tokens))):
        if done_before % PROMPTS_A_TRIM == 0:
            trim_malloc()
        if number not in found:
            conventions, draws = CONVENTIONS[config.conventions], list[Curves]()
            for one in ablated(pair, texts.ranking, config, number):
                (prompt,) = read(one, tokens[number : number + 1], number)
                edges, mine = edges_of(prompt), replace(readout, pair=one)
                draws.append(measure(one, prompt, edges, len(counts), reaches_all, conventions, mine))
            found[number] = Curves.worst(draws)
            kept.keep_curve(number, found[number])
        on_progress(1)
    found = distributed.all_gather_dict(found)
    return Curves.side_by_side([found[number] for number in range(len(tokens))])
