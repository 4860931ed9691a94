"""Activation rules: from pre-activations to latent activations, as published SAEs compute them at inference.

| rule       | activation of a latent with pre-activation u             | at inference in             |
|------------|----------------------------------------------------------|-----------------------------|
| `ReLU`     | max(u, 0)                                                | ReLU (L1)                   |
| `TopK`     | max(u, 0) if it is one of the k largest of its token     | TopK, Staircase, Jacobian   |
| `JumpReLU` | max(u, 0) if u is above the latent's own threshold       | JumpReLU, Gated, BatchTopK  |
| `GroupMax` | max(u, 0) if it is the largest of its group              | GroupMax (sparsify)         |

`select` applies the rule. The rankings also need the activation that each latent would have if only its own
pre-activation changed. `competing_threshold` is the value that a changed pre-activation must reach or exceed, and
`activate_independently(changed, threshold)` is the resulting activation.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.errors import UserError

Kind = Literal["relu", "topk", "jumprelu", "groupmax"]


@dataclass(frozen=True)
class ReLU:
    """Keep every positive pre-activation."""

    kind: ClassVar[Kind] = "relu"

    def check(self, d_sae: int) -> None:
        """Accept any width."""

    def select(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Positive part."""
        return pre_acts.relu()

    def competing_threshold(self, pre_acts: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token d_sae"]:
        """Zero: latents do not compete."""
        return torch.zeros_like(pre_acts)

    def activate_independently(
        self, changed: Float[Tensor, "*many token some"], competing_threshold: Float[Tensor, "token some"]
    ) -> Float[Tensor, "*many token some"]:
        """Positive part."""
        return changed.relu()

    def __str__(self) -> str:
        return "ReLU"


@dataclass(frozen=True)
class TopK:
    """Keep the k largest positive pre-activations of each token."""

    k: int
    kind: ClassVar[Kind] = "topk"

    def check(self, d_sae: int) -> None:
        """Raise a UserError if k is not within the width."""
        if not 1 <= self.k <= d_sae:
            raise UserError(f"k = {self.k}: must lie between 1 and d_sae = {d_sae}")

    def select(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """ReLU, then keep the k largest. Entries tied with the k-th are kept too, as in the SCALAR authors' code."""
        acts = pre_acts.relu()
        kth = acts.detach().topk(self.k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
        return torch.where(acts >= kth, acts, 0.0)

    def competing_threshold(self, pre_acts: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token d_sae"]:
        """The (k+1)-th largest for a selected latent, the k-th largest for every other latent."""
        acts = pre_acts.relu()
        if self.k == acts.shape[-1]:
            return torch.zeros_like(acts)
        best = acts.topk(self.k + 1, dim=-1).values
        kth, next_best = best[..., -2:-1], best[..., -1:]
        return torch.where(acts >= kth, next_best, kth)

    def activate_independently(
        self, changed: Float[Tensor, "*many token some"], competing_threshold: Float[Tensor, "token some"]
    ) -> Float[Tensor, "*many token some"]:
        """Changed pre-activations that reach the threshold, which is not negative; else 0."""
        return torch.where(changed >= competing_threshold, changed, 0.0)

    def __str__(self) -> str:
        return f"TopK {self.k}"


@dataclass(frozen=True, eq=False)
class JumpReLU:
    """Keep a positive pre-activation that exceeds the latent's threshold."""

    threshold: Float[Tensor, " d_sae"]
    kind: ClassVar[Kind] = "jumprelu"

    def check(self, d_sae: int) -> None:
        """Raise a UserError unless there is one threshold per latent."""
        if tuple(self.threshold.shape) != (d_sae,):
            raise UserError(f"threshold has shape {tuple(self.threshold.shape)}; expected ({d_sae},)")

    def select(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """The positive part of the pre-activations that exceed their thresholds."""
        return torch.where(pre_acts > self.threshold, pre_acts, 0.0).relu()

    def competing_threshold(self, pre_acts: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token d_sae"]:
        """The thresholds: latents do not compete."""
        return self.threshold.expand_as(pre_acts)

    def activate_independently(
        self, changed: Float[Tensor, "*many token some"], competing_threshold: Float[Tensor, "token some"]
    ) -> Float[Tensor, "*many token some"]:
        """The positive part of the changed pre-activations that exceed the threshold."""
        return torch.where(changed > competing_threshold, changed, 0.0).relu()

    def __str__(self) -> str:
        return "JumpReLU"


@dataclass(frozen=True)
class GroupMax:
    """The latents form k equal groups of neighbours. The largest of each group is kept if positive."""

    k: int
    kind: ClassVar[Kind] = "groupmax"

    def check(self, d_sae: int) -> None:
        """Raise a UserError unless the width divides into k equal groups."""
        if self.k < 1 or d_sae % self.k:
            raise UserError(f"k = {self.k}: d_sae = {d_sae} is not a multiple of it")

    def select(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """ReLU, then keep the largest of each group; ties are all kept."""
        acts = pre_acts.relu().unflatten(-1, (self.k, -1))
        return torch.where(acts >= acts.amax(-1, keepdim=True), acts, 0.0).flatten(-2)

    def competing_threshold(self, pre_acts: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token d_sae"]:
        """The largest of the other latents in the group."""
        acts = pre_acts.relu().unflatten(-1, (self.k, -1))
        if acts.shape[-1] == 1:
            return torch.zeros_like(pre_acts)
        best = acts.topk(2, dim=-1).values
        return torch.where(acts >= best[..., :1], best[..., 1:], best[..., :1]).flatten(-2)

    def activate_independently(
        self, changed: Float[Tensor, "*many token some"], competing_threshold: Float[Tensor, "token some"]
    ) -> Float[Tensor, "*many token some"]:
        """Changed pre-activations that reach the threshold, which is not negative; else 0."""
        return torch.where(changed >= competing_threshold, changed, 0.0)

    def __str__(self) -> str:
        return f"GroupMax {self.k}"


Activation = ReLU | TopK | JumpReLU | GroupMax
