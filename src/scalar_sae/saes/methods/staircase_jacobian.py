"""Staircase and Jacobian combined: the two sites of each FF block share a dictionary and a Jacobian penalty.

No published work combines the two. Each half is as in its own file. The skip connection carries the shared directions,
so their Jacobian is dense. The penalty therefore opposes sharing where one latent serves both sites, and which of the
two prevails is an empirical question.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from scalar_sae.lm.feedforward import FeedForward
from scalar_sae.saes.methods.base import Acts, Name, Progress, TrainableSAEs, Transformer, squared_error
from scalar_sae.saes.methods.jacobian import JacobianPenalty
from scalar_sae.saes.methods.staircase import StaircaseConfig, StaircaseTrainee
from scalar_sae.sites import Site


class StaircaseJacobianConfig(JacobianPenalty, frozen=True):
    """Staircase pairs at the FF blocks with a Jacobian term."""

    method: Literal["staircase_jacobian"] = "staircase_jacobian"
    name: Name = "staircase_jacobian"
    """Folder of these SAEs in a run."""
    along: Literal["ff_blocks"] = "ff_blocks"
    """resid_mid and resid_post of each layer."""

    def trainees(self, lm: Transformer, seed: int) -> list[TrainableSAEs]:
        """One staircase for each of the layers."""
        return [
            StaircaseJacobianTrainee(self, ends, lm.d_model, lm.feed_forward(ends[0].layer), seed)
            for ends in self.ends(lm.n_layers)
        ]


class StaircaseJacobianTrainee(StaircaseTrainee):
    """A staircase of two sites with a Jacobian term."""

    def __init__(
        self, config: StaircaseJacobianConfig, ends: tuple[Site, Site], d_model: int, ff: FeedForward, seed: int
    ) -> None:
        stairs = StaircaseConfig(along="ff_blocks", k=config.k, expansion=config.expansion)
        super().__init__(stairs, ends, d_model, seed)
        self._config, self._ff = config, ff

    def losses(self, acts: Acts, progress: Progress) -> dict[Site, Float[Tensor, ""]]:
        """The squared error at each site; the second site's loss includes the Jacobian term."""
        up, down = (self.coded(site, acts) for site in self.sites)
        errors = [
            squared_error(acts[site], coded.decoded()) for site, coded in zip(self.sites, (up, down), strict=True)
        ]
        penalty = self._config.penalty(self._ff, acts[self.sites[0]], up, down, progress, training=self.training)
        return {self.sites[0]: errors[0], self.sites[1]: errors[1] + penalty}
