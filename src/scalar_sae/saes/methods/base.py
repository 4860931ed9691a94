"""What the training loop asks of SAEs in training (`TrainableSAEs`) and of their configs (`Method`).

A method is one file: a config that makes trainees, and a trainee that knows its loss. The loop calls, in this order:

    trainee.prepare(acts)                 once, with the first buffer: frozen scales, biases set from data
    trainee.losses(acts, progress)        per site; their sum is what the optimiser sees
    trainee.after_backward()              gradients that must not be followed are taken out
    trainee.after_step()                  constraints on the weights are restored
    trainee.calibrate(acts)               once, at the end: thresholds that are read off data
    trainee.sae(site)                     at any time: the deterministic SAE of inference, in the model's own units

All that a trainee learns or counts is in its `state_dict`, so a checkpoint needs to know nothing about methods.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
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
"""What was read at each place, the same tokens in the same order everywhere."""

CALIBRATION_TOKENS = 4096
"""Tokens that `calibrate` encodes at once."""

Scale = Literal["none", "unit", "sqrt_d"]
"""The one frozen number that activations are multiplied by: none, so that E‖x‖² = 1, or so that E‖x‖ = √d_model."""

Schedule = Literal["cosine", "cooldown"]
"""How the learning rate falls from `lr` to `min_lr` after the warm-up.

`cosine` falls along a cosine. `cooldown` stays at `lr` and falls linearly over the last steps of the run.
"""


class Progress(NamedTuple):
    """Where training stands."""

    step: int
    """Optimiser steps done."""
    steps: int
    """Optimiser steps in all."""

    @property
    def fraction(self) -> float:
        """From 0 at the first step to 1 after the last."""
        return self.step / self.steps

    def ramp(self, share: float) -> float:
        """From near 0 to 1 over the first `share` of training, then 1."""
        return min(1.0, (self.step + 1) / max(1.0, share * self.steps))


@runtime_checkable
class Transformer(Protocol):
    """What a method may ask about the language model."""

    d_model: int
    n_layers: int

    def feed_forward(self, layer: int) -> FeedForward:
        """Norm and MLP of a layer."""
        ...


class TrainableSAEs(nn.Module, ABC):
    """SAEs that share parameters, and so one optimiser, one gradient clip and one schedule."""

    sites: tuple[Site, ...]
    """Where its SAEs read."""

    @property
    def reads(self) -> tuple[Site | Gradient, ...]:
        """Everything that `losses` looks up in the activations."""
        return self.sites

    def target(self, site: Site) -> Site:
        """What the SAE at a site reconstructs: another site for a transcoder."""
        return site

    def prepare(self, acts: Acts) -> None:
        """Set what is estimated from data before the first step."""

    @abstractmethod
    def losses(self, acts: Acts, progress: Progress) -> dict[Site, Float[Tensor, ""]]:
        """The loss of each site on a batch."""

    def after_backward(self) -> None:
        """Change gradients before they are clipped."""

    def after_step(self) -> None:
        """Restore constraints."""

    def calibrate(self, acts: Acts) -> None:
        """Set what inference takes from data after the last step."""

    def found(self) -> dict[str, Any]:
        """What training found beside the weights, for the SAE's card."""
        return {}

    @abstractmethod
    def sae(self, site: Site) -> SAE:
        """The present SAE of inference at a site, outside any graph, in the model's own units."""


class Method(BaseModel, ABC, frozen=True, extra="forbid", allow_inf_nan=False):
    """The config of one group of SAEs."""

    name: Name
    """Folder of these SAEs in a run."""
    seed: Seed | None = None
    """Seed of the first weights and of random masks, if not the run's: several seeds of a method train in one pass."""
    expansion: int = Field(default=8, gt=0, le=4096)
    """Latents per dimension of the activations: d_sae = expansion * d_model."""
    lr_scale: Rate = 1.0
    """Multiple of the run's learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's first-moment decay (the JumpReLU and Gated papers use 0)."""
    beta2: float | None = Field(default=None, gt=0, lt=1)
    """Adam's second-moment decay, if not the run's."""
    clip: Rate | None = None
    """Largest gradient norm, if not the run's."""
    schedule: Schedule | None = None
    """How the learning rate falls, if not as the run's."""

    @abstractmethod
    def trainees(self, lm: Transformer, seed: int) -> list[TrainableSAEs]:
        """The SAEs to train, with initial weights that depend on the seed and the site alone."""

    def wanted_l0(self, position: int) -> float | None:
        """Active latents a token that the config asks of the SAE at a trainee's `position`-th site, where training has
        to find them; None where the activation rule gives them or none are asked for.
        """
        return None

    @abstractmethod
    def blocks(self, n_layers: int) -> list[Block]:
        """The computations that these SAEs were trained to stand at both ends of."""


class Weights(NamedTuple):
    """An encoder and a decoder in training, in the trained scale; gradients reach the parameters."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    centre: Float[Tensor, " d_in"] | None = None
    """What the encoder subtracts from its input (None: nothing)."""

    def bias(self) -> Float[Tensor, " d_sae"]:
        """b_enc with the centre's share taken in: its gradient through the large product would cost another one."""
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
        """The SAE in the model's own units: what was trained on s_in x and s_out y, folded into the weights.

        Latent activations come out in the model's units too (divided by s_in), so thresholds are divided with them.
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
    """W_enc [d_model, d_sae] and W_dec [d_sae, d_model] at the start: Kaiming-uniform and its transpose.

    W_enc lies in memory as W_dec does, latent by latent: so do sparse gradients arrive.

    Args:
        d_sae: number of latents.
        d_model: width of the activations.
        generator: source of the numbers.
        norm: what every row of W_dec is scaled to, if given.
    """
    W_dec = torch.empty(d_sae, d_model)
    nn.init.kaiming_uniform_(W_dec, generator=generator)
    if norm is not None:
        W_dec *= norm / W_dec.norm(dim=1, keepdim=True)
    return nn.Parameter(W_dec.clone().T), nn.Parameter(W_dec)


def squared_error(y: Float[Tensor, "batch d_model"], y_hat: Float[Tensor, "batch d_model"]) -> Float[Tensor, ""]:
    """Squared error summed over d_model, mean over tokens: the reconstruction term of every method."""
    return (y - y_hat).square().sum(-1).mean()


def generator_at(seed: int, site: Site) -> torch.Generator:
    """The generator of a site's first weights."""
    return torch.Generator().manual_seed(seed * 1_000_003 + site.depth)
