"""What acts on the downstream latents at one token of a prompt, and what they do to the prediction after it.

An edge is local here: from an upstream latent that is active at one position (the source) to a downstream latent at one
token. Without attention between them the two positions are the same. Its effect is exact: the upstream latent is set to
its ablated value at the source alone, in the input of this downstream latent alone. Latents that are not active at a
position have no edges there and stay at zero, also under mean ablation, as under the ranking `local`.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.explore.attention import Heads, LastQuery, heads_of
from scalar_sae.explore.passage import Passage
from scalar_sae.explore.passes import at_last, at_once
from scalar_sae.explore.plain import LatentEffect, LocalEdge, LocalEdges, NextToken, Outputs
from scalar_sae.explore.stage import Stage
from scalar_sae.lm.outputs import kl, log_probs

CHUNK = 2**12
"""Removals at earlier tokens are taken so many at a time."""
MOST = 5_000
"""Maximum number of edges in an answer."""

Progress = Callable[[float], object]


class Local(NamedTuple):
    """Local edges with an effect, largest size first."""

    source: Int[Tensor, " edge"]
    up: Int[Tensor, " edge"]
    down: Int[Tensor, " edge"]
    effect: Float[Tensor, " edge"]
    """Activation with the edge less activation without it."""
    size: Float[Tensor, " edge"]


class KeptAt(NamedTuple):
    """Downstream activations at a token that keeps its n strongest edges."""

    counts: list[int]
    acts: Float[Tensor, "count n_down"]


def edges(stage: Stage, position: int, n: int, found: Local) -> LocalEdges:
    """The n strongest of the local edges that were found at a token (Journey.edges)."""
    z, acts = stage.prompt.z, stage.full[position]
    return LocalEdges(
        block=str(stage.pair.block),
        position=position,
        n_edges=len(found.up),
        total_size=float(found.size.double().sum()),
        edges=tuple(
            LocalEdge(
                source=s,
                up=i,
                up_activation=float(z[s, i]),
                down=j,
                down_activation=float(acts[j]),
                effect=effect,
                size=size,
            )
            for s, i, j, effect, size in zip(*(part[:n].tolist() for part in found), strict=True)
        ),
    )


@torch.no_grad()
def local(stage: Stage, position: int, on_progress: Progress = lambda done: None) -> Local:
    """Every local edge at a token that has an effect, by the change of the downstream latent's activation in units of
    the model's activations. Ties are in the order of sources and latents.
    """
    here, norms = stage.upto(position), stage.pair.down.W_dec.norm(dim=1)
    source, up = units(here)
    first = position + 1 - len(here.change)  # the position of the cut prompt's first token
    unit, down, effect = _effects(here, source, up, on_progress)
    size = effect.abs() * norms[down]
    order = size.argsort(descending=True, stable=True)
    unit, down = unit[order], down[order]
    return Local(source[unit] + first, up[unit], down, effect[order], size[order])


def units(here: Stage) -> tuple[Int[Tensor, " unit"], Int[Tensor, " unit"]]:
    """Positions and upstream latents that are active there."""
    source, up = here.active.nonzero(as_tuple=True)
    return source, up


def _effects(
    here: Stage, source: Int[Tensor, " unit"], up: Int[Tensor, " unit"], on_progress: Progress
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Player, downstream latent and effect at the last token, where there is one."""
    rule, pair = here.pair.down.activation, here.pair
    pre_acts = here.pre_acts[-1:]
    threshold, acts = rule.competing_threshold(pre_acts), rule.select(pre_acts)
    nothing = torch.zeros(0, dtype=torch.long, device=up.device)
    found: list[tuple[Tensor, Tensor, Tensor]] = [(nothing, nothing, pre_acts.new_zeros(0))]
    done = 0
    for rows, y in _without_each(here, source, up) if here.prompt.text[-1] else ():
        changed = y @ pair.down.W_enc + pair.down.b_enc
        effect = acts - rule.activate_independently(changed.unsqueeze(1), threshold)[:, 0]
        unit, down = effect.nonzero(as_tuple=True)
        found.append((rows[unit], down, effect[unit, down]))
        done += len(rows)
        on_progress(done / len(up))
    unit, down, effect = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = unit.argsort(stable=True)
    return unit[order], down[order], effect[order]


def _without_each(
    here: Stage, source: Int[Tensor, " unit"], up: Int[Tensor, " unit"]
) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, "row d_model"]]]:
    """What down's encoder multiplies at the last token when each unit alone is removed, some units at a time.

    Removals at earlier tokens change nothing at the last one but what it attends to, which saves their passes where the
    heads are known. All others are passes over the prompt.
    """
    add = here.pair.added(up, here.change[source, up])
    last = source == len(here.change) - 1
    heads, known = None, None
    if not last.all():
        heads = _heads(here)
        known = None if heads is None else LastQuery.of(here, heads)
    passes = torch.ones_like(last) if known is None else last
    rows = passes.nonzero()[:, 0]
    for some in rows.split(at_once(here)) if len(rows) else ():
        x = here.whole.repeat(len(some), 1, 1)
        x[torch.arange(len(some)), source[some]] -= add[some]
        yield some, at_last(here, x)
    rows = (~passes).nonzero()[:, 0]
    if heads is None or known is None or not len(rows):
        return
    one = here.rows(slice(len(here.change) - 1, len(here.change)))
    for some in rows.split(CHUNK):
        outputs = known.without(here, heads, source[some], add[some])
        for part, its in zip(some.split(at_once(one)), outputs.split(at_once(one)), strict=True):
            with heads.replaced(its.flatten(1)):
                yield part, at_last(one, one.whole.repeat(len(part), 1, 1))


def _heads(here: Stage) -> Heads | None:
    """The heads of the block's attention, where they can be told apart."""
    try:
        return heads_of(here)
    except UserError:
        return None


@torch.no_grad()
def kept_at(stage: Stage, position: int, counts: Sequence[int] | None, found: Local, on_progress: Progress) -> KeptAt:
    """Downstream activations at a token with the n strongest of the local edges that were found there, for each n."""
    here = stage.upto(position)
    source, up = units(here)
    n_edges, n_all = len(found.up), len(up) * stage.pair.down.d_sae
    chosen = sorted({0, n_all, *(round_counts(n_edges) if counts is None else counts)})
    for count in chosen:
        if not (0 <= count <= n_edges or count == n_all):
            raise UserError(f"{count} edges: {n_edges:,} of {n_all:,} edges have an effect at token {position}")
    first, n_up = position + 1 - len(here.change), stage.pair.up.d_sae
    unit = torch.searchsorted(source * n_up + up, (found.source - first) * n_up + found.up)
    adds = here.pair.added(up, here.change[source, up])
    acts: list[Tensor] = []
    pre_acts = here.pair.pre_acts(here.ablated.unsqueeze(0), here.prompt)[0, -1]
    for number, (before, count) in enumerate(pairwise([0, *chosen])):
        gained = found.down[before:count].unique()
        for some in gained.split(at_once(here)) if len(gained) and count != n_all else ():
            pre_acts[some] = _recomputed(here, source, adds, unit[:count], found.down[:count], some)
        acts.append(stage.full[position] if count == n_all else stage.pair.down.activation.select(pre_acts))
        on_progress(number / len(chosen))
    return KeptAt(chosen, torch.stack(acts))


@torch.no_grad()
def acts_at(stage: Stage, position: int, z: Float[Tensor, "row n_up"]) -> Float[Tensor, "row n_down"]:
    """Downstream activations at a token for each row of upstream activations there, with every edge. Other tokens keep
    their own.
    """
    here, pair, one = stage.upto(position), stage.pair, stage.rows(slice(position, position + 1)).prompt
    x = one.with_own(pair.up.decode(z, one.x_up.expand(len(z), -1)).unsqueeze(1), one.x_start)[:, 0]
    found: list[Tensor] = []
    for some in x.split(at_once(here)):
        whole = here.whole.repeat(len(some), 1, 1)
        whole[:, -1] = some
        found.append(at_last(here, whole) @ pair.down.W_enc + pair.down.b_enc)
    return pair.down.activation.select(one.at_text(torch.cat(found).unsqueeze(1))[:, 0])


def _recomputed(
    here: Stage,
    source: Int[Tensor, " unit"],
    adds: Float[Tensor, "unit d_model"],
    unit: Int[Tensor, " edge"],
    down: Int[Tensor, " edge"],
    latents: Int[Tensor, " some"],
) -> Float[Tensor, " some"]:
    """Pre-activations of some downstream latents at the last token, each from its own edges among these."""
    kept = adds.new_zeros(len(latents), len(source))
    there = torch.isin(down, latents)
    kept[torch.searchsorted(latents, down[there]), unit[there]] = 1.0
    x = here.ablated.repeat(len(latents), 1, 1)
    for token in source.unique().tolist():
        at = source == token
        x[:, token] += kept[:, at] @ adds[at]
    W, b = here.pair.down.W_enc[:, latents], here.pair.down.b_enc[latents]
    return (at_last(here, x) * W.T).sum(1) + b


def round_counts(n: int) -> Iterator[int]:
    """0, 1, 2, 5, 10, 20, ... and n."""
    yield from (0, n)
    for power in range(len(str(n))):
        yield from (step * 10**power for step in (1, 2, 5) if step * 10**power < n)


@torch.no_grad()
def outputs(passage: Passage, position: int, n: int, most: int, on_progress: Progress) -> Outputs:
    """What the active downstream latents at a token add to the prediction after it (Journey.outputs).

    Args:
        passage: the prompt.
        position: the token.
        n: number of next tokens.
        most: number of latents.
        on_progress: called with the share that is done.
    """
    lm = passage.lm
    acts = passage.last.full[position]
    weight = acts.abs() * passage.last.pair.down.W_dec.norm(dim=1)
    live = weight.argsort(descending=True)[: min(most, int((acts != 0).sum()))]
    full = log_probs(lm, passage.full_run.end[:, position : position + 1])[0, 0]
    shown = full.topk(min(n, lm.d_vocab)).indices
    centred = full - full.mean()
    found: list[LatentEffect] = []
    for some in live.split(passage.full_run.at_once(position)):
        without = acts.repeat(len(some), 1)
        without[torch.arange(len(some)), some] = 0.0
        after = log_probs(lm, passage.ends_at(position, without))[:, 0]
        change = centred[shown] - (after[:, shown] - after.mean(-1, keepdim=True))
        divergence = kl(full.unsqueeze(0), after)
        found += [
            LatentEffect(latent=j, activation=float(acts[j]), kl=float(d), logits=tuple(row))
            for j, d, row in zip(some.tolist(), divergence.tolist(), change.tolist(), strict=True)
        ]
        on_progress(len(found) / len(live))
    ids = shown.tolist()
    return Outputs(
        position=position,
        predicted=tuple(
            NextToken(token=t, text=text, logit=float(centred[t]), p=float(full[t].exp()))
            for t, text in zip(ids, lm.tokenizer.pieces(ids), strict=True)
        ),
        latents=tuple(sorted(found, key=lambda row: -row.kl)),
    )
