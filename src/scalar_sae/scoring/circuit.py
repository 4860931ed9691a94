"""A whole-model circuit from end to end: rank the edges of several pairs, keep some of each, score what is left.

record = score_chain(lm, saes, sites, texts, method="topk", config=ScoreConfig(), one_order=False)
"""

import time
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from scalar_sae.errors import UserError, unknown
from scalar_sae.lm.model import LanguageModel
from scalar_sae.malloc import trim_malloc
from scalar_sae.records.results import Record
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring import chain
from scalar_sae.scoring.config import ScoreConfig, Texts, check_made_for, counts_of
from scalar_sae.scoring.memory import ranking_bytes, resident
from scalar_sae.scoring.metrics import Counts
from scalar_sae.scoring.pair import Pair, mean_ablated
from scalar_sae.scoring.rankings.ranking import EDGE_BYTES, RANKINGS, RULES, rank
from scalar_sae.scoring.resume import Partial
from scalar_sae.scoring.score import (
    DEFINITIONS,
    Done,
    check_text,
    digest,
    hash_of,
    n_live_edges,
    n_special,
    record_of,
    rules,
    settings_of,
    trained,
)
from scalar_sae.sites import Site


def score_chain(
    lm: LanguageModel,
    saes: dict[Site, SAE],
    sites: list[Site],
    texts: Texts,
    method: str,
    config: ScoreConfig,
    one_order: bool,
    done: Done = lambda n: None,
    partial: Path | None = None,
) -> Record:
    """Score a circuit through several pairs at once, each ranked by the config's first ranking.

    Args:
        lm: the model.
        saes: SAEs by site.
        sites: where the circuit's SAEs stand.
        texts: ranking and scoring prompts.
        method: the name under which the record is filed.
        config: prompts, edge grid, seed, memory.
        one_order: counts are edges of the whole circuit under one ranking; otherwise edges of each pair.
        done: called with the number of prompts that this worker finished.
        partial: folder for what is done of an unfinished record; the same call goes on from it.

    Raises:
        UserError: sites that make no chain, the authors' conventions, or what `score` raises.
    """
    start = time.perf_counter()
    check_made_for(texts, lm)
    if config.conventions != "exact":
        raise UserError(f"conventions {config.conventions}: the authors score no circuits of several pairs; take exact")
    special = lm.special_ids(config.special)
    check_text(texts, special)
    pairs = chain.chain(lm, saes, sites, special)
    ranking = next(iter(config.rankings))
    check_ranking(ranking, one_order)
    sizes = [pair.n_edges for pair in pairs]
    counts = counts_of(config.edges, sum(sizes) if one_order else max(sizes))
    if config.ablation == "mean":
        pairs = [mean_ablated(pair, texts.ranking) for pair in pairs]
    ends = {pair.block.up: pair.up for pair in pairs} | {pairs[-1].block.down: pairs[-1].down}
    hashes = {"lm": hash_of(lm.parameters())} | {str(site): digest(sae) for site, sae in ends.items()}
    settings = settings_of(config, ranking) | lm.describe() | {"budget": "one order" if one_order else "per pair"}
    identity = {"definitions": DEFINITIONS, "settings": settings, "ranking": ranking, "hashes": hashes}
    identity |= {"special_ids": special}
    identity |= {"data": texts.data, "saes": [rules(sae) for sae in ends.values()], "n": len(texts.ranking)}
    kept = Partial(partial, {**identity, "settings": {**settings, "memory": None}})
    rank_text = texts.ranking[: config.rankings[ranking]]
    keep_index = _levels(pairs, rank_text, ranking, counts, config, one_order, kept, done)
    curves = chain.curves(pairs, keep_index, len(counts), texts.scoring, kept, done)
    return record_of(
        curves,
        counts,
        (sum if one_order else max)(n_live_edges(pair, texts.ranking) for pair in pairs),
        config,
        block="->".join(map(str, sorted(sites))),
        method=method,
        ranking=ranking,
        n_up=pairs[0].up.d_sae,
        n_down=pairs[-1].down.d_sae,
        n_edges=int(counts[-1]),
        n_special=n_special(texts, special),
        special=list(special),
        config=settings,
        hashes=hashes,
        trained=trained({str(site): sae for site, sae in ends.items()}),
        data=texts.data,
        seconds=round(time.perf_counter() - start, 2),
    )


def check_ranking(ranking: str, one_order: bool) -> None:
    """Raise a UserError if a circuit cannot be ranked so."""
    if ranking not in RANKINGS:
        raise unknown("ranking of a circuit", ranking, RANKINGS)
    if one_order and ranking not in RULES:
        raise UserError(f"one order for all pairs: {ranking} compares the edges of one pair; take {', '.join(RULES)}")


def _levels(
    pairs: list[Pair],
    tokens: Int[Tensor, "prompt token"],
    ranking: str,
    counts: Counts,
    config: ScoreConfig,
    one_order: bool,
    kept: Partial,
    done: Done,
) -> list[chain.Level]:
    """Rank every pair of a circuit: the levels of their edges.

    At the most nine bytes an edge are held: the scores of all pairs, their copy in one order and the levels.
    """
    everything = sum(9 * pair.n_edges + resident(pair) for pair in pairs)
    n_token, an_edge = tokens.shape[1], EDGE_BYTES[ranking]
    besides = [everything - 4 * pair.n_edges - resident(pair) for pair in pairs]
    rooms = [
        ranking_bytes(pair, config.memory, n_token, len(counts), an_edge, beside)
        for pair, beside in zip(pairs, besides, strict=True)
    ]
    found = [
        rank(pair, tokens, ranking, config.seed, done, room, kept.unfinished_ranking().part(str(pair.block)))
        for pair, room in zip(pairs, rooms, strict=True)
    ]
    trim_malloc()
    return (chain.one_order if one_order else chain.same_budget)(found, counts, config.seed)
