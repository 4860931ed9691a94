"""Jacobian SAEs (arXiv 2502.18147): a pair of TopK SAEs around an MLP, trained so that few latents affect each other.

    L = ‖x - x_hat‖² + ‖y - y_hat‖² + lambda (d_model / k²) mean over tokens of sum over active i, j |J_ij|

J is computed by ff_jacobian.py. By default the pair stands at the FF layer (mlp_in, mlp_out), as in the Jacobian SAE
paper and in SCALAR's tables. The pair at the FF block (resid_mid, resid_post) is an extension: the SCALAR authors' code
trains it, and neither paper has results for it. Its Jacobian includes that of the norm, exactly.

`weight` is lambda in the Jacobian SAE paper's units, where its authors' rule of thumb is 0.5 k² / d_model. To convert a
weight from the SCALAR authors' units, multiply it by batch_tokens / d_model, because their term sums over the batch.
"""

import math
from typing import Literal

from jaxtyping import Float
from pydantic import Field, NonNegativeInt
from torch import Tensor

from scalar_sae.lm.feedforward import FeedForward
from scalar_sae.saes.components.ff_jacobian import ff_jacobian, jacobian_penalty
from scalar_sae.saes.components.site_groups import at_layers, ff_blocks, ff_layers
from scalar_sae.saes.components.sparse import Coded
from scalar_sae.saes.methods.base import Acts, Method, Name, Progress, TrainableSAEs, Transformer, squared_error
from scalar_sae.saes.methods.dictionary import SitePair
from scalar_sae.saes.methods.topk import TopKConfig, TopKTrainee
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Block, Site


class JacobianPenalty(Method, frozen=True):
    """The Jacobian term between two SAEs around an MLP."""

    along: Literal["ff_layers", "ff_blocks"]
    """`ff_layers`: mlp_in and mlp_out of each layer. `ff_blocks`: resid_mid and resid_post of each layer."""
    layers: tuple[NonNegativeInt, ...] = ()
    """Layers that get a pair; all of them if none is named."""
    k: int = Field(default=10, gt=0)
    """Latents kept per token, at both sites."""
    weight: float = Field(default=1.0, ge=0)
    """lambda, in the Jacobian SAE paper's units."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of training over which the weight rises linearly from 0."""
    share: float = Field(default=0.25, gt=0, le=1)
    """Share of each worker's tokens, rounded up, on which training computes the Jacobian. Rows are in random order, so
    the mean over the first of them has the same expectation at that share of the cost. Both papers use all tokens (1);
    docs/methods.md says what the share changes. Validation always uses all tokens."""

    def penalty(
        self,
        ff: FeedForward,
        x: Float[Tensor, "batch d_model"],
        up: Coded,
        down: Coded,
        progress: Progress,
        *,
        training: bool,
    ) -> Float[Tensor, ""]:
        """The weighted Jacobian term on a batch.

        In training it is computed on the first `share` of the tokens, otherwise on all of them. `x` is the model's
        activation at the first site.
        """
        if self.weight == 0:
            return x.new_zeros(())
        n = math.ceil(self.share * len(x)) if training else len(x)
        J = ff_jacobian(ff, x[:n], up.of_tokens(n), down.of_tokens(n), block=self.along == "ff_blocks")
        return self.weight * progress.ramp(self.warmup) * jacobian_penalty(J, x.shape[1])

    def ends(self, n_layers: int) -> list[tuple[Site, Site]]:
        """The two sites of every pair."""
        return at_layers((ff_layers if self.along == "ff_layers" else ff_blocks)(n_layers), self.layers)

    def blocks(self, n_layers: int) -> list[Block]:
        """The FF layers or FF blocks."""
        return [Block(*ends) for ends in self.ends(n_layers)]


class JacobianConfig(JacobianPenalty, frozen=True):
    """Pairs of independent TopK SAEs, one pair around every MLP."""

    method: Literal["jacobian"] = "jacobian"
    name: Name = "jacobian"
    """Folder of these SAEs in a run."""
    along: Literal["ff_layers", "ff_blocks"] = "ff_layers"
    """`ff_layers`: mlp_in and mlp_out of each layer. `ff_blocks`: resid_mid and resid_post of each layer."""
    unit_norm: bool = False
    """Keep decoder rows at norm 1, as the Jacobian SAE paper does and SCALAR does not. Without it, an encoder can
    shrink while its decoder grows. The reconstruction is then unchanged, and the Jacobian becomes smaller without
    becoming sparser."""

    def trainees(self, lm: Transformer, seed: int) -> list[TrainableSAEs]:
        """One pair for each of the layers."""
        return [
            JacobianTrainee(self, ends, lm.d_model, lm.feed_forward(ends[0].layer), seed)
            for ends in self.ends(lm.n_layers)
        ]


class JacobianTrainee(TrainableSAEs):
    """The two TopK SAEs of one pair in training."""

    def __init__(
        self, config: JacobianConfig, ends: tuple[Site, Site], d_model: int, ff: FeedForward, seed: int
    ) -> None:
        super().__init__()
        self.sites = ends
        self._config, self._ff = config, ff
        both = [str(site) for site in ends]
        topk = TopKConfig(sites=both, k=config.k, expansion=config.expansion, unit_norm=config.unit_norm)
        self.up, self.down = (TopKTrainee(topk, SitePair(site, site, d_model), seed) for site in ends)

    def losses(self, acts: Acts, progress: Progress) -> dict[Site, Float[Tensor, ""]]:
        """The squared error at each site; the second site's loss includes the Jacobian term."""
        up, down = self.up.coded(acts[self.sites[0]]), self.down.coded(acts[self.sites[1]])
        penalty = self._config.penalty(self._ff, acts[self.sites[0]], up, down, progress, training=self.training)
        return {
            self.sites[0]: squared_error(acts[self.sites[0]], up.decoded()),
            self.sites[1]: squared_error(acts[self.sites[1]], down.decoded()) + penalty,
        }

    def after_backward(self) -> None:
        """Apply the gradient constraints of both SAEs."""
        self.up.after_backward()
        self.down.after_backward()

    def after_step(self) -> None:
        """Restore the weight constraints of both SAEs."""
        self.up.after_step()
        self.down.after_step()

    def sae(self, site: Site) -> SAE:
        """The inference SAE at one of the two sites, with the current weights."""
        return (self.up if site == self.sites[0] else self.down).sae(site)
