"""The benchmark from end to end: rank edges on one text, sweep sub-circuits on another, score the curve.

record = score(pair, texts, "leave_one_out_with_prior")
record = score(pair, texts, ScoreConfig(ranking="local", edges="coarse"), method="topk")
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.console import Bar
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import counted, listed, say_special
from scalar_sae.malloc import trim_malloc
from scalar_sae.records.results import Curves, Floor, PromptCurves, Record
from scalar_sae.records.sae_results import Interval
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.trained import Trained
from scalar_sae.scoring import metrics
from scalar_sae.scoring.config import (
    LOCAL,
    ScoreConfig,
    ScoreSettings,
    Texts,
    check_made_for,
    check_ranking,
    counts_of,
    saved_scores,
)
from scalar_sae.scoring.controls import CONTROLS
from scalar_sae.scoring.curve import CONVENTIONS, measure
from scalar_sae.scoring.memory import least_slots, local_bytes, ranking_bytes
from scalar_sae.scoring.metrics import FAITHFULNESS, QUANTILES, Counts
from scalar_sae.scoring.pair import Pair, Prompt, mean_ablated, read, with_site_mean
from scalar_sae.scoring.rankings import effects
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.rankings.ranking import EDGE_BYTES, RANKINGS, EdgeScores, rank
from scalar_sae.scoring.resume import Partial
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import Edges, GlobalEdges, LocalEdges
from scalar_sae.versions import versions

DEFINITIONS = 4
"""Changes when what a ranking or a curve is does: nothing that was begun before is gone on with."""

PROMPTS_A_TRIM = 8
"""Prompts after which a sweep hands back what was freed. Their buffers differ in size, so that the gaps between those
that live grow from prompt to prompt, by up to a few megabytes."""

OnProgress = Callable[[float], object]


def score(
    pair: Pair,
    texts: Texts,
    ranking: str | ScoreConfig = "leave_one_out_with_prior",
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
            special tokens alone or of another tokenizer than the model's.
    """
    config = ranking if isinstance(ranking, ScoreConfig) else ScoreConfig(ranking=ranking)
    if on_progress is not None:
        return _score(pair, texts, config, method, on_progress, partial)
    total = len(texts.ranking[: config.n_rank_prompts]) + len(texts.scoring)
    with Bar("score", total / distributed.world_size()) as bar:
        return _score(pair, texts, config, method, bar.step, partial)


def _score(
    pair: Pair, texts: Texts, config: ScoreConfig, method: str, on_progress: OnProgress, partial: Path | None
) -> Record:
    start = time.perf_counter()
    ranking = config.ranking
    check_ranking(ranking)
    check_made_for(texts, pair.lm)
    pair = replace(pair, special=pair.lm.special_ids(config.special))
    check_text(texts, pair.special)
    pair = CONTROLS[config.control](pair, config.seed) if config.control else pair
    counts = counts_of(config.edges, pair.n_edges)
    rank_text = texts.ranking[: config.n_rank_prompts]
    hashes = {"lm": hash_of(pair.lm.parameters()), "up": digest(pair.up), "down": digest(pair.down)}
    identity: dict[str, Any] = {"n": [len(rank_text), len(texts.ranking)], "hashes": hashes}
    identity |= {"definitions": DEFINITIONS, "method": method, "block": str(pair.block), "reads": str(pair.encode_site)}
    identity |= {"special_ids": pair.special}
    identity |= {"data": texts.data, "saes": [rules(sae) for sae in (pair.up, pair.down)]}
    saved = None if ranking in (*RANKINGS, LOCAL) else saved_scores(Path(ranking), pair)
    if saved is not None:
        identity["scores"] = hash_of([saved])
    kept = Partial(partial, identity | config.model_dump(mode="json", exclude={"memory"}))
    if config.ablation == "mean":
        pair = mean_ablated(pair, texts.ranking)
    pair = with_site_mean(pair, texts.ranking)
    if ranking == LOCAL:
        edges_of, n_live = _local_edges(pair, texts.scoring, counts, config)
        on_progress(len(rank_text) / distributed.world_size())
    else:
        edges_of = _global_edges(pair, rank_text, saved, counts, config, kept, on_progress)
        n_live = n_live_edges(pair, texts.ranking)
    del saved  # the sweep has the levels
    curves = _sweep(pair, texts.scoring, edges_of, counts, config, kept, on_progress)
    return record_of(
        curves,
        counts,
        n_live,
        config,
        block=str(pair.block),
        method=method,
        ranking=ranking,
        control=config.control,
        scope="local" if ranking == LOCAL else "global",
        n_up=pair.up.d_sae,
        n_down=pair.down.d_sae,
        n_edges=pair.n_edges,
        n_special=n_special(texts, pair.special),
        special=list(pair.special),
        config=settings_of(config, texts) | pair.lm.describe() | _addresses(pair),
        hashes=hashes,
        trained=trained({"up": pair.up, "down": pair.down}),
        data=texts.data,
        seconds=round(time.perf_counter() - start, 2),
    )


def trained(saes: dict[str, SAE]) -> dict[str, Trained]:
    """How long SAEs were trained, of those whose files say."""
    return {name: sae.trained for name, sae in saes.items() if sae.trained is not None}


def _addresses(pair: Pair) -> dict[str, list[str | None]]:
    """Where the SAEs came from, if that was not this machine."""
    addresses = [pair.up.address, pair.down.address]
    return {"saes": addresses} if any(addresses) else {}


def settings_of(config: ScoreConfig, texts: Texts) -> dict[str, Any]:
    """What a record says of how it was scored; the sizes of the texts are those that were read."""
    n_ranked, (n_scored, n_token) = min(config.n_rank_prompts, len(texts.ranking)), texts.scoring.shape
    sizes = {"prompts": n_scored, "context": n_token, "rank_prompts": n_ranked}
    return config.model_dump(exclude={"ranking", "control"}) | sizes


def record_of(curves: Curves, counts: Counts, n_live: int, settings: ScoreConfig, **fields: Any) -> Record:
    """A record with the scores of its curves, of the prompts that have tokens which count."""
    curves = curves.with_text()
    every = np.arange(len(curves.n_tokens))
    means = {
        name: metrics.over_prompts(getattr(curves, name), curves.n_tokens, every).tolist()
        for name in ("kl_model", "kl_circuit", "live_edges", "l0_down")
    }
    values, ci = _scores(counts, curves, n_live, fields["n_edges"], settings.seed)
    return Record(
        seed=settings.seed,
        n_live_edges=n_live,
        n_tokens=int(curves.n_tokens.sum()),
        edges=counts.tolist(),
        **means,
        absolute=values["absolute"],
        relative=values["relative"],
        pure=values["pure"],
        edges_at={q: _finite(values[f"edges_at.{q}"]) for q, _ in QUANTILES},
        live_edges_at={q: _finite(values[f"live_edges_at.{q}"]) for q, _ in QUANTILES},
        dip={q: values[f"dip.{q}"] for q, _ in QUANTILES},
        log_area=values["log_area"],
        floor=Floor(kl=values["floor.kl"], ce_increase=values["floor.ce_increase"]),
        kl_mean=values["kl_mean"],
        faithful_at={q: _finite(values[f"faithful_at.{q}"]) for q, _ in FAITHFULNESS},
        faithful_from={q: _finite(values[f"faithful_from.{q}"]) for q, _ in FAITHFULNESS},
        faithful_live_at={q: _finite(values[f"faithful_live_at.{q}"]) for q, _ in FAITHFULNESS},
        unfaithful_area=values["unfaithful_area"],
        ci=ci,
        prompts=PromptCurves.of(curves),
        versions=versions(),
        **fields,
    )


def check_text(texts: Texts, special: tuple[int, ...]) -> None:
    """Raise a UserError if one of the texts holds nothing but special tokens."""
    for what, tokens in (("rank", texts.ranking), ("score", texts.scoring)):
        if not counted(tokens, special)[:, 1:].any():
            raise UserError(f"text to {what} on: nothing but special tokens (ids {listed(special)}); give other text")


def say_left_out(lm: LanguageModel, texts: Texts, config: ScoreSettings) -> None:
    """Tell the user how many positions hold special tokens."""
    ids = lm.special_ids(config.special)
    say_special(torch.cat([texts.ranking, texts.scoring]), ids, "positions of the ranking and the scored text")


def n_special(texts: Texts, special: tuple[int, ...]) -> int:
    """Positions of special tokens in the scored text."""
    return int((~counted(texts.scoring, special)).sum())


def _local_edges(
    pair: Pair, tokens: Int[Tensor, "prompt token"], counts: Counts, config: ScoreConfig
) -> tuple[Callable[[Prompt], Edges], int]:
    """Which edges each count keeps, given a prompt, and how many a token has at the most."""
    n_slot = max((prompt.slots.latent.shape[1] for prompt in read(pair, tokens)), default=1)
    room = local_bytes(pair, config.memory, tokens.shape[1], len(counts), n_slot)
    grid, norms = torch.from_numpy(counts).to(pair.device), pair.down.W_dec.norm(dim=1)

    def of(prompt: Prompt) -> Edges:
        size = effects.at_every_token(pair, prompt).mul_(norms)
        return LocalEdges(size, grid, prompt, room)

    return of, n_slot * pair.down.d_sae


def _global_edges(
    pair: Pair,
    rank_text: Int[Tensor, "prompt token"],
    saved: EdgeScores | None,
    counts: Counts,
    config: ScoreConfig,
    kept: Partial,
    on_progress: OnProgress,
) -> Callable[[Prompt], Edges]:
    """Which edges each count keeps, whatever the prompt."""
    free = room(pair, config, rank_text.shape[1])
    trim_malloc()
    edge_scores = kept.ranking() if saved is None else saved
    if edge_scores is not None:
        on_progress(len(rank_text) / distributed.world_size())
    else:
        edge_scores = rank(pair, rank_text, config.ranking, config.seed, on_progress, free, kept.unfinished_ranking())
        kept.keep_ranking(edge_scores)
    trim_malloc()
    edges = GlobalEdges(keep_indices(edge_scores.to(pair.device), counts, config.seed))
    return lambda prompt: edges


def room(pair: Pair, config: ScoreConfig, n_token: int) -> int:
    """Bytes for the sums of a ranking of all edges, or for ordering local ones, on prompts of `n_token` tokens.

    Raises:
        UserError: the config's memory is too small for the pair.
    """
    n_counts = len(counts_of(config.edges, pair.n_edges))
    if config.ranking == LOCAL:
        return local_bytes(pair, config.memory, n_token, n_counts, least_slots(pair))
    return ranking_bytes(pair, config.memory, n_token, n_counts, EDGE_BYTES.get(config.ranking, 4))


def _sweep(
    pair: Pair,
    tokens: Int[Tensor, "prompt token"],
    edges_of: Callable[[Prompt], Edges],
    counts: Counts,
    config: ScoreConfig,
    kept: Partial,
    on_progress: OnProgress,
) -> Curves:
    """The curve of every prompt, each written down as it is finished."""
    found = kept.curves()
    readout = Readout.of(pair)
    reaches_all = bool(counts[-1] == pair.n_edges)
    for done_before, number in enumerate(distributed.shard(len(tokens))):
        if done_before % PROMPTS_A_TRIM == 0:
            trim_malloc()
        if number not in found:
            (prompt,) = read(pair, tokens[number : number + 1], number)
            conventions = CONVENTIONS[config.conventions]
            found[number] = measure(pair, prompt, edges_of(prompt), len(counts), reaches_all, conventions, readout)
            kept.keep_curve(number, found[number])
        on_progress(1)
    found = distributed.all_gather_dict(found)
    return Curves.side_by_side([found[number] for number in range(len(tokens))])


@torch.no_grad()
def n_live_edges(pair: Pair, tokens: Int[Tensor, "prompt token"]) -> int:
    """Edges whose two latents are both live somewhere in the text."""
    live_up, live_down = (pair.up.W_dec.new_zeros(sae.d_sae) for sae in (pair.up, pair.down))
    for number in distributed.shard(len(tokens)):
        for prompt in read(pair, tokens[number : number + 1], number):
            live_up += (prompt.z > 0).any(0)
            live_down += (pair.full_circuit(prompt) > 0).any(0)
    distributed.all_sum(live_up)
    distributed.all_sum(live_down)
    return int((live_up > 0).sum() * (live_down > 0).sum())


def rules(sae: SAE) -> list[str]:
    """What an SAE does beside its weights, in words."""
    return [str(sae.activation), str(sae.norm), str(sae.writes)]


def digest(sae: SAE) -> str:
    """What tells an SAE's weights apart."""
    more = (sae.W_skip, getattr(sae.activation, "threshold", None))
    return hash_of([sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, *(tensor for tensor in more if tensor is not None)])


def hash_of(tensors: Any) -> str:
    """What tells weights apart: a digest of their bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _scores(
    counts: Counts, curves: Curves, n_live: int, n_edges: int, seed: int
) -> tuple[dict[str, float], dict[str, Interval | list[Interval] | None]]:
    """Every score of the mean curves, and its interval: over prompts, and over what the grid leaves open."""
    n_prompts = len(curves.floor_kl)
    drawn = metrics.resamples(n_prompts, seed)
    resampled = metrics.every_score(counts, curves, n_live, n_edges, drawn)
    measured = metrics.every_score(counts, curves, n_live, n_edges, np.arange(n_prompts)[None])
    ci: dict[str, Interval | list[Interval] | None] = {
        name: metrics.interval(found.low, found.high) for name, found in resampled.items() if not name.startswith("dip")
    }
    for name, curve in (("kl_model", curves.kl_model), ("kl_circuit", curves.kl_circuit)):
        bands = metrics.over_prompts(curve, curves.n_tokens, drawn)
        ci[name] = [metrics.interval(band) or (0.0, 0.0) for band in bands]
        if name == "kl_circuit":
            recovered = metrics.recovery(counts, bands.T).T
            ci["recovery"] = [metrics.interval(band) or (0.0, 0.0) for band in recovered]
    return {name: float(found.value[0]) for name, found in measured.items()}, ci


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
