"""Staircase SAEs with JumpReLU, as in the SCALAR authors' code. The paper reports no results for them.

Weights and private biases are as in staircase.py. The logarithms of the thresholds are shared as the matrices are.
L = sum over sites of ‖x - x_hat‖² + lambda_i sum_j 1[u_j > theta_j], with straight-through gradients as in jumprelu.py.
The defaults are the authors' for their toy model, in its own scale: bandwidth 0.1 and lambda 0.01 (they go up to 0.08
at later sites).
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import JumpReLU
from scalar_sae.saes.components.dead_latents import DeadLatents
from scalar_sae.saes.components.sparsity_control import Sparsity, SparsityWeight
from scalar_sae.saes.methods.base import Acts, Name, Progress, TrainableSAEs, Transformer, generator_at, squared_error
from scalar_sae.saes.methods.jumprelu import jump_relu, step
from scalar_sae.saes.methods.staircase import StaircaseMethod, Stairs
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site


class StaircaseJumpReluConfig(StaircaseMethod, frozen=True):
    """Staircase SAEs with JumpReLU."""

    method: Literal["staircase_jumprelu"] = "staircase_jumprelu"
    name: Name = "staircase_jumprelu"
    """Folder of these SAEs in a run."""
    bandwidth: float = Field(default=0.1, gt=0)
    """eps: the width of the kernel."""
    threshold: float = Field(default=0.1, gt=0)
    """Initial threshold of every latent."""
    sparsity: list[Sparsity] = Field(default=[Sparsity(weight=0.01)], min_length=1)
    """The L0 penalty's weight at each site: one for all sites, or one per site of a staircase."""

    def wanted_l0(self, position: int) -> float | None:
        """The target L0 of a site's penalty."""
        return self.sparsity[position if len(self.sparsity) > 1 else 0].target_l0

    def trainees(self, lm: Transformer, seed: int) -> list[TrainableSAEs]:
        """One trainee per staircase."""
        return [StaircaseJumpReluTrainee(self, sites, lm.d_model, seed) for sites in self.flights(lm.n_layers)]


class StaircaseJumpReluTrainee(TrainableSAEs):
    """The JumpReLU SAEs of one staircase in training."""

    def __init__(self, config: StaircaseJumpReluConfig, sites: tuple[Site, ...], d_model: int, seed: int) -> None:
        super().__init__()
        self.sites = sites
        self.bandwidth = config.bandwidth
        each = config.sparsity * len(sites) if len(config.sparsity) == 1 else config.sparsity
        if len(each) != len(sites):
            raise UserError(f"{config.name}: {len(each)} sparsity weights for a staircase of {len(sites)} sites")
        self.stairs = Stairs(config, len(sites), d_model, generator_at(seed, sites[0]), config.threshold)
        self.sparsity = nn.ModuleList(SparsityWeight(one) for one in each)
        self.dead_latents = nn.ModuleList(DeadLatents(end) for end in self.stairs.ends)

    def losses(self, acts: Acts, progress: Progress) -> dict[Site, Tensor]:
        """Each site's squared error and L0 penalty."""
        found: dict[Site, Tensor] = {}
        for i, site in enumerate(self.sites):
            weights, threshold = self.stairs.weights(i), self.stairs.threshold(i)
            u = weights.pre_acts(acts[site])
            f = jump_relu(u, threshold, self.bandwidth)
            dead_latents, sparsity = self.dead_latents[i], self.sparsity[i]
            assert isinstance(dead_latents, DeadLatents)
            assert isinstance(sparsity, SparsityWeight)
            dead_latents.record((f > 0).any(0), len(f))
            l0 = step(u, threshold, self.bandwidth).sum(1).mean()
            found[site] = squared_error(acts[site], weights.decode(f)) + sparsity.at(progress, l0.detach()) * l0
        return found

    def sae(self, site: Site) -> SAE:
        """The inference SAE at one site, with the current weights."""
        i = self.sites.index(site)
        return self.stairs.weights(i).sae(JumpReLU(self.stairs.threshold(i).detach()), chunks=self.stairs.chunks(i))
