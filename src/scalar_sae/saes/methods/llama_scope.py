"""Llama Scope's TopK SAEs (He et al., arXiv 2410.20526, and its authors' code).

Each token keeps the K latents with the largest ReLU(u_i) ‖d_i‖. Their activations are ReLU(u_i). The norms of the
decoder rows are free. K falls linearly from d_model / 2 to k over the first tenth of training. After training the norms
are folded into the encoder, and one threshold replaces TopK: the (n k)-th largest of all activations on n tokens (a
JumpReLU). There is no pre-encoder bias and no auxiliary loss.

The loss is the mean over tokens and dimensions of (y_hat - y)² / ‖y - mean(y)‖, where mean(y) is the batch's mean. As
in the authors' code, the error is divided by the norm and not by its square, and the square of the norm is at least
1e-8.
The scale is E‖x‖ = √d_model. The rows of W_dec start at norm 0.5, and W_enc starts as the transpose of W_dec. The
encoder of a transcoder is drawn separately. The preset `llama-scope` has the authors' optimiser and schedule.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.saes.activation import Activation, JumpReLU, TopK
from scalar_sae.saes.components.sparse import Coded, chosen, largest, largest_values, pre_acts
from scalar_sae.saes.methods.base import (
    CALIBRATION_TOKENS,
    Acts,
    Name,
    Progress,
    Scale,
    TrainableSAEs,
    encoder_and_decoder,
    generator_at,
)
from scalar_sae.saes.methods.dictionary import Dictionary, DictionaryMethod, SitePair
from scalar_sae.saes.methods.topk import check_k
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site

LEAST_SPREAD = 1e-4
"""The least norm that errors are divided by: a token that equals the batch's mean has none."""
FROM_TOKENS = 32_768
"""Tokens that the threshold of inference is found on, at most."""


class LlamaScopeConfig(DictionaryMethod, frozen=True):
    """Independent TopK SAEs as in Llama Scope."""

    method: Literal["llama_scope"] = "llama_scope"
    name: Name = "llama_scope"
    """Folder of these SAEs in a run."""
    scale: Scale = "sqrt_d"
    """Scale of training."""
    k: int = Field(default=10, gt=0)
    """Latents kept per token when annealing is over; the mean L0 at inference."""
    annealing: float = Field(default=0.1, ge=0, le=1)
    """Share of training over which K falls from d_model / 2 to k."""
    decoder_norm: float = Field(default=0.5, gt=0)
    """Norm of W_dec's rows at the start."""

    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """A Llama Scope SAE in training."""
        return LlamaScopeTrainee(self, place, seed)


class LlamaScopeTrainee(Dictionary):
    """One Llama Scope SAE in training."""

    threshold: Tensor

    def __init__(self, config: LlamaScopeConfig, place: SitePair, seed: int) -> None:
        super().__init__(config, place, seed, norm=config.decoder_norm)
        if place.target != place.site:
            drawn = generator_at(seed, place.target)
            self.W_enc, _ = encoder_and_decoder(self.d_sae, self.d_model, drawn, config.decoder_norm)
        self._config = config
        check_k(config.k, self.d_sae, place)
        self.register_buffer("threshold", torch.full((), math.nan))

    def loss(
        self, x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_model"], acts: Acts, progress: Progress
    ) -> Float[Tensor, ""]:
        """The authors' normalised squared error."""
        coded = self.coded(x, self.k_at(progress))
        self.dead_latents.record(coded.fired(), len(x))
        spread = (y - distributed.all_mean(y.mean(0))).norm(dim=1, keepdim=True).clamp_min(LEAST_SPREAD)
        return ((y - coded.decoded()).square() / spread).mean()

    def coded(self, x: Float[Tensor, "batch d_model"], k: int) -> Coded:
        """The selected latents; gradients flow through their values alone."""
        weights = self.weights()
        u = pre_acts(weights, x)
        latents = largest(u.relu() * weights.norms().detach(), k)
        return Coded(weights, chosen(weights, x, u, latents).relu(), latents)

    def k_at(self, progress: Progress) -> int:
        """K of this step."""
        k, start = self._config.k, self.d_model / (2 * self._config.k)
        passed = min(1.0, progress.fraction / self._config.annealing) if self._config.annealing else 1.0
        return min(self.d_sae, math.ceil(max(1.0, start + (1 - start) * passed) * k))

    @torch.no_grad()
    def calibrate(self, acts: Acts) -> None:
        """The threshold that gives k latents a token on at most 32,768 tokens."""
        x = acts[self.sites[0]][:FROM_TOKENS]
        weights, wanted = self.weights(), len(x) * self._config.k
        best = [
            largest_values(strengths, min(wanted, len(strengths)))
            for part in x.split(CALIBRATION_TOKENS)
            for strengths in [weights.pre_acts(part * self.scale[0]).mul_(weights.norms()).relu_().flatten()]
        ]
        self.threshold.copy_(largest_values(torch.cat(best), wanted).amin())

    def activation(self) -> Activation:
        """One threshold for all latents once there is one, TopK before."""
        if bool(self.threshold.isnan()):
            return TopK(self._config.k)
        return JumpReLU(self.threshold.expand(self.d_sae).clone())

    def sae(self, site: Site) -> SAE:
        """The present SAE of inference, with decoder rows of norm 1."""
        assert site in self.sites
        weights, norms = self.weights(), self.weights().norms()
        unit = weights._replace(
            W_enc=weights.W_enc * norms, b_enc=weights.b_enc * norms, W_dec=weights.W_dec / norms.unsqueeze(1)
        )
        s_in, s_out = self.scale.tolist()
        return unit.sae(self.activation(), (s_in, s_out))
