"""Exact reparametrisations of an SAE: its reconstruction stays the same function of the input.

| function                | what it removes                                                             |
|-------------------------|-----------------------------------------------------------------------------|
| `without_pre_bias`      | a bias that is subtracted from the input before the encoder                 |
| `with_input_scaled`     | a constant that multiplies the input and divides the output                 |
| `with_input_whitened`   | an affine map of the input, undone on the output                            |
| `with_input_multiplied` | a gain between the site and the SAE's input                                 |
| `with_input_centred`    | the subtraction of the mean over a token's dimensions                       |
| `with_latents_scaled`   | units of the latents: decoder norms, or the constant of `with_input_scaled` |
| `gate_as_threshold`     | a gated encoder's second set of biases                                      |

Thresholds are always in the units of the pre-activations that they are compared with.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import JumpReLU
from scalar_sae.saes.sae import SAE


def without_pre_bias(
    b_enc: Float[Tensor, " d_sae"], b_pre: Float[Tensor, " d_model"], W_enc: Float[Tensor, "d_model d_sae"]
) -> Float[Tensor, " d_sae"]:
    """The b_enc of an encoder that reads x, given one that reads x - b_pre."""
    return b_enc - b_pre @ W_enc


def with_input_scaled(sae: SAE, s_in: float, s_out: float) -> SAE:
    """An SAE from x to x_hat, given one from `s_in` x to `s_out` x_hat.

    Latent activations keep their values.

    Raises:
        UserError: the SAE also normalises its input at run time.
    """
    if sae.norm is not None:
        raise UserError("a constant input scale together with run-time normalisation is not understood")
    return replace(
        sae,
        W_enc=sae.W_enc * s_in,
        W_dec=sae.W_dec / s_out,
        b_dec=sae.b_dec / s_out,
        W_skip=None if sae.W_skip is None else sae.W_skip * (s_in / s_out),
    )


def with_input_whitened(
    sae: SAE,
    mean: Float[Tensor, " d_model"],
    whiten: Float[Tensor, "d_model d_model"],
    unwhiten: Float[Tensor, "d_model d_model"],
) -> SAE:
    """An SAE that reads x, given one that reads (x - mean) @ whiten and whose output z stands for z @ unwhiten +
    mean.
    """
    W_enc = whiten @ sae.W_enc
    return replace(
        sae,
        W_enc=W_enc,
        b_enc=without_pre_bias(sae.b_enc, mean, W_enc),
        W_dec=sae.W_dec @ unwhiten,
        b_dec=sae.b_dec @ unwhiten + mean,
    )


def with_input_multiplied(sae: SAE, gain: Float[Tensor, " d_model"]) -> SAE:
    """An SAE that reads x, given one that reads x / gain. If it writes to the same place, its output is multiplied by
    gain.

    Raises:
        UserError: the SAE normalises its input at run time.
    """
    if sae.norm is not None:
        raise UserError("a gain before run-time normalisation cannot be folded into an SAE")
    inwards = replace(
        sae,
        W_enc=sae.W_enc / gain.unsqueeze(1),
        W_skip=None if sae.W_skip is None else sae.W_skip / gain.unsqueeze(1),
    )
    if sae.writes is not None:
        return inwards
    return replace(
        inwards,
        W_dec=sae.W_dec * gain,
        b_dec=sae.b_dec * gain,
        W_skip=None if inwards.W_skip is None else inwards.W_skip * gain,
    )


def with_input_centred(sae: SAE) -> SAE:
    """An SAE that reads x, given one that reads x - mean(x), with the mean over the token's d_model entries.

    (x - mean(x)) W equals x times W minus the mean of W over d_model. The given SAE reconstructs x - mean(x). The
    missing part of x is mean(x) in every entry, which is linear in x and is added by `W_skip`.

    Raises:
        UserError: the SAE normalises its input by its length, has a skip connection, or writes to another place.
    """
    if sae.norm is not None and sae.norm.kind == "layer_norm":
        return sae  # it subtracts the mean itself and adds the input's own mean back
    if sae.norm is not None or sae.W_skip is not None or sae.d_out != sae.d_model:
        raise UserError("a centred input cannot be folded into an SAE that normalises by length or has a skip matrix")
    mean = sae.W_enc.new_full((sae.d_model, sae.d_model), 1 / sae.d_model)
    return replace(sae, W_enc=sae.W_enc - sae.W_enc.mean(0), W_skip=mean)


def with_latents_scaled(sae: SAE, factor: Float[Tensor, " d_sae"]) -> SAE:
    """Multiply every latent's activation by a positive factor and divide its decoder row by it.

    Under TopK and GroupMax the selection then compares the scaled latents. With `factor=decoder_norms(sae)` this is
    selection by activation times decoder norm, which some SAEs were trained with. Under other rules only the units
    change.
    """
    rule = sae.activation
    if isinstance(rule, JumpReLU):
        rule = JumpReLU(rule.threshold * factor)
    return replace(
        sae,
        W_enc=sae.W_enc * factor,
        b_enc=sae.b_enc * factor,
        W_dec=sae.W_dec / factor.unsqueeze(1),
        activation=rule,
    )


def decoder_norms(sae: SAE) -> Float[Tensor, " d_sae"]:
    """Norm of each latent's decoder row, at least 1e-8."""
    return sae.W_dec.norm(dim=1).clamp(min=1e-8)


def gate_as_threshold(
    W_gate: Float[Tensor, "d_model d_sae"],
    b_gate: Float[Tensor, " d_sae"],
    r_mag: Float[Tensor, " d_sae"],
    b_mag: Float[Tensor, " d_sae"],
) -> tuple[Float[Tensor, "d_model d_sae"], Float[Tensor, " d_sae"], JumpReLU]:
    """W_enc, b_enc and thresholds of a gated encoder (Rajamanoharan et al., arXiv 2404.16014, §3.2).

    Gate and magnitude read the same direction up to the factor exp(r_mag). The magnitude's pre-activation is
    u = exp(r_mag) x W_gate + b_mag, so x W_gate + b_gate > 0 if and only if u > b_mag - exp(r_mag) b_gate.
    """
    return W_gate * r_mag.exp(), b_mag, JumpReLU(b_mag - torch.exp(r_mag) * b_gate)
