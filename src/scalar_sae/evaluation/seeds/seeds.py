"""Consistency and overlap of the SAEs of one method from several seeds: one record per method and site."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.console import Bar
from scalar_sae.errors import UserError
from scalar_sae.evaluation.seeds.consistency import mcc
from scalar_sae.evaluation.seeds.matching import Dictionary
from scalar_sae.evaluation.seeds.overlap import THRESHOLD, appearances, check_threshold, overlap, overlaps
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import Rule, counted
from scalar_sae.records.sae_results import SeedAgreement
from scalar_sae.saes.formats.files import about
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import find_sae
from scalar_sae.sites import Site

Runs = Mapping[str, Mapping[str, Mapping[Site, SAE]]]
"""SAEs by run, method and site."""


def seed_agreement(
    runs: Runs,
    lm: LanguageModel | None = None,
    tokens: Int[Tensor, "prompt token"] | None = None,
    threshold: float = THRESHOLD,
    require_same_partner: bool = True,
    special: Rule = "skip",
) -> list[SeedAgreement]:
    """Compare the SAEs that several runs have in common: same method, same site.

    Args:
        runs: SAEs by the name of their run, method and site.
        lm: the model that they read, to measure which latents fire; without it all latents are compared.
        tokens: prompts on which firing is measured.
        threshold: cosine threshold of the overlap.
        require_same_partner: whether overlap requires the same partner in both matchings.
        special: the rule for special tokens (lm/special.py); firing is not counted at skipped tokens.

    Raises:
        UserError: as `in_common`, or no latent of an SAE fires.
    """
    found: list[SeedAgreement] = []
    common = in_common(runs, threshold, lm)
    with Bar("compare seeds", len(common)) as bar:
        for method, site in common:
            saes = _at(runs, method, site)
            rates: list[Float[Tensor, " _"] | None] = [None] * len(saes)
            n_tokens = n_special = None
            if lm and tokens is not None:
                rates = [*densities(lm, site, list(saes.values()), tokens, special)]
                n_tokens = int(counted(tokens, lm.special_ids(special)).sum())
                n_special = tokens.numel() - n_tokens
            seeds = {run: Dictionary.of(sae, rate) for (run, sae), rate in zip(saes.items(), rates, strict=True)}
            for run, seed in seeds.items():
                if len(seed.alive().W_dec) == 0:
                    raise UserError(f"{run} {method} {site}: no latent fires on the {n_tokens:,} tokens; leave it out")
            with about(f"{', '.join(runs)}: {method} {site}"):
                found.append(_compare(method, site, seeds, threshold, require_same_partner, (n_tokens, n_special)))
            bar.step(note=f"{method} {site}")
    return found


def in_common(runs: Runs, threshold: float, lm: LanguageModel | None = None) -> list[tuple[str, Site]]:
    """The methods and sites that all runs have.

    Raises:
        UserError: there are fewer than two runs, they have nothing in common, SAEs differ in width from the model or
            from one another, or the threshold is not a cosine.
    """
    check_threshold(threshold)
    if len(runs) < 2:
        raise UserError("consistency needs the SAEs of two seeds, there is one run; train another with --set seed=1")
    first, *others = runs.values()
    common = [
        (method, site)
        for method, group in first.items()
        for site in sorted(group)
        if all(find_sae(other.get(method, {}), site) for other in others)
    ]
    if not common:
        raise UserError(f"{', '.join(runs)}: no method and site in common")
    for method, site in common:
        saes = _at(runs, method, site)
        name, width = (lm.name, lm.d_model) if lm else next((run, sae.d_model) for run, sae in saes.items())
        for run, sae in saes.items():
            if sae.d_model != width:
                raise UserError(f"{run} {method} {site}: reads {sae.d_model} dimensions, {name} has {width}")
    return common


def _at(runs: Runs, method: str, site: Site) -> dict[str, SAE]:
    """The SAE of each run at a place that all runs have."""
    return {name: sae for name, run in runs.items() if (sae := find_sae(run[method], site))}


@torch.no_grad()
def densities(
    lm: LanguageModel,
    site: Site,
    saes: list[SAE],
    tokens: Int[Tensor, "prompt token"],
    special: Rule = "skip",
    batch: int = 8,
) -> list[Float[Tensor, " _"]]:
    """For several SAEs of one site, the share of tokens on which each latent fires. Special tokens are left out."""
    counts, kept = [torch.zeros(sae.d_sae) for sae in saes], counted(tokens, lm.special_ids(special))
    for some, there in zip(tokens.split(batch), kept.split(batch), strict=True):
        x = lm.activations(some, [site])[site][there]
        for count, sae in zip(counts, saes, strict=True):
            count += (sae.encode(x) > 0).sum(0)
    return [count / kept.sum() for count in counts]


def _compare(
    method: str,
    site: Site,
    runs: dict[str, Dictionary],
    threshold: float,
    require_same_partner: bool,
    sizes: tuple[int | None, int | None],
) -> SeedAgreement:
    seeds = [seed.alive() for seed in runs.values()]
    both = overlaps(seeds, threshold, require_same_partner)
    pairs = [mcc(a, b, found=pair.decoder) for (a, b), pair in zip(combinations(seeds, 2), both, strict=True)]
    times = appearances(seeds, both)
    counts = np.bincount(np.concatenate(times), minlength=len(seeds))
    pw_mcc, null = (float(np.mean([getattr(pair, name) for pair in pairs])) for name in ("mcc", "null"))
    return SeedAgreement(
        method=method,
        site=str(site),
        runs=list(runs),
        pw_mcc=pw_mcc,
        null=null,
        rescaled=(pw_mcc - null) / (1 - null),
        pairs=pairs,
        absolute_pairs=[mcc(a, b, absolute=True) for a, b in combinations(seeds, 2)],
        threshold=threshold,
        same_partner=require_same_partner,
        shared=float(np.mean([time.mean() for time in times])) / (len(seeds) - 1),
        shared_null=_shared_null(seeds[0], seeds[1], threshold, require_same_partner),
        appearances=counts.tolist(),
        in_others=[_by_latent(seed, time) for seed, time in zip(runs.values(), times, strict=True)],
        n_tokens=sizes[0],
        n_special=sizes[1],
    )


def _by_latent(seed: Dictionary, times: Int[np.ndarray, " alive"]) -> list[int | None]:
    """Values of the latents that fire, placed among all latents; None for the others."""
    if seed.density is None:
        return times.tolist()
    of_alive = iter(times.tolist())
    return [next(of_alive) if rate > 0 else None for rate in seed.density.tolist()]


def _shared_null(a: Dictionary, b: Dictionary, threshold: float, require_same_partner: bool) -> float:
    """Overlap of random dictionaries of the same shapes whose encoders equal their decoders: an upper bound for
    chance.
    """
    g = torch.Generator().manual_seed(0)
    one, other = (Dictionary.random(*side.W_dec.shape, generator=g) for side in (a, b))
    return float(overlap(one, other, threshold, require_same_partner).shared.mean())
