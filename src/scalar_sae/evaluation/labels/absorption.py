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
from scalar_sae.evaluation.labels.probes import Label, Probe, Rows, check_label, difference, f1, fit
from scalar_sae.saes.sae import SAE

SPLIT = 0.03
"""Rise of F1 from which one more latent counts as the parent's: the feature is split, not absorbed."""
WORST_F1 = 0.6
"""A probe below this does not find the parent, and its direction means nothing."""
MOST_MAIN = 10
"""Most latents that a parent may be split into."""


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


class Parent(NamedTuple):
    """Where a parent is, and what a linear probe makes of it."""

    label: Label
    direction: Float[Tensor, " d_model"]
    """Of length 1."""
    said: Label
    """Where the probe finds the parent; everywhere, where the direction is given."""
    f1: float | None
    """Of the probe on odd rows, on which it was not fitted; None where the direction is given."""

    @classmethod
    def given(cls, label: Label, direction: Float[Tensor, " d_model"]) -> "Parent":
        """A parent whose direction is known."""
        return cls(label, direction / direction.norm(), torch.ones_like(label), None)

    @classmethod
    def probed(cls, x: Rows, label: Label, probe: Probe) -> "Parent":
        """A parent whose direction is that of a probe fitted on even rows."""
        said = probe.says(x)
        return cls(label, probe.w / probe.w.norm(), said, f1(said[1::2], label[1::2]))


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
    most_main: int = MOST_MAIN,
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
    check_label(parent[::2])
    known = direction is not None
    found = Parent.given(parent, direction) if known else Parent.probed(x, parent, fit(x[::2], parent[::2]))
    if found.f1 is not None and found.f1 <= WORST_F1:
        raise UserError(f"a linear probe finds the parent label with F1 {found.f1:.2f} only: absorption means nothing")
    there = measured_rows(found, child)
    if not there.any():
        check_label((parent if child is None else parent & child)[1::2])
        raise UserError("the probe gets no activation with the child right: measure on more tokens")
    acts = sae.encode(x)
    main = main_latents(acts[::2], parent[::2], most_main)
    return absorbed(sae, x[there], acts[there], found, main, thresholds)


def measured_rows(parent: Parent, child: Label | None) -> Label:
    """The rows that absorption is measured on: odd, with parent and child, and the probe right."""
    odd = torch.arange(len(parent.label)) % 2 == 1
    there = odd & parent.label & parent.said
    return there if child is None else there & child


def main_latents(acts: Float[Tensor, "n d_sae"], parent: Label, most: int = MOST_MAIN) -> list[int]:
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


def absorbed(
    sae: SAE,
    x: Float[Tensor, "n d_model"],
    acts: Float[Tensor, "n d_sae"],
    parent: Parent,
    main: list[int],
    thresholds: Thresholds,
) -> Absorption:
    """Absorption of a parent with these main latents, over all the rows that are given."""
    p = parent.direction
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
        probe_f1=parent.f1,
        n=len(x),
        thresholds=thresholds.name,
    )


def _others(d_sae: int, main: list[int]) -> Int[Tensor, " _"]:
    keep: Bool[Tensor, " d_sae"] = torch.ones(d_sae, dtype=torch.bool)
    keep[main] = False
    return keep.nonzero().squeeze(1)
