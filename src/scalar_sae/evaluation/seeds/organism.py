"""Synthetic data with known features: the organism of arXiv 2505.20254, and a hierarchy that invites absorption.

    x = sum over k atoms of c_i d_i,   c_i = |N(0, 1)|,   d_i unit Gaussian directions

The released organism has d_model = 16, 32 atoms, k = 3 and no noise. GT-MCC compares a dictionary with `atoms`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scalar_sae.errors import UserError


@dataclass(frozen=True, eq=False)
class Sample:
    """Activations and the codes that generated them."""

    x: Float[Tensor, "n d_model"]
    code: Float[Tensor, "n n_atoms"]

    @property
    def active(self) -> Bool[Tensor, "n n_atoms"]:
        """Mask of the features in each activation, used as labels for absorption and probes."""
        return self.code > 0


@dataclass(frozen=True, eq=False)
class Organism:
    """A known dictionary and a distribution of codes."""

    atoms: Float[Tensor, "n_atoms d_model"]
    k: int
    """Number of atoms in each activation."""

    @classmethod
    def random(cls, d_model: int = 16, n_atoms: int = 32, k: int = 3, seed: int = 0) -> "Organism":
        """Unit Gaussian atoms. The default sizes are those of the released organism.

        Raises:
            UserError: k is not between 1 and n_atoms.
        """
        if not 1 <= k <= n_atoms:
            raise UserError(f"k = {k}: an activation has between 1 and n_atoms = {n_atoms} atoms")
        W = torch.randn(n_atoms, d_model, generator=torch.Generator().manual_seed(seed))
        return cls(W / W.norm(dim=1, keepdim=True), k)

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """Draw n activations, each of k different atoms."""
        n_atoms = self.atoms.shape[0]
        chosen = torch.rand(n, n_atoms, generator=generator).topk(self.k, dim=1).indices
        values = torch.randn(n, self.k, generator=generator).abs()
        code = torch.zeros(n, n_atoms).scatter(1, chosen, values)
        return Sample(code @ self.atoms, code)


def hierarchy(
    n: int, generator: torch.Generator, d_model: int = 50, parent_rate: float = 0.3, child_rate: float = 0.03
) -> Sample:
    """Four orthogonal features of size 1. Feature 1, the child, occurs only together with feature 0, its parent.

    This is the toy model of arXiv 2409.14507. An SAE needs one active latent fewer if the child's latent also
    represents the parent.

    Args:
        n: number of activations.
        generator: source of the codes; the directions are the first four axes.
        d_model: width.
        parent_rate: share of activations with the parent; features 2 and 3 are equally frequent, and independent.
        child_rate: share of the parent's activations that have the child; a frequent child is split off, not absorbed.
    """
    draws = torch.rand(n, 4, generator=generator)
    code = (draws < parent_rate).float()
    code[:, 1] = code[:, 0] * (draws[:, 1] < child_rate)
    return Sample(code @ torch.eye(4, d_model), code)
