"""Whole-model circuits: sub-circuits of several consecutive pairs at once.

The SAEs stand at sites s_0 < s_1 < ... < s_m, a pair between each two neighbours. What a pair's sub-circuit leaves at
its downstream site is what the next pair starts from, so errors compound; the output is read behind the last site.
Special tokens keep the model's own activation at every site.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.errors import UserError
from scalar_sae.kernels import FastCPUOps
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.outputs import compare, log_probs
from scalar_sae.lm.special import Special
from scalar_sae.records.results import Curves
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring.curve import check_finite, kl_of_mean, sizes
from scalar_sae.scoring.metrics import Counts
from scalar_sae.scoring.pair import Pair, Prompt, read
from scalar_sae.scoring.rankings.order import NOT_KEPT, keep_indices
from scalar_sae.scoring.resume import Partial
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import GlobalEdges
from scalar_sae.scoring.sweep.subcircuits import sweep
from scalar_sae.sites import Block, Site

KeepIndex = UInt8[Tensor, "_n_up _n_down"]


def chain(lm: LanguageModel, saes: dict[Site, SAE], sites: list[Site], special: Special = ()) -> list[Pair]:
    """The pairs between neighbouring sites, where these special tokens keep the model's own activation.

    Raises:
        UserError: fewer than three sites, a site beside the residual stream, or one without an SAE.
    """
    pairs = [replace(Pair.between(lm, block, saes), special=special) for block in blocks_between(sites)]
    check_decoders(pairs)
    return pairs


def check_decoders(pairs: Sequence[Pair]) -> None:
    """Raise a UserError if an SAE of a whole-model circuit decodes from more than its latents."""
    for pair in pairs:
        if any(sae.decodes_from_input or sae.writes for sae in (pair.up, pair.down)):
            raise UserError(f"{pair.block}: a whole-model circuit takes SAEs that decode from their latents alone")


def blocks_between(sites: list[Site]) -> list[Block]:
    """The blocks between neighbouring sites of a circuit.

    Raises:
        UserError: fewer than three sites, or a site beside the residual stream.
    """
    if len(sites) < 3:
        raise UserError(
            f"sites {', '.join(map(str, sites))}: a whole-model circuit has at least two pairs, three sites"
        )
    beside = [site for site in sites if not site.on_residual_stream]
    if beside:
        raise UserError(f"{beside[0]}: a whole-model circuit runs along the residual stream (resid_pre, _mid, _post)")
    return [Block(up, down) for up, down in pairwise(sorted(sites))]


def one_order(scores: list[Float[Tensor, "_n_up _n_down"]], counts: Counts, seed: int) -> list[KeepIndex]:
    """Keep indices under one ranking of all pairs' edges together: counts are edges of the whole circuit."""
    together = keep_indices(torch.cat([s.flatten() for s in scores]).unsqueeze(1), counts, seed)
    return [part.view(s.shape) for part, s in zip(together.split([s.numel() for s in scores]), scores, strict=True)]


def same_budget(scores: list[Float[Tensor, "_n_up _n_down"]], counts: Counts, seed: int) -> list[KeepIndex]:
    """Keep indices under a ranking of its own for each pair: counts are edges of every pair."""
    return [keep_indices(s, np.minimum(counts, s.numel()), seed) for s in scores]


@torch.no_grad()
def curves(
    pairs: list[Pair],
    keep_index: list[KeepIndex],
    n_counts: int,
    tokens: Int[Tensor, "prompt token"],
    kept: Partial,
    on_progress: Callable[[float], object] = lambda n: None,
) -> Curves:
    """KL from the full model and from the full chain at each count, per prompt; of several workers each takes its part.

    Args:
        pairs: consecutive pairs.
        keep_index: for each pair the index of the first count that keeps an edge.
        n_counts: number of counts.
        tokens: the scoring text.
        kept: what is done already, and where it is written.
        on_progress: called with the number of prompts finished.
    """
    readouts = [Readout.of(pair) for pair in pairs]
    found = kept.curves()
    for number in distributed.shard(len(tokens)):
        if number not in found:
            prompts = [next(read(pair, tokens[number : number + 1], number)) for pair in pairs]
            found[number] = _measure(pairs, readouts, prompts, keep_index, n_counts)
            kept.keep_curve(number, found[number])
        on_progress(1)
    found = distributed.all_gather_dict(found)
    return Curves.side_by_side([found[number] for number in range(len(tokens))])


def _measure(
    pairs: list[Pair], readouts: list[Readout], prompts: list[Prompt], keep_index: list[KeepIndex], n_counts: int
) -> Curves:
    """The curve of one prompt, as each of the pairs sees it."""
    lm, prompt = pairs[0].lm, prompts[0]
    with FastCPUOps():
        own = lm.states(prompt.tokens, [lm.end])[lm.end].x
    full, _, _ = _run(pairs, readouts, prompts, [torch.zeros_like(one) for one in keep_index])
    references = [log_probs(lm, own), log_probs(lm, full)]
    of_model, of_circuit = (compare(lm, end, references[:1], prompt.tokens) for end in (own, full))
    rise = prompt.mean_of_targets(of_circuit.ce - of_model.ce)
    floors = np.array([[prompt.mean(of_circuit.kl).item()], [rise.item()]])
    rows: list[list[float]] = []
    for index in range(n_counts):
        kept = [one.gt(index).byte().mul_(NOT_KEPT) for one in keep_index]  # a ranking of one step
        end, live, l0 = _run(pairs, readouts, prompts, kept)
        rows.append([*prompt.mean(compare(lm, end, references, prompt.tokens).kl[:, 0]).tolist(), live, l0])
    measured = np.array(rows).T[..., None]
    check_finite(prompt, measured, floors)
    kl_model, kl_circuit, live, l0_down = measured
    kl_mean = kl_of_mean(pairs[-1], prompts[-1], references[0])
    return Curves(kl_model, kl_circuit, live, l0_down, floors[0], floors[1], kl_mean, *sizes(prompt))


def _run(
    pairs: list[Pair], readouts: list[Readout], prompts: list[Prompt], kept: list[KeepIndex]
) -> tuple[Float[Tensor, "one token d_model"], float, float]:
    """What stands behind the model's last layer, live edges per token in all pairs, live latents at the last site."""
    z, live = prompts[0].z, 0.0
    for pair, readout, prompt, keep_index in zip(pairs, readouts, prompts, kept, strict=True):
        here = replace(prompt, z=z, active=pair.active(z, prompt.x_up, prompt.special))
        (sub,) = sweep(pair, here, GlobalEdges(keep_index), 1, readout)
        z = sub.acts
        live += prompt.mean(sub.live_edges.float()).item()
    last, prompt = pairs[-1], prompts[-1]
    l0 = prompt.mean((z > 0).sum(-1).float()).item()
    return last.run_on(last.decoded(z, prompt).unsqueeze(0), prompt), live, l0
