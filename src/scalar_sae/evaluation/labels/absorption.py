"""Feature absorption (Chanin et al., arXiv 2409.14507, in SAEBench's form): does a latent carry another latent's
feature?

Suppose the latent for "starts with S" is silent on "short". It has been absorbed by the latent for "short", which
writes the S direction instead. Given activations, a parent label and a child label:

    p        direction of the parent: given, or that of a linear probe
    main     the parent's latents: the best by difference of means, and more while each raises F1 by SPLIT
    a_i      projection on p of latent i's contribution, where parent and child are present and the probe is right
    fraction A' / (A' + main), with A the largest projections of other latents, A' = min(A, <x, p> - main)
    full     share of those activations where all main latents are silent and one other latent takes over

SAEBench's paper and code use different thresholds; results name the ones used. SAEBench ranks latents by an L1 probe,
whereas this file ranks them by difference of means.
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
"""Increase of F1 above which another latent counts as the parent's: the feature is split, not absorbed."""
WORST_F1 = 0.6
"""Minimum F1 of a parent's probe. The direction of a worse probe is meaningless."""
MOST_MAIN = 10
"""Maximum number of latents into which a parent may be split."""


@dataclass(frozen=True)
class Thresholds:
    """Criteria for latents that absorb the parent."""

    name: str
    share: float
    """Minimum share of <x, p> that the absorbing latents contribute."""
    cosine: float
    """Minimum cosine of an absorbing latent's decoder direction with p."""
    most: int | None
    """Maximum number of absorbing latents that are summed; None for all."""


SAEBENCH_PAPER = Thresholds("SAEBench paper", share=0.0, cosine=-1.0, most=None)
SAEBENCH_CODE = Thresholds("SAEBench code", share=0.4, cosine=0.1, most=3)


class Parent(NamedTuple):
    """Where a parent is present, and its direction from a linear probe."""

    label: Label
    direction: Float[Tensor, " d_model"]
    """Direction of length 1."""
    said: Label
    """Where the probe detects the parent; true everywhere if the direction is given."""
    f1: float | None
    """F1 of the probe on the odd rows, on which it was not fitted; None if the direction is given."""

    @classmethod
    def given(cls, label: Label, direction: Float[Tensor, " d_model"]) -> "Parent":
        """A parent whose direction is known."""
        return cls(label, direction / direction.norm(), torch.ones_like(label), None)

    @classmethod
    def probed(cls, x: Rows, label: Label, probe: Probe) -> "Parent":
        """A parent whose direction is that of a probe fitted on the even rows."""
        said = probe.says(x)
        return cls(label, probe.w / probe.w.norm(), said, f1(said[1::2], label[1::2]))


class Absorption(NamedTuple):
    """How far other latents have absorbed a parent."""

    fraction: float
    """Mean share of the parent's direction that other latents contribute."""
    full: float
    """Share of activations where the parent's latents are all silent and another latent takes over."""
    main: list[int]
    """The parent's latents."""
    probe_f1: float | None
    """F1 of the parent's probe on rows on which it was not fitted; None if the direction was given."""
    n: int
    """Number of activations measured."""
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
        sae: the SAE to measure.
        x: activations. Even rows select the probe and latents; odd rows are measured.
        parent: mask of the activations with the parent.
        child: mask of the activations with the child; None takes all that have the parent.
        direction: direction of the parent, if known; otherwise a probe is fitted.
        thresholds: SAEBENCH_PAPER, SAEBENCH_CODE or others.
        most_main: maximum number of latents into which the parent may be split.

    Raises:
        UserError: a label never occurs, or no linear probe finds the parent.
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
    """Mask of the rows measured: odd rows with parent and child on which the probe is right."""
    odd = torch.arange(len(parent.label)) % 2 == 1
    there = odd & parent.label & parent.said
    return there if child is None else there & child


def main_latents(acts: Float[Tensor, "n d_sae"], parent: Label, most: int = MOST_MAIN) -> list[int]:
    """The parent's latents: the best one, and more while each raises F1 by SPLIT."""
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
    """Absorption of a parent with these main latents, over all rows given."""
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
