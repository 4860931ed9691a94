"""The interface between the training loop and a method: trainable SAEs (`TrainableSAEs`) and their configs (`Method`).

Each method is one file. It holds a config that creates trainees, and a trainee that computes its own loss. The loop
calls a trainee in this order:

    trainee.prepare(acts)                 once, on the first buffer: freeze scales, set biases from data
    trainee.losses(acts, progress)        one loss per site; the optimiser sees their sum
    trainee.after_backward()              remove gradient components that must not be followed
    trainee.after_step()                  restore the constraints on the weights
    trainee.calibrate(acts)               once, after the last step: estimate inference thresholds from data
    trainee.sae(site)                     at any time: the deterministic inference SAE, in the model's own units

Everything that a trainee learns or counts is in its `state_dict`. Checkpoints therefore work for every method alike.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, Field
from torch import Tensor, nn

from scalar_sae.activations.reading import Gradient
from scalar_sae.bounds import Name, Rate, Seed
from scalar_sae.kernels import linear
from scalar_sae.lm.feedforward import FeedForward
from scalar_sae.saes.activation import Activation, JumpReLU
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Block, Site

Acts = Mapping[Site | Gradient, Float[Tensor, "_ d_model"]]
"""Activations by site. Row i belongs to the same token at every site."""

CALIBRATION_TOKENS = 4096
"""Number of tokens that `calibrate` encodes at a time."""

Scale = Literal["none", "unit", "sqrt_d"]
"""The frozen factor that multiplies activations: `none` (1), `unit` (E‖x‖² = 1) or `sqrt_d` (E‖x‖ = √d_model)."""

Schedule = Literal["cosine", "cooldown"]
"""Decay of the learning rate from `lr` to `min_lr` after the warm-up.

`cosine` decays along a cosine. `cooldown` stays at `lr` and decays linearly over the last steps of the run.
"""


class Progress(NamedTuple):
    """How far training has progressed."""

    step: int
    """Optimiser steps taken so far."""
    steps: int
    """Total number of optimiser steps."""

    @property
    def fraction(self) -> float:
        """Share of the steps taken: 0 at the first step, 1 after the last."""
        return self.step / self.steps

    def ramp(self, share: float) -> float:
        """A linear warm-up from near 0 to 1 over the first `share` of training; 1 afterwards."""
        return min(1.0, (self.step + 1) / max(1.0, share * self.steps))


@runtime_checkable
class Transformer(Protocol):
    """The part of the language model's interface that a method may use."""

    d_model: int
    n_layers: int

    def feed_forward(self, layer: int) -> FeedForward:
        """The norm and MLP of a layer."""
        ...


class TrainableSAEs(nn.Module, ABC):
    """A set of SAEs that share parameters. They also share one optimiser, one gradient clip and one schedule."""

    sites: tuple[Site, ...]
    """The sites that its SAEs read."""

    @property
    def reads(self) -> tuple[Site | Gradient, ...]:
        """Every key that `losses` looks up in the activations."""
        return self.sites

    def target(self, site: Site) -> Site:
        """The site that the SAE at `site` reconstructs. It differs from `site` only for a transcoder."""
        return site

    def prepare(self, acts: Acts) -> None:
        """Estimate from data what must be known before the first step."""

    @abstractmethod
    def losses(self, acts: Acts, progress: Progress) -> dict[Site, Float[Tensor, ""]]:
        """The loss of each site on a batch."""

    def after_backward(self) -> None:
        """Modify the gradients before they are clipped."""

    def after_step(self) -> None:
        """Restore the constraints on the weights."""

    def calibrate(self, acts: Acts) -> None:
        """After the last step, estimate from data what inference needs."""

    def as_trained(self, site: Site, acts: Acts) -> tuple[Float[Tensor, "batch d_model"], Int[Tensor, " d_sae"]] | None:
        """What the selection of training makes of activations in the model's units, where inference selects differently
        for want of what training reads: the reconstruction, and how often each latent fires. None elsewhere.
        """
        return None

    def found(self) -> dict[str, Any]:
        """Results of training in addition to the weights, for the SAE's card."""
        return {}

    @abstractmethod
    def sae(self, site: Site) -> SAE:
        """The inference SAE at a site with the current weights, detached from autograd, in the model's own units."""


class Method(BaseModel, ABC, frozen=True, extra="forbid", allow_inf_nan=False):
    """The config of one group of SAEs."""

    name: Name
    """Name of the folder that holds these SAEs in a run."""
    seed: Seed | None = None
    """Seed of the initial weights and of random masks; None uses the run's seed. Several seeds of one method can be
    trained in one pass.
    """
    expansion: int = Field(default=8, gt=0, le=4096)
    """Latents per dimension of the activations: d_sae = expansion * d_model."""
    lr_scale: Rate = 1.0
    """Factor on the run's learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's first-moment decay. The JumpReLU and Gated papers use 0."""
    beta2: float | None = Field(default=None, gt=0, lt=1)
    """Adam's second-moment decay; None uses the run's."""
    clip: Rate | None = None
    """Maximum gradient norm; None uses the run's."""
    warmup_steps: int | None = Field(default=None, ge=0, le=10**12)
    """Steps of linear warm-up; None uses the run's."""
    schedule: Schedule | None = None
    """Decay of the learning rate; None uses the run's."""

    @abstractmethod
    def trainees(self, lm: Transformer, seed: int) -> list[TrainableSAEs]:
        """Create the SAEs to train. Their initial weights depend on the seed and the site alone."""

    def wanted_l0(self, position: int) -> float | None:
        """The L0 that the config requests for the SAE at a trainee's `position`-th site and that training must reach.

        None if no L0 is requested, or if the activation rule guarantees it.
        """
        return None

    @abstractmethod
    def blocks(self, n_layers: int) -> list[Block]:
        """The blocks for which this method trains an SAE at both ends."""


class Weights(NamedTuple):
    """The encoder and decoder of an SAE in training, in the trained scale. Gradients reach the parameters."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    centre: Float[Tensor, " d_in"] | None = None
    """A vector that the encoder subtracts from its input; None for no subtraction."""

    def bias(self) -> Float[Tensor, " d_sae"]:
        """b_enc - centre W_enc, so that `pre_acts` needs no subtraction.

        The centre's gradient then costs a vector-matrix product instead of another product over the whole batch.
        """
        return self.b_enc if self.centre is None else self.b_enc - self.centre @ self.W_enc

    def pre_acts(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Pre-activations."""
        return linear(x, self.W_enc, self.bias())

    def decode(self, acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_out"]:
        """Reconstruction from dense activations."""
        return linear(acts, self.W_dec, self.b_dec)

    def norms(self) -> Float[Tensor, " d_sae"]:
        """Norm of each latent's decoder direction."""
        return self.W_dec.norm(dim=1)

    @torch.no_grad()
    def sae(self, activation: Activation, scale: tuple[float, float] = (1.0, 1.0), chunks: tuple[int, ...] = ()) -> SAE:
        """The SAE in the model's own units: the scales s_in (of x) and s_out (of y) are folded into the weights.

        Latent activations are also in the model's units, that is, divided by s_in. JumpReLU thresholds are divided
        likewise.
        """
        s_in, s_out = scale
        if isinstance(activation, JumpReLU):
            activation = JumpReLU(activation.threshold / s_in)
        W_dec = self.W_dec * (s_in / s_out)
        W_enc = self.W_enc.clone(memory_format=torch.contiguous_format)
        return SAE(W_enc, self.bias() / s_in, W_dec, self.b_dec / s_out, activation, chunks)


def encoder_and_decoder(
    d_sae: int, d_model: int, generator: torch.Generator, norm: float | None = None
) -> tuple[nn.Parameter, nn.Parameter]:
    """Initial W_enc [d_model, d_sae] and W_dec [d_sae, d_model]: W_dec is Kaiming-uniform and W_enc its transpose.

    W_enc has the memory layout of W_dec, one latent after another, because sparse gradients arrive in that order.

    Args:
        d_sae: number of latents.
        d_model: width of the activations.
        generator: source of the random numbers.
        norm: norm to which every row of W_dec is scaled; None leaves the rows as initialised.
    """
    W_dec = torch.empty(d_sae, d_model)
    nn.init.kaiming_uniform_(W_dec, generator=generator)
    if norm is not None:
        W_dec *= norm / W_dec.norm(dim=1, keepdim=True)
    return nn.Parameter(W_dec.clone().T), nn.Parameter(W_dec)


def squared_error(y: Float[Tensor, "batch d_model"], y_hat: Float[Tensor, "batch d_model"]) -> Float[Tensor, ""]:
    """Reconstruction error: squared error summed over d_model and averaged over tokens. Every method uses it."""
    return (y - y_hat).square().sum(-1).mean()


def generator_at(seed: int, site: Site) -> torch.Generator:
    """The random generator for the initial weights at a site."""
    return torch.Generator().manual_seed(seed * 1_000_003 + site.depth)
