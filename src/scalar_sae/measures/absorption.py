"""Feature absorption (Chanin et al., arXiv 2409.14507, in SAEBench's form): does a latent carry another's feature?

A latent for "starts with S" that falls silent on "short" has been absorbed by the latent for "short", which writes the
S direction instead. Given activations, a parent label and a child label:

    p        direction of the parent: a linear probe's, or given
    main     the latents that know the parent: best by difference of means, one more as long as F1 rises by SPLIT
    a_i      projection of latent i's contribution on p, for activations with parent and child that the probe gets right
    fraction A' / (A' + main), with A the largest projections of other latents, A' = min(A, <x, p> - main)
    full     share of those activations where all main latents are silent and one other latent stands in

The paper of SAEBench and its code disagree on the thresholds; results name which were used. SAEBench ranks latents by
an L1 probe where this ranks by difference of means.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.measures.probes import Label, Probe, check_label, difference, f1, fit
from scalar_sae.saes.sae import SAE

SPLIT = 0.03
"""Rise of F1 from which one more latent counts as the parent's: the feature is split, not absorbed."""
WORST_F1 = 0.6
"""A probe below this does not find the parent, and its direction means nothing."""


@dataclass(frozen=True)
class Thresholds:
    """What counts as standing in for the parent."""

    name: str
    share: float
    """Least share of <x, p> that the absorbing latents supply."""
    cosine: float
    """Least cosine of an absorbing latent's decoder with p."""
    most: int | None
    """Most absorbing latents that are summed; None: all."""


SAEBENCH_PAPER = Thresholds("SAEBench paper", share=0.0, cosine=-1.0, most=None)
SAEBENCH_CODE = Thresholds("SAEBench code", share=0.4, cosine=0.1, most=3)


class Absorption(NamedTuple):
    """How much of a parent its children's latents have absorbed."""

    fraction: float
    """Mean share of the parent's direction that other latents supply."""
    full: float
    """Share of activations where the parent's latents are all silent and another stands in."""
    main: list[int]
    """The parent's latents."""
    probe_f1: float | None
    """Of the parent's probe on rows it was not fitted on; None where the direction was given."""
    n: int
    """Activations it was measured on."""
    thresholds: str


@torch.no_grad()
def absorption(
    sae: SAE,
    x: Float[Tensor, "n d_model"],
    parent: Label,
    child: Label | None = None,
    direction: Float[Tensor, " d_model"] | None = None,
    thresholds: Thresholds = SAEBENCH_CODE,
    most_main: int = 10,
) -> Absorption:
    """Measure how much of `parent` is absorbed where `child` is present.

    Args:
        sae: what is measured.
        x: activations; even rows choose probe and latents, odd rows are measured.
        parent: which activations have the parent.
        child: which have the child; all that have the parent by default.
        direction: of the parent, where it is known; fitted otherwise.
        thresholds: SAEBENCH_PAPER, SAEBENCH_CODE or others.
        most_main: most latents that the parent may be split into.

    Raises:
        UserError: a label that never occurs, or a parent that no linear probe finds.
    """
    first, rest = slice(0, None, 2), slice(1, None, 2)
    check_label(parent[first])
    there = parent & child if child is not None else parent
    check_label(there[rest])
    known = direction is not None
    probe = Probe(direction, torch.zeros(())) if direction is not None else fit(x[first], parent[first])
    p = probe.w / probe.w.norm()
    quality = None if known else f1(probe.says(x[rest]), parent[rest])
    if quality is not None and quality <= WORST_F1:
        raise UserError(f"a linear probe finds the parent label with F1 {quality:.2f} only: absorption means nothing")
    main = _main_latents(sae.encode(x[first]), parent[first], most_main)
    rows = x[rest][there[rest] & (known | probe.says(x[rest]))]
    if not len(rows):
        raise UserError("the probe gets no activation with the child right: measure on more tokens")
    return _measured(sae, rows, p, main, thresholds)._replace(probe_f1=quality)


def _main_latents(acts: Float[Tensor, "n d_sae"], parent: Label, most: int) -> list[int]:
    """The latents that know the parent: one, and another as long as F1 rises by SPLIT."""
    order = difference(acts, parent).topk(min(most, acts.shape[1])).indices.tolist()
    best = 0.0
    for k in range(1, len(order) + 1):
        some = acts[:, order[:k]]
        quality = f1(fit(some, parent).says(some), parent)
        if k > 1 and quality - best <= SPLIT:
            return order[: k - 1]
        best = quality
    return order


def _measured(
    sae: SAE, x: Float[Tensor, "n d_model"], p: Float[Tensor, " d_model"], main: list[int], thresholds: Thresholds
) -> Absorption:
    acts = sae.encode(x)
    along = x @ p
    projections = acts * (sae.W_dec @ p)
    of_main = projections[:, main].sum(1)
    cosines = torch.nn.functional.normalize(sae.W_dec, dim=1) @ p
    others = _others(sae.d_sae, main)
    near = others[cosines[others] >= thresholds.cosine]
    strongest = projections[:, near].clamp_min(0).topk(min(thresholds.most or len(near), len(near)), dim=1)
    supplied = strongest.values.sum(1)
    counts = (supplied > 0) & (supplied >= thresholds.share * along) & (of_main < along)
    filled = torch.minimum(supplied, along - of_main)
    fraction = torch.where(of_main <= 0, 1.0, filled / (filled + of_main))
    silent = (acts[:, main] <= 0).all(1)
    top, which = projections[:, others].max(1)
    full = silent & (cosines[others][which] >= 0.025) & (top >= 0.4 * along)
    return Absorption(
        fraction=torch.where(counts, fraction, 0.0).mean().item(),
        full=full.float().mean().item(),
        main=main,
        probe_f1=None,
        n=len(x),
        thresholds=thresholds.name,
    )


def _others(d_sae: int, main: list[int]) -> Int[Tensor, " _"]:
    keep: Bool[Tensor, " d_sae"] = torch.ones(d_sae, dtype=torch.bool)
    keep[main] = False
    return keep.nonzero().squeeze(1)
