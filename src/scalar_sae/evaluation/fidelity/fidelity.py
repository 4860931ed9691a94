"""Fidelity: how well SAEs stand in for the activations they read. All SAEs are measured in one pass over the text.

    found = fidelity(lm, {"topk": {site: sae, ...}, ...}, tokens)
    found.saes, found.spliced

Every score is a function of sums over tokens. The sums are kept per prompt, and the bootstrap draws prompts, because
tokens of one prompt are not independent. Memory grows little with the text: a few numbers per prompt. Counts per latent
are kept for each of sums.GROUPS groups of prompts, and their bootstrap draws groups.

The text is read twice: first for the mean activation at each site, then for everything else. Definitions:
docs/measures.md.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import partial as bound
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scalar_sae.activations.cache import fingerprint
from scalar_sae.console import Bar
from scalar_sae.corpora import prompts_fingerprint
from scalar_sae.digests import digest_of_sae
from scalar_sae.errors import UserError
from scalar_sae.evaluation.fidelity.sums import ABLATIONS, PerPrompt, SAETally, Tally, sae_record, spliced_record
from scalar_sae.evaluation.fidelity.unfinished import Kept, Tallies
from scalar_sae.kernels import FastCPUOps
from scalar_sae.lm.model import LanguageModel, SiteState
from scalar_sae.lm.special import Rule, Special, counted, listed
from scalar_sae.lm.splice import Splice
from scalar_sae.records.sae_results import SaeFidelity, SplicedFidelity
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring.intervals import resamples
from scalar_sae.sites import Site

SAEs = Mapping[str, Mapping[Site, SAE]]

LOGIT_BYTES = 2**28
"""Maximum size of the model's log-probabilities for one batch of prompts. It limits the prompts per batch."""


SUMS = 1
"""Changes when the meaning of a sum changes: nothing that was kept before is gone on with."""


class Fidelity(NamedTuple):
    """The result of `fidelity`."""

    saes: list[SaeFidelity]
    spliced: list[SplicedFidelity]
    """One record per method, in the order given."""


class _Batch(NamedTuple):
    tokens: Int[Tensor, "prompt token"]
    keep: Bool[Tensor, "prompt token"]
    """False at special tokens, which keep the clean model's activation."""
    states: dict[Site, SiteState]
    first: int
    """Index of the first prompt."""


Losses = dict[str, PerPrompt]
"""Sums over the tokens of each prompt: `ce` and `kl`, with a suffix for the replacement (`ce_zero`)."""


@torch.no_grad()
def fidelity(
    lm: LanguageModel,
    saes: SAEs,
    tokens: Int[Tensor, "prompt token"],
    special: Rule = "skip",
    batch: int = 8,
    seed: int = 0,
    partial: Path | None = None,
) -> Fidelity:
    """Measure every SAE on the same prompts, alone and together with the others of its method.

    Args:
        lm: the model that the SAEs read.
        saes: SAEs by method and site. Transcoders are left out, since they do not reconstruct what they read.
        tokens: the prompts.
        special: the rule for special tokens (lm/special.py). Skipped tokens keep the clean model's activation at every
            site, are not counted, and are not prediction targets.
        batch: prompts per forward pass; fewer for a large vocabulary.
        seed: seed of the bootstrap.
        partial: folder for the sums of an unfinished measurement; the same call goes on from them.

    Raises:
        UserError: there are only transcoders, an SAE has another width than the model, the model lacks a site,
            activations are not finite, or there is nothing to predict.
    """
    saes, ids = standing_in(saes), lm.special_ids(special)
    _check(lm, saes, tokens)
    tokens = tokens.to(lm.device)
    saes = {name: {site: sae.to(lm.device) for site, sae in group.items()} for name, group in saes.items()}
    sites = sorted({site for group in saes.values() for site in group})
    batch = max(1, min(batch, LOGIT_BYTES // (4 * lm.d_vocab * tokens.shape[1])))
    with FastCPUOps():
        means = _means(lm, sites, tokens, ids, batch)
    sums = Tallies(
        Tally(),
        {site: Tally() for site in sites},
        {
            (method, site): SAETally.empty(sae, tokens.shape[0])
            for method, group in saes.items()
            for site, sae in sorted(group.items())
        },
        {method: Tally() for method in saes},
    )
    kept = Kept(partial, _identity(lm, saes, tokens, ids, batch) if partial else {})
    sums.load(kept.read())
    ends = _Ends(lm, means)
    with Bar("measure SAEs", tokens.shape[0], done=sums.n_prompts) as bar, FastCPUOps():
        for part in _batches(lm, sites, tokens, ids, batch, sums.n_prompts):
            ends.go_on(part)
            sizes = {"n": part.keep.sum(1), "n_special": (~part.keep).sum(1), "n_targets": part.keep[:, 1:].sum(1)}
            sums.clean.add(**ends.clean(), **sizes)
            for site in sites:
                sums.ablated[site].add(**ends.ablated([site]))
            for (method, site), of_sae in sums.alone.items():
                sae = saes[method][site]
                _read_sae(part, site, sae, ends.code(site, sae), means[site], of_sae)
                of_sae.tally.add(**ends.spliced({site: sae}))
            for method, group in saes.items():
                sums.together[method].add(**ends.spliced(group), **ends.ablated(group))
            kept.keep(sums)
            bar.step(part.tokens.shape[0])
    n_prompts = tokens.shape[0]
    draws = resamples(n_prompts, seed) if n_prompts > 1 else None
    return Fidelity(
        [
            sae_record(
                method, site, saes[method][site], of_sae, [sums.clean, sums.ablated[site], of_sae.tally], draws, seed
            )
            for (method, site), of_sae in sums.alone.items()
        ],
        [
            spliced_record(method, sorted(saes[method]), [sums.clean, tally], draws)
            for method, tally in sums.together.items()
        ],
    )


def _identity(
    lm: LanguageModel, saes: SAEs, tokens: Int[Tensor, "prompt token"], special: Special, batch: int
) -> dict[str, Any]:
    """All that the sums over tokens depend on."""
    measured = [
        [method, str(site), digest_of_sae(sae), str(sae.activation), str(sae.norm), list(sae.chunks)]
        for method, group in saes.items()
        for site, sae in sorted(group.items())
    ]
    text = {"tokens": prompts_fingerprint(tokens), "context": tokens.shape[1], "special": list(special)}
    return {"lm": fingerprint(lm), "saes": measured, "batch": batch, "sums": SUMS, **text}


def standing_in(saes: SAEs) -> SAEs:
    """The SAEs that reconstruct what they read: all but transcoders."""
    plain = {name: {site: sae for site, sae in group.items() if sae.writes is None} for name, group in saes.items()}
    return {name: group for name, group in plain.items() if group}


def _check(lm: LanguageModel, saes: SAEs, tokens: Int[Tensor, "prompt token"]) -> None:
    if not saes:
        raise UserError("fidelity: transcoders alone, which do not reconstruct what they read; measure SAEs")
    if tokens.shape[0] == 0 or tokens.shape[1] < 2:
        raise UserError(f"fidelity: {tokens.shape[0]} prompts of {tokens.shape[1]} tokens leave nothing to predict")
    for method, group in saes.items():
        for site, sae in group.items():
            if sae.d_model != lm.d_model:
                raise UserError(f"{method} {site}: the SAE reads {sae.d_model} dimensions, {lm.name} has {lm.d_model}")


def _batches(
    lm: LanguageModel,
    sites: list[Site],
    tokens: Int[Tensor, "prompt token"],
    special: Special,
    size: int,
    done: int = 0,
) -> Iterator[_Batch]:
    """The batches of prompts, without those that are done."""
    for number, some in enumerate(tokens.split(size)):
        if number * size < done:
            continue
        states = lm.states(some, sites)
        for site, state in states.items():
            bad = ~state.x.isfinite().all(-1).all(-1)
            if bad.any():
                raise UserError(
                    f"{site}: activations of prompt {number * size + int(bad.int().argmax())} are not finite"
                )
        yield _Batch(some, counted(some, special), states, number * size)


def _means(
    lm: LanguageModel, sites: list[Site], tokens: Int[Tensor, "prompt token"], special: Special, size: int
) -> dict[Site, Float[Tensor, " d_model"]]:
    """Mean activation at each site over the counted tokens."""
    sums = {site: torch.zeros(lm.d_model, dtype=torch.float64, device=tokens.device) for site in sites}
    n = 0
    for part in _batches(lm, sites, tokens, special, size):
        n += int(part.keep.sum())
        for site in sites:
            sums[site] += part.states[site].x[part.keep].double().sum(0)
    if n == 0:
        raise UserError(f"fidelity: every token is special ({listed(special)}); give text, or --special count")
    return {site: (total / n).float() for site, total in sums.items()}


class _Ends:
    """The model's losses with the activations at some sites replaced, computed batch by batch.

    Each replacement needs a pass through the rest of the model, which dominates the cost. No pass is computed twice:
    sites that several methods share are ablated once, and if an ablation makes all prompts equal, one prompt is run.
    The latter holds for every SAE in the residual stream, where the rest of the model sees the mean, or zeros, at all
    tokens.
    """

    def __init__(self, lm: LanguageModel, means: dict[Site, Float[Tensor, " d_model"]]) -> None:
        self._lm = lm
        self._means = means
        self._equal: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        """By site and ablation: an activation shared by all prompts, and the final residual stream that follows from
        it.
        """

    def go_on(self, part: _Batch) -> None:
        """Move to the next batch."""
        self._part = part
        self._splice = Splice(self._lm, part.tokens, part.keep, part.states)
        self._found: dict[tuple[Any, ...], Losses] = {}
        self._x_hat: dict[tuple[Site, int], Tensor] = {}

    def clean(self) -> Losses:
        """Losses of the unmodified model."""
        return {"ce_clean": self._splice.clean_ce().double().sum(1)}

    def code(self, site: Site, sae: SAE) -> tuple[Float[Tensor, "prompt token d_sae"], Tensor]:
        """An SAE's latent activations and reconstruction on the clean model's activations."""
        x = self._part.states[site].x
        acts = sae.encode(x)
        self._x_hat[site, id(sae)] = sae.decode(acts, x)
        return acts, self._x_hat[site, id(sae)]

    def spliced(self, saes: dict[Site, SAE]) -> Losses:
        """Losses with reconstructions in place of the activations. A later SAE reads what the earlier ones leave."""
        key = tuple((site.depth, id(sae)) for site, sae in sorted(saes.items()))
        if key not in self._found:
            replace = {site: bound(self._reconstructed, site, sae) for site, sae in saes.items()}
            self._found[key] = self._losses("", self._splice.end(replace))
        return self._found[key]

    def ablated(self, sites: Collection[Site]) -> Losses:
        """Losses with zeros, and with the means, in place of the activations."""
        key = tuple(sorted({site.depth for site in sites}))
        if key not in self._found:
            self._found[key] = {}
            for name in ABLATIONS:
                replace = {site: bound(self._constant, site, name) for site in sites}
                end = self._end_of_ablated(max(sites), self._splice.state(replace), name)
                self._found[key] |= self._losses(f"_{name}", end)
        return self._found[key]

    def _end_of_ablated(self, site: Site, state: SiteState, name: str) -> Float[Tensor, "_ token d_model"]:
        """The final residual stream after an ablation. It has a single row if all prompts have become equal."""
        x = state.x[:1]
        if state.skip is not None or not bool((state.x == x).all()):
            return self._splice.end_from(site, state)
        key = site.depth, name
        if key not in self._equal or not torch.equal(self._equal[key][0], x):
            self._equal[key] = x.clone(), self._splice.end_from(site, SiteState(x, None))
        return self._equal[key][1]

    def _losses(self, name: str, end: Float[Tensor, "_ token d_model"]) -> Losses:
        found = self._splice.losses(end)
        return {f"ce{name}": found.ce.double().sum(1), f"kl{name}": found.kl.double().sum(1)}

    def _reconstructed(self, site: Site, sae: SAE, x: Tensor) -> Tensor:
        is_clean = x is self._part.states[site].x
        return self._x_hat[site, id(sae)] if is_clean else sae.decode(sae.encode(x), x)

    def _constant(self, site: Site, name: str, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if name == "zero" else self._means[site].expand_as(x)


def _read_sae(
    part: _Batch, site: Site, sae: SAE, code: tuple[Tensor, Tensor], mean: Float[Tensor, " d_model"], into: SAETally
) -> None:
    """Add the sums for one SAE that do not involve the rest of the model."""
    x, (acts, x_hat) = part.states[site].x, code
    error, spread = (x - x_hat).square().sum(-1), (x - mean).square().sum(-1)
    sums = {
        "l0": (acts > 0).sum(-1),
        "error": error,
        "spread": spread,
        "ratio": error / spread.clamp_min(torch.finfo(spread.dtype).tiny),
        "cosine": torch.cosine_similarity(x, x_hat, dim=-1),
        "x_hat_x_hat": x_hat.square().sum(-1),
        "x_x_hat": (x * x_hat).sum(-1),
    }
    fired = (acts > 0) & part.keep.unsqueeze(-1)
    for number, (start, end) in enumerate(pairwise((0, *(sae.chunks or (sae.d_sae,))))):
        sums[f"l0_per_chunk.{number}"] = fired[..., start:end].sum(-1)
    into.tally.add(**{name: (value.double() * part.keep).sum(1) for name, value in sums.items()})
    into.add(part.first, fired.sum(1), ((x - x_hat).double() * part.keep.unsqueeze(-1)).sum(1))
