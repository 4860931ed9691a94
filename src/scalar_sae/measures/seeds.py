"""SAEs of one method from several seeds: consistency and overlap on the same SAEs, one record a method and site."""

from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.measures.consistency import mcc
from scalar_sae.measures.matching import Dictionary
from scalar_sae.measures.overlap import THRESHOLD, appearances, overlap
from scalar_sae.runs import Bar
from scalar_sae.sae_results import SeedAgreement
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import find_sae
from scalar_sae.sites import Site

Run = dict[str, dict[Site, SAE]]


def seed_agreement(
    runs: dict[str, Run],
    lm: LanguageModel | None = None,
    tokens: Int[Tensor, "prompt token"] | None = None,
    threshold: float = THRESHOLD,
    require_same_partner: bool = True,
) -> list[SeedAgreement]:
    """Compare the SAEs that several runs have in common: same method, same site.

    Args:
        runs: SAEs by the name of their run, method and site.
        lm: the model they read, to measure which latents fire; without it all latents are compared.
        tokens: prompts for that.
        threshold: of the overlap.
        require_same_partner: of the overlap.

    Raises:
        UserError: fewer than two runs, nothing in common, or SAEs of different widths.
    """
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
    found: list[SeedAgreement] = []
    with Bar("compare seeds", len(common)) as bar:
        for method, site in common:
            saes = [sae for run in runs.values() if (sae := find_sae(run[method], site))]
            rates = densities(lm, site, saes, tokens) if lm and tokens is not None else [None] * len(saes)
            seeds = [Dictionary.of(sae, rate).alive() for sae, rate in zip(saes, rates, strict=True)]
            n_tokens = tokens.numel() if lm and tokens is not None else None
            found.append(_compare(method, site, list(runs), seeds, threshold, require_same_partner, n_tokens))
            bar.step(note=f"{method} {site}")
    return found


@torch.no_grad()
def densities(
    lm: LanguageModel, site: Site, saes: list[SAE], tokens: Int[Tensor, "prompt token"], batch: int = 8
) -> list[Float[Tensor, " _"]]:
    """Share of the tokens on which each latent fires, for several SAEs of one site."""
    counts = [torch.zeros(sae.d_sae) for sae in saes]
    for some in tokens.split(batch):
        x = lm.activations(some, [site])[site]
        for count, sae in zip(counts, saes, strict=True):
            count += (sae.encode(x) > 0).flatten(0, 1).sum(0)
    return [count / tokens.numel() for count in counts]


def _compare(
    method: str,
    site: Site,
    runs: list[str],
    seeds: list[Dictionary],
    threshold: float,
    require_same_partner: bool,
    n_tokens: int | None,
) -> SeedAgreement:
    pairs = [mcc(a, b) for a, b in combinations(seeds, 2)]
    times = appearances(seeds, threshold, require_same_partner)
    counts = np.bincount(np.concatenate(times), minlength=len(seeds))
    pw_mcc, null = (float(np.mean([getattr(pair, name) for pair in pairs])) for name in ("mcc", "null"))
    return SeedAgreement(
        method=method,
        site=str(site),
        runs=runs,
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
        n_tokens=n_tokens,
    )


def _shared_null(a: Dictionary, b: Dictionary, threshold: float, require_same_partner: bool) -> float:
    """Overlap of random dictionaries of the same shapes, encoder and decoder alike: the most that chance gives."""
    g = torch.Generator().manual_seed(0)
    one, other = (Dictionary.random(*side.W_dec.shape, generator=g) for side in (a, b))
    return float(overlap(one, other, threshold, require_same_partner).shared.mean())
