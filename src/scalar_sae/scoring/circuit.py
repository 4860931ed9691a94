"""A whole-model circuit from end to end: rank the edges of several pairs, keep some of each, score what is left.

record = score_circuit(lm, saes, sites, texts, "leave_one_out")

"""

import time
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.console import Bar
from scalar_sae.digests import digest, digest_of_sae
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.malloc import trim_malloc
from scalar_sae.records.results import Record
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring import chain
from scalar_sae.scoring.ablation import DRAWS, mean_ablated
from scalar_sae.scoring.config import ScoreConfig, counts_of
from scalar_sae.scoring.memory import resident
from scalar_sae.scoring.metrics import Counts
from scalar_sae.scoring.pair import Pair, n_live_edges, with_site_mean
from scalar_sae.scoring.rankings.base import GlobalRanking, OnProgress, RankingJob
from scalar_sae.scoring.rankings.registry import DEFAULT, find_edgewise, find_global
from scalar_sae.scoring.record import record_of, rules, settings_of, trained
from scalar_sae.scoring.resume import Partial
from scalar_sae.scoring.score import DEFINITIONS
from scalar_sae.scoring.texts import Texts
from scalar_sae.sites import Site


def score_circuit(
    lm: LanguageModel,
    saes: dict[Site, SAE],
    sites: list[Site],
    texts: Texts,
    ranking: str | ScoreConfig = DEFAULT,
    *,
    one_order: bool = False,
    method: str = "saes",
    on_progress: OnProgress | None = None,
    partial: Path | None = None,
) -> Record:
    """Score a circuit through several pairs at once.

    Args:
        lm: the model.
        saes: SAEs by site.
        sites: where the circuit's SAEs stand.
        texts: ranking and scoring prompts.
        ranking: how the edges of every pair are ranked: the name of a global ranking, with the edge counts
            `coarse` and otherwise default settings; or all settings.
        one_order: counts are edges of the whole circuit under one ranking; otherwise edges of each pair.
        method: the name under which the record is filed.
        on_progress: called with the number of prompts that this worker finished. None: a progress bar is shown.
        partial: folder for what is done of an unfinished record; the same call goes on from it.

    Raises:
        UserError: sites that make no chain, the authors' conventions, a control, or what `score` raises.
    """
    config = ranking if isinstance(ranking, ScoreConfig) else ScoreConfig(ranking=ranking, edges="coarse")
    if on_progress is not None:
        return _score_circuit(lm, saes, sites, texts, config, one_order, method, on_progress, partial)
    total = len(texts.scoring) + len(texts.ranking[: config.n_rank_prompts]) * (len(sites) - 1)
    with Bar("circuit", total / distributed.world_size()) as bar:
        return _score_circuit(lm, saes, sites, texts, config, one_order, method, bar.step, partial)


def _score_circuit(
    lm: LanguageModel,
    saes: dict[Site, SAE],
    sites: list[Site],
    texts: Texts,
    config: ScoreConfig,
    one_order: bool,
    method: str,
    on_progress: OnProgress,
    partial: Path | None,
) -> Record:
    start = time.perf_counter()
    if config.conventions != "exact":
        raise UserError(f"conventions {config.conventions}: the authors score no circuits of several pairs; take exact")
    if config.rank_halves:
        raise UserError("rank_halves: a circuit of several pairs is ranked on one text; leave rank_halves out")
    if config.control is not None:
        raise UserError(f"control {config.control}: a circuit of several pairs has no controls; leave control out")
    if config.ablation in DRAWS:
        raise UserError(f"ablation {config.ablation}: a circuit of several pairs takes mean or zero")
    special = lm.special_ids(config.special)
    texts.check(lm, special)
    pairs = chain.chain(lm, saes, sites, special)
    ends = {pair.block.up: pair.up for pair in pairs} | {pairs[-1].block.down: pairs[-1].down}
    texts = texts.compared(ends.values(), allow=config.allow_trained_text)
    ranking = circuit_ranking(config.ranking, one_order)
    sizes = [pair.n_edges for pair in pairs]
    counts = counts_of(config.edges, sum(sizes) if one_order else max(sizes))
    if config.ablation == "mean":
        pairs = [mean_ablated(pair, texts.ranking) for pair in pairs]
    pairs = [*pairs[:-1], with_site_mean(pairs[-1], texts.ranking)]
    hashes = {"lm": digest(lm.parameters())} | {str(site): digest_of_sae(sae) for site, sae in ends.items()}
    settings = settings_of(config, texts) | lm.describe() | {"budget": "one order" if one_order else "per pair"}
    identity = {"definitions": DEFINITIONS, "settings": settings, "ranking": config.ranking, "hashes": hashes}
    identity |= {"special_ids": special}
    identity |= {"data": texts.data, "saes": [rules(sae) for sae in ends.values()], "n": len(texts.ranking)}
    kept = Partial(partial, {**identity, "settings": {**settings, "memory": None}})
    rank_text = texts.ranking[: config.n_rank_prompts]
    keep_index = _keep_indices(pairs, rank_text, ranking, counts, config, one_order, kept, on_progress)
    curves = chain.curves(pairs, keep_index, len(counts), texts.scoring, kept, on_progress)
    return record_of(
        curves,
        counts,
        (sum if one_order else max)(n_live_edges(pair, texts.ranking) for pair in pairs),
        config,
        block="->".join(map(str, sorted(sites))),
        method=method,
        ranking=config.ranking,
        n_up=pairs[0].up.d_sae,
        n_down=pairs[-1].down.d_sae,
        n_edges=int(counts[-1]),
        n_special=texts.n_special(special),
        special=list(special),
        config=settings,
        hashes=hashes,
        trained=trained({str(site): sae for site, sae in ends.items()}),
        data=texts.data,
        seconds=round(time.perf_counter() - start, 2),
    )


def circuit_ranking(name: str, one_order: bool) -> GlobalRanking:
    """The ranking of a circuit's pairs.

    Raises:
        UserError: no such global ranking; or one order is asked for, and scores of different pairs cannot be compared.
    """
    return find_edgewise(name, "one order for all pairs") if one_order else find_global(name, "a circuit")


def _keep_indices(
    pairs: list[Pair],
    tokens: Int[Tensor, "prompt token"],
    ranking: GlobalRanking,
    counts: Counts,
    config: ScoreConfig,
    one_order: bool,
    kept: Partial,
    on_progress: OnProgress,
) -> list[chain.KeepIndex]:
    """Rank every pair of a circuit: the keep indices of their edges.

    At the most nine bytes an edge are held: the scores of all pairs, their copy in one order and the keep indices.
    """
    everything = sum(9 * pair.n_edges + resident(pair) for pair in pairs)
    found: list[Tensor] = []
    for pair in pairs:
        beside = everything - 4 * pair.n_edges - resident(pair)
        room = ranking.room(pair, config.memory, tokens.shape[1], len(counts), beside)
        unfinished = kept.unfinished_ranking().part(str(pair.block))
        found.append(ranking.scores(RankingJob(pair, tokens, config.seed, on_progress, room, unfinished)))
    trim_malloc()
    return (chain.one_order if one_order else chain.same_budget)(found, counts, config.seed)
