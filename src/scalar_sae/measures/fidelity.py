"""How well SAEs stand in for the activations they read, all SAEs in one reading of the text.

    found = fidelity(lm, {"topk": {site: sae, ...}, ...}, tokens)
    found.saes, found.spliced

Every score is a function of sums over tokens. They are kept per prompt, and prompts are what the bootstrap draws, since
tokens of one prompt are not independent. Memory does not grow with the text: a few numbers a prompt, and for each of
sums.GROUPS groups of prompts, which are drawn in the same way, a count a latent.

The text is read twice: for the mean activation at each site, and for everything else. Definitions: docs/measures.md.
"""

from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scalar_sae.benchmark.scores import resamples
from scalar_sae.console import Bar
from scalar_sae.errors import UserError
from scalar_sae.lm.model import At, LanguageModel, Replacement
from scalar_sae.lm.special import counted
from scalar_sae.measures.sums import OfSae, PerPrompt, Tally, sae_record, spliced_record
from scalar_sae.sae_results import SaeFidelity, SplicedFidelity
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site

SAEs = dict[str, dict[Site, SAE]]


class Fidelity(NamedTuple):
    """What `fidelity` finds."""

    saes: list[SaeFidelity]
    spliced: list[SplicedFidelity]
    """One a method, in the order they were given."""


class _Batch(NamedTuple):
    tokens: Int[Tensor, "prompt token"]
    keep: Bool[Tensor, "prompt token"]
    """False at the tokens to ignore."""
    states: dict[Site, At]
    first: int
    """Number of the first prompt."""


@torch.no_grad()
def fidelity(
    lm: LanguageModel,
    saes: SAEs,
    tokens: Int[Tensor, "prompt token"],
    ignore: Collection[int] = (),
    batch: int = 8,
    seed: int = 0,
) -> Fidelity:
    """Measure every SAE on the same prompts, by itself and with the others of its method.

    Args:
        lm: the model the SAEs read.
        saes: by method and site; transcoders, which do not reconstruct what they read, are left out.
        tokens: the prompts.
        ignore: tokens (a BOS, say) at which nothing is replaced or counted, and which are no targets.
        batch: prompts per forward pass.
        seed: of the bootstrap.

    Raises:
        UserError: transcoders alone, an SAE of another width, a site that the model lacks, activations that are not
            finite, or nothing to predict.
    """
    saes = standing_in(saes)
    _check(lm, saes, tokens)
    sites = sorted({site for group in saes.values() for site in group})
    means = _means(lm, sites, tokens, ignore, batch)
    clean, ablated = Tally(), {site: Tally() for site in sites}
    alone = {
        (method, site): OfSae.empty(sae, tokens.shape[0])
        for method, group in saes.items()
        for site, sae in sorted(group.items())
    }
    together = {method: Tally() for method in saes}
    with Bar("measure SAEs", tokens.shape[0]) as bar:
        for part in _batches(lm, sites, tokens, ignore, batch):
            last = part.states[sites[-1]]
            model = lm.logits_from(sites[-1], last.x, last.skip).log_softmax(-1)
            ce, _ = _losses(model, model, part)
            clean.add(ce_clean=ce, n=part.keep.sum(1), n_targets=part.keep[:, 1:].sum(1))
            for site in sites:
                _ablate(lm, site, means[site], part, model, ablated[site])
            for (method, site), of_sae in alone.items():
                _splice(lm, site, saes[method][site], means[site], part, model, of_sae)
            for method, group in saes.items():
                _splice_all(lm, group, means, part, model, together[method])
            bar.step(part.tokens.shape[0])
    n_prompts = tokens.shape[0]
    draws = resamples(n_prompts, seed) if n_prompts > 1 else None
    return Fidelity(
        [
            sae_record(method, site, saes[method][site], of_sae, [clean, ablated[site], of_sae.tally], draws, seed)
            for (method, site), of_sae in alone.items()
        ],
        [spliced_record(method, sorted(saes[method]), [clean, tally], draws) for method, tally in together.items()],
    )


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
    lm: LanguageModel, sites: list[Site], tokens: Int[Tensor, "prompt token"], ignore: Collection[int], size: int
) -> Iterator[_Batch]:
    for number, some in enumerate(tokens.split(size)):
        states = lm.states(some, sites)
        for site, state in states.items():
            bad = ~state.x.isfinite().all(-1).all(-1)
            if bad.any():
                raise UserError(
                    f"{site}: activations of prompt {number * size + int(bad.int().argmax())} are not finite"
                )
        yield _Batch(some, counted(some, ignore), states, number * size)


def _means(
    lm: LanguageModel, sites: list[Site], tokens: Int[Tensor, "prompt token"], ignore: Collection[int], size: int
) -> dict[Site, Float[Tensor, " d_model"]]:
    """Mean activation at each site."""
    sums = {site: torch.zeros(lm.d_model).double() for site in sites}
    n = 0
    for part in _batches(lm, sites, tokens, ignore, size):
        n += int(part.keep.sum())
        for site in sites:
            sums[site] += part.states[site].x[part.keep].double().sum(0)
    if n == 0:
        raise UserError(f"fidelity: every token is one of those to ignore ({', '.join(map(str, sorted(ignore)))})")
    return {site: (total / n).float() for site, total in sums.items()}


def _losses(
    log_probs: Float[Tensor, "prompt token d_vocab"], model: Float[Tensor, "prompt token d_vocab"], part: _Batch
) -> tuple[PerPrompt, PerPrompt]:
    """Sums over a prompt: next-token cross-entropy, and KL from the model."""
    target = part.tokens[:, 1:].unsqueeze(-1)
    ce = -log_probs[:, :-1].gather(-1, target).squeeze(-1) * part.keep[:, 1:]
    kl = (model.exp() * (model - log_probs)).sum(-1) * part.keep
    return ce.double().sum(1), kl.double().sum(1)


def _replaced(x: Tensor, new: Tensor, part: _Batch) -> Tensor:
    return torch.where(part.keep.unsqueeze(-1), new, x)


def _ablate(
    lm: LanguageModel, site: Site, mean: Float[Tensor, " d_model"], part: _Batch, model: Tensor, tally: Tally
) -> None:
    """The losses with zeros, and with the mean, in place of the activation."""
    state = part.states[site]
    for name, value in (("zero", torch.zeros_like(mean)), ("mean", mean)):
        x = _replaced(state.x, value.expand_as(state.x), part)
        ce, kl = _losses(lm.logits_from(site, x, state.skip).log_softmax(-1), model, part)
        tally.add(**{f"ce_{name}": ce, f"kl_{name}": kl})


def _splice(lm: LanguageModel, site: Site, sae: SAE, mean: Tensor, part: _Batch, model: Tensor, into: OfSae) -> None:
    """The SAE's own sums, and the losses with its reconstruction in place of the activation."""
    x, skip = part.states[site]
    acts = sae.encode(x)
    x_hat = sae.decode(acts, x)
    ce, kl = _losses(lm.logits_from(site, _replaced(x, x_hat, part), skip).log_softmax(-1), model, part)
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
    into.tally.add(ce=ce, kl=kl, **{name: (value.double() * part.keep).sum(1) for name, value in sums.items()})
    groups = (part.first + torch.arange(len(x))) % len(into.fired)
    into.fired.index_add_(0, groups, fired.sum(1).int())
    into.error.index_add_(0, groups, ((x - x_hat).double() * part.keep.unsqueeze(-1)).sum(1))


def _splice_all(
    lm: LanguageModel, group: dict[Site, SAE], means: dict[Site, Tensor], part: _Batch, model: Tensor, tally: Tally
) -> None:
    """The losses with all SAEs of a group spliced in, and with all their sites ablated."""
    for name in ("", "_zero", "_mean"):
        replace = {site: _stand_in(name, sae, means[site], part) for site, sae in group.items()}
        ce, kl = _losses(lm.spliced_logits(part.tokens, replace).log_softmax(-1), model, part)
        tally.add(**{f"ce{name}": ce, f"kl{name}": kl})


def _stand_in(name: str, sae: SAE, mean: Float[Tensor, " d_model"], part: _Batch) -> Replacement:
    """The SAE's reconstruction, zeros (`_zero`) or the mean (`_mean`) in place of whatever stands at a site."""

    def put(x: Tensor) -> Tensor:
        if name == "":
            return _replaced(x, sae.decode(sae.encode(x), x), part)
        return _replaced(x, torch.zeros_like(x) if name == "_zero" else mean.expand_as(x), part)

    return put
