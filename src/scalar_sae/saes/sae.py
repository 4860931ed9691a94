"""A sparse autoencoder as it is used: five tensors and a selection rule. No hooks, no training state.

    u = (x - b_dec) W_enc + b_enc        pre-activations
    acts = select(u)                     ReLU and TopK
    x_hat = acts W_dec + b_dec

Every method's trainer ends in this form (a Staircase SAE reads slices of shared matrices while it trains and is an
ordinary SAE afterwards), so the benchmark and the measures know no methods.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.errors import UserError


@dataclass(frozen=True, eq=False)
class SAE:
    """A TopK sparse autoencoder in row-vector convention."""

    W_enc: Float[Tensor, "d_model d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_model"]
    b_dec: Float[Tensor, " d_model"]
    k: int
    """Latents kept per token."""
    chunks: tuple[int, ...] = ()
    """Where d_sae is a staircase: the ends of its chunks, oldest first, the last being d_sae."""

    def __post_init__(self) -> None:
        d_sae = self.W_enc.shape[1]
        if not 1 <= self.k <= d_sae:
            raise UserError(f"k = {self.k}: must lie between 1 and d_sae = {d_sae}")

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    def pre_acts(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_sae"]:
        """Pre-activations, before ReLU and selection."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def select(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """ReLU, then keep the k largest (entries equal to the k-th are kept too, as in the authors' code)."""
        acts = pre_acts.relu()
        kth = acts.detach().topk(self.k, dim=-1).values[..., -1:]
        return torch.where(acts >= kth, acts, 0.0)

    def select_alone(
        self, changed: Float[Tensor, "*many token d_sae"], pre_acts: Float[Tensor, "token d_sae"]
    ) -> Float[Tensor, "*many token d_sae"]:
        """The activation each latent would have if its own pre-activation alone were `changed`.

        A selected latent then competes with the (k+1)-th largest for its place, another one with the k-th.
        """
        acts = pre_acts.relu()
        if self.k == self.d_sae:
            return changed.relu()
        best = acts.topk(self.k + 1, dim=-1).values
        kth, next_best = best[..., -2:-1], best[..., -1:]
        bar = torch.where(acts >= kth, next_best, kth)
        return torch.where(changed >= bar, changed.relu(), 0.0)

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_sae"]:
        """Latent activations."""
        return self.select(self.pre_acts(x))

    def decode(self, acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_model"]:
        """Reconstruction from latent activations."""
        return acts @ self.W_dec + self.b_dec

    def detach(self) -> "SAE":
        """A copy of the weights outside any autograd graph."""
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        return replace(self, **{name: getattr(self, name).detach().clone() for name in names})
