"""From pre-activations to latent activations: the rules that published SAEs use at inference.

| rule       | activation of a latent with pre-activation u             | at inference in             |
|------------|----------------------------------------------------------|-----------------------------|
| `ReLU`     | max(u, 0)                                                | ReLU (L1)                   |
| `TopK`     | max(u, 0) if it is one of the k largest of its token     | TopK, Staircase, Jacobian   |
| `JumpReLU` | max(u, 0) if u is above the latent's own threshold       | JumpReLU, Gated, BatchTopK  |
| `GroupMax` | max(u, 0) if it is the largest of its group              | GroupMax (sparsify)         |

`select` is the rule. The rankings ask which activation each latent would have if only its own pre-activation changed.
`competing_threshold` gives what a changed pre-activation has to beat, and `activate_independently(changed, threshold)`
the activation that follows.
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
    """Every positive pre-activation stays."""

    kind: ClassVar[Kind] = "relu"

    def check(self, d_sae: int) -> None:
        """Nothing can be wrong."""

    def select(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Positive part."""
        return pre_acts.relu()

    def competing_threshold(self, pre_acts: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token d_sae"]:
        """Latents do not compete: being positive is enough."""
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
    """The k largest positive pre-activations of a token stay."""

    k: int
    kind: ClassVar[Kind] = "topk"

    def check(self, d_sae: int) -> None:
        """Raise a UserError if the width leaves no k to choose."""
        if not 1 <= self.k <= d_sae:
            raise UserError(f"k = {self.k}: must lie between 1 and d_sae = {d_sae}")

    def select(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """ReLU, then keep the k largest (entries equal to the k-th are kept too, as in the authors' code)."""
        acts = pre_acts.relu()
        kth = acts.detach().topk(self.k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
        return torch.where(acts >= kth, acts, 0.0)

    def competing_threshold(self, pre_acts: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token d_sae"]:
        """A selected latent competes with the (k+1)-th largest for its place, another one with the k-th."""
        acts = pre_acts.relu()
        if self.k == acts.shape[-1]:
            return torch.zeros_like(acts)
        best = acts.topk(self.k + 1, dim=-1).values
        kth, next_best = best[..., -2:-1], best[..., -1:]
        return torch.where(acts >= kth, next_best, kth)

    def activate_independently(
        self, changed: Float[Tensor, "*many token some"], competing_threshold: Float[Tensor, "token some"]
    ) -> Float[Tensor, "*many token some"]:
        """What reaches the bar, which is not negative."""
        return torch.where(changed >= competing_threshold, changed, 0.0)

    def __str__(self) -> str:
        return f"TopK {self.k}"


@dataclass(frozen=True, eq=False)
class JumpReLU:
    """A positive pre-activation stays where it is above the latent's threshold."""

    threshold: Float[Tensor, " d_sae"]
    kind: ClassVar[Kind] = "jumprelu"

    def check(self, d_sae: int) -> None:
        """Raise a UserError if there is not one threshold a latent."""
        if tuple(self.threshold.shape) != (d_sae,):
            raise UserError(f"threshold has shape {tuple(self.threshold.shape)}; expected ({d_sae},)")

    def select(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Positive part of what exceeds its threshold."""
        return torch.where(pre_acts > self.threshold, pre_acts, 0.0).relu()

    def competing_threshold(self, pre_acts: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token d_sae"]:
        """Latents do not compete: the threshold."""
        return self.threshold.expand_as(pre_acts)

    def activate_independently(
        self, changed: Float[Tensor, "*many token some"], competing_threshold: Float[Tensor, "token some"]
    ) -> Float[Tensor, "*many token some"]:
        """Positive part of what exceeds the bar."""
        return torch.where(changed > competing_threshold, changed, 0.0).relu()

    def __str__(self) -> str:
        return "JumpReLU"


@dataclass(frozen=True)
class GroupMax:
    """The latents are k equal groups of neighbours; the largest of each group stays, if positive."""

    k: int
    kind: ClassVar[Kind] = "groupmax"

    def check(self, d_sae: int) -> None:
        """Raise a UserError if the width is not k equal groups."""
        if self.k < 1 or d_sae % self.k:
            raise UserError(f"k = {self.k}: d_sae = {d_sae} is not a multiple of it")

    def select(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """ReLU, then the largest of each group (equal ones are all kept)."""
        acts = pre_acts.relu().unflatten(-1, (self.k, -1))
        return torch.where(acts >= acts.amax(-1, keepdim=True), acts, 0.0).flatten(-2)

    def competing_threshold(self, pre_acts: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token d_sae"]:
        """A latent competes with the largest of the others in its group."""
        acts = pre_acts.relu().unflatten(-1, (self.k, -1))
        if acts.shape[-1] == 1:
            return torch.zeros_like(pre_acts)
        best = acts.topk(2, dim=-1).values
        return torch.where(acts >= best[..., :1], best[..., 1:], best[..., :1]).flatten(-2)

    def activate_independently(
        self, changed: Float[Tensor, "*many token some"], competing_threshold: Float[Tensor, "token some"]
    ) -> Float[Tensor, "*many token some"]:
        """What reaches the bar, which is not negative."""
        return torch.where(changed >= competing_threshold, changed, 0.0)

    def __str__(self) -> str:
        return f"GroupMax {self.k}"


Activation = ReLU | TopK | JumpReLU | GroupMax
