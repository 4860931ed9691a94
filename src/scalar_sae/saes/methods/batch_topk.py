"""BatchTopK SAEs (Bussmann, Leask, Nanda, arXiv 2412.06410): keep the B k largest activations of a batch of B tokens.

The mean L0 is k, while the L0 of a single token varies. At inference, one threshold for all latents (a JumpReLU)
replaces the selection. The threshold is the expected smallest activation that a batch keeps. During training it is a
bias-corrected running mean. After the last step it is measured again on the last buffer with the final weights.
Decoder rows have norm 1.

The dead-latent loss is that of Gao et al. (see topk.py). In two points the authors' code differs from this file: it
neither detaches the residual in this loss nor divides by its variance, and it does not use its encoder bias.
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
    """Config fields shared by the methods that select over a batch."""

    scale: Scale = "unit"
    """Scale of the activations in training. The selection does not depend on it."""
    k: int = Field(default=10, gt=0)
    """Mean number of latents kept per token."""
    auxk: float = Field(default=1 / 32, ge=0)
    """Weight of the auxiliary loss on dead latents."""
    k_aux: int = Field(default=512, gt=0)
    """Number of dead latents that the auxiliary loss uses per token."""
    dead_tokens: int | None = Field(default=None, gt=0)
    """A latent is dead after this many tokens without firing. None means 10 million, or a tenth of the run if that is
    less.
    """
    threshold_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay per step of the running mean that estimates the inference threshold."""

    def wanted_l0(self, position: int) -> float | None:
        """An L0 of k, which the inference threshold must reproduce."""
        return float(self.k)


class BatchTopKConfig(BatchSelection, frozen=True):
    """Independent BatchTopK SAEs."""

    method: Literal["batch_topk"] = "batch_topk"
    name: Name = "batch_topk"
    """Folder of these SAEs in a run."""

    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """Create a BatchTopK SAE for training."""
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
        """Squared error plus the auxiliary loss, which is multiplied by the frozen variance of y."""
        weights = self.weights()
        u = pre_acts(weights, x).relu_()
        code = ragged(weights, x, u, self.select(u, progress))
        self.dead_latents.record(code.fired(), len(x))
        self.follow(code, progress)
        y_hat = code.decoded()
        loss = self.reconstruction(code, y, y_hat)
        if self.auxk > 0:
            loss = loss + self.auxk * self.variance * self.revival(weights, x, y - y_hat)
        return loss

    def select(self, acts: Float[Tensor, "batch d_sae"], progress: Progress) -> Bool[Tensor, "batch d_sae"]:
        """Mask of the activations to keep: the largest of the batch."""
        return batch_top_k(acts, self.k)

    @torch.no_grad()
    def follow(self, code: Ragged, progress: Progress) -> None:
        """Update the running mean of the smallest activation kept."""
        smallest = distributed.all_min(pad(code.acts, (0, 1), value=torch.inf).amin())
        if bool(smallest < torch.inf):
            self.seen += 1
            decay = self.threshold_decay
            self.threshold.lerp_(smallest, (1 - decay) / (1 - decay ** int(self.seen)))

    def reconstruction(
        self, code: Ragged, y: Float[Tensor, "batch d_model"], y_hat: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, ""]:
        """The reconstruction loss; `y_hat` is the reconstruction from the whole code."""
        return squared_error(y, y_hat)

    def revival(
        self, weights: Weights, x: Float[Tensor, "batch d_model"], residual: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, ""]:
        """The auxiliary loss on dead latents."""
        return auxk_loss(weights, x, residual, self.dead_latents.mask(), self.k_aux)

    @torch.no_grad()
    def calibrate(self, acts: Acts) -> None:
        """Set the threshold for the final weights: the smallest activation kept, averaged over parts of the buffer."""
        x = acts[self.sites[0]]
        weights = self.weights()
        smallest = [
            acts.masked_fill_(~batch_top_k(acts, self.k), torch.inf).amin()
            for part in x.split(CALIBRATION_TOKENS)
            for acts in [weights.pre_acts(part * self.scale[0]).relu_()]
        ]
        self.threshold.copy_(torch.stack(smallest).mean())

    def activation(self) -> JumpReLU:
        """A JumpReLU with the same threshold for all latents."""
        return JumpReLU(self.threshold.expand(self.d_sae).clone())


def batch_top_k(acts: Float[Tensor, "batch d_sae"], k: int) -> Bool[Tensor, "batch d_sae"]:
    """Mask of the `batch` × `k` largest positive entries over all workers. Entries tied with the smallest of them are
    kept.
    """
    return acts >= last_kept(acts, k).clamp_min(torch.finfo(acts.dtype).tiny)


def last_kept(acts: Float[Tensor, "batch d_sae"], k: int) -> Float[Tensor, ""]:
    """The smallest of the `batch` × `k` largest entries over all workers."""
    flat = acts.detach().flatten()
    n = min(k * acts.shape[0], flat.numel()) * distributed.world_size()
    candidates = distributed.all_gather(largest_values(flat, min(n, flat.numel())))
    return candidates.topk(n, sorted=False).values.amin()
