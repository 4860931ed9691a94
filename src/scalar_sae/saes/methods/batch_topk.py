"""BatchTopK SAEs (Bussmann, Leask, Nanda, arXiv 2412.06410): the B k largest activations of a batch stay.

So the mean L0 is k while each token's own varies. At inference one threshold for all latents (a JumpReLU): the expected
smallest activation that a batch keeps, while training as a running mean without bias towards its start, after the last
step measured once more on the last buffer with the final weights. Decoder rows have norm 1.

The dead-latent term is Gao et al.'s (see topk.py). The authors' code leaves the residual undetached and undivided;
their encoder bias is unused for BatchTopK, ours is there.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from scalar_sae import distributed
from scalar_sae.saes.activation import JumpReLU
from scalar_sae.saes.components.dead_latents import auxk_loss
from scalar_sae.saes.components.sparse import Ragged, largest_values, pre_acts, ragged
from scalar_sae.saes.methods.base import (
    CALIBRATION_TOKENS,
    Acts,
    Name,
    Progress,
    Scale,
    TrainableSAEs,
    Weights,
    squared_error,
)
from scalar_sae.saes.methods.dictionary import Dictionary, DictionaryMethod, SitePair
from scalar_sae.saes.methods.topk import check_k


class BatchSelection(DictionaryMethod, frozen=True):
    """What methods have in common that select over a batch."""

    scale: Scale = "unit"
    """Scale of training; the selection does not depend on it."""
    k: int = Field(default=10, gt=0)
    """Mean number of latents kept per token."""
    auxk: float = Field(default=1 / 32, ge=0)
    """Weight of the auxiliary loss."""
    k_aux: int = Field(default=512, gt=0)
    """Latents that the auxiliary loss uses per token."""
    dead_tokens: int | None = Field(default=None, gt=0)
    """Tokens without firing after which a latent is dead; None for 10 million, or a tenth of a shorter run."""
    threshold_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay, per step, of the running mean that inference's threshold is."""

    def wanted_l0(self, position: int) -> float | None:
        """K latents a token: at inference a threshold has to keep as many."""
        return float(self.k)


class BatchTopKConfig(BatchSelection, frozen=True):
    """Independent BatchTopK SAEs."""

    method: Literal["batch_topk"] = "batch_topk"
    name: Name = "batch-topk"
    """Folder of these SAEs in a run."""

    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """A BatchTopK SAE in training."""
        return BatchTopKTrainee(self, place, seed)


class BatchTopKTrainee(Dictionary):
    """One BatchTopK SAE in training."""

    threshold: Tensor
    seen: Tensor

    def __init__(self, config: BatchSelection, place: SitePair, seed: int) -> None:
        super().__init__(config, place, seed, unit_norm=True, pre_bias=True)
        self.k, self.k_aux, self.auxk = config.k, config.k_aux, config.auxk
        self.threshold_decay = config.threshold_decay
        check_k(config.k, self.d_sae, place)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def loss(
        self, x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_model"], acts: Acts, progress: Progress
    ) -> Float[Tensor, ""]:
        """Squared error and the auxiliary loss, in units of the frozen variance of y."""
        weights = self.weights()
        u = pre_acts(weights, x).relu_()
        code = ragged(weights, x, u, self.select(u, progress))
        self.firing.record(code.fired(), len(x))
        self.follow(code, progress)
        y_hat = code.decoded()
        loss = self.reconstruction(code, y, y_hat)
        if self.auxk > 0:
            loss = loss + self.auxk * self.variance * self.revival(weights, x, y - y_hat)
        return loss

    def select(self, acts: Float[Tensor, "batch d_sae"], progress: Progress) -> Bool[Tensor, "batch d_sae"]:
        """What stays: the largest of the batch."""
        return batch_top_k(acts, self.k)

    @torch.no_grad()
    def follow(self, code: Ragged, progress: Progress) -> None:
        """Follow the threshold between kept and not."""
        smallest = distributed.all_min(pad(code.acts, (0, 1), value=torch.inf).amin())
        if bool(smallest < torch.inf):
            self.seen += 1
            decay = self.threshold_decay
            self.threshold.lerp_(smallest, (1 - decay) / (1 - decay ** int(self.seen)))

    def reconstruction(
        self, code: Ragged, y: Float[Tensor, "batch d_model"], y_hat: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, ""]:
        """The reconstruction term; `y_hat` is what the whole code makes of y."""
        return squared_error(y, y_hat)

    def revival(
        self, weights: Weights, x: Float[Tensor, "batch d_model"], residual: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, ""]:
        """The auxiliary loss on dead latents."""
        return auxk_loss(weights, x, residual, self.firing.dead(), self.k_aux)

    @torch.no_grad()
    def calibrate(self, acts: Acts) -> None:
        """The threshold of the final weights: the mean, over parts of the buffer, of the smallest activation kept."""
        x = acts[self.sites[0]]
        weights = self.weights()
        smallest = [
            acts.masked_fill_(~batch_top_k(acts, self.k), torch.inf).amin()
            for part in x.split(CALIBRATION_TOKENS)
            for acts in [weights.pre_acts(part * self.scale[0]).relu_()]
        ]
        self.threshold.copy_(torch.stack(smallest).mean())

    def activation(self) -> JumpReLU:
        """One threshold for all latents."""
        return JumpReLU(self.threshold.expand(self.d_sae).clone())


def batch_top_k(acts: Float[Tensor, "batch d_sae"], k: int) -> Bool[Tensor, "batch d_sae"]:
    """The `batch` times `k` largest of all workers' entries, and what equals the last of them, if positive."""
    return acts >= last_kept(acts, k).clamp_min(torch.finfo(acts.dtype).tiny)


def last_kept(acts: Float[Tensor, "batch d_sae"], k: int) -> Float[Tensor, ""]:
    """The smallest of the `batch` times `k` largest of all workers' entries."""
    flat = acts.detach().flatten()
    n = min(k * acts.shape[0], flat.numel()) * distributed.world_size()
    candidates = distributed.all_gather(largest_values(flat, min(n, flat.numel())))
    return candidates.topk(n, sorted=False).values.amin()
