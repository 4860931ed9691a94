"""OpenMOSS Language-Model-SAEs: Llama Scope of 2024, Llama Scope R1, and what Llamascopium writes now.

Weights lie in the space of normalised activations, x sqrt(d_model) / (mean norm over the data). They are folded as the
authors do it: input scale first, latents then in the units of the activations, decoder rows to unit length, so that an
activation is what a latent adds. The 2024 release's one threshold was measured after these folds, later ones before.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import Activation, JumpReLU, ReLU, TopK
from scalar_sae.saes.folds import decoder_norms, with_input_scaled, with_latents_scaled
from scalar_sae.saes.formats.files import Folder, Format, Found, Tensors, build, check_size, needs
from scalar_sae.saes.norm import InputNorm
from scalar_sae.saes.sae import SAE

_LOG_THRESHOLDS = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")
_NORMS = ("none", None, "inference", "token-wise", "batch-wise", "dataset-wise")
OLD, NEW = "hyperparams.json", "config.json"
_WEIGHTS = (
    "sae_weights.safetensors", "sae_weights.pt", "checkpoints/pruned.safetensors", "checkpoints/pruned.pt",
    "checkpoints/final.safetensors", "checkpoints/final.pt",
)  # fmt: skip


def _here(folder: Folder) -> bool:
    return folder.has(OLD) or (folder.has(NEW) and "hook_point_in" in folder.json(NEW))


def _read(folder: Folder) -> Iterator[Found]:
    config = folder.json(OLD if folder.has(OLD) else NEW)
    if config.get("sae_type", "sae") != "sae" or config.get("use_glu_encoder"):
        kind = "use_glu_encoder" if config.get("use_glu_encoder") else config["sae_type"]
        raise UserError(f"{kind}: only SAEs and transcoders with a linear encoder are supported")
    name = next((name for name in _WEIGHTS if (folder.path / name).is_file()), None)
    if name is None:
        raise UserError(f"no weights: expected one of {', '.join(_WEIGHTS)}")
    tensors = folder.tensors(name)
    tensors = tensors.inside("sae") if "sae" in tensors else tensors
    reads, writes = str(needs(config, "hook_point_in")), str(config.get("hook_point_out") or "")
    group = config.get("act_fn") or "relu"
    yield Found(_sae(config, tensors), group, reads, "" if writes == reads else writes, config)


def _sae(config: dict[str, Any], t: Tensors) -> SAE:
    W_enc, b_enc, W_dec, b_dec = _weights(t)
    by_norm = bool(config.get("sparsity_include_decoder_norm"))
    log_threshold = next((t[name] for name in _LOG_THRESHOLDS if name in t), None)
    one_threshold = 0.0 if log_threshold is not None else float(config.get("jump_relu_threshold") or 0)
    rule = ReLU() if one_threshold > 0 else _rule(config, log_threshold, W_dec, by_norm)
    norm = config.get("norm_activation", "none")
    if norm not in _NORMS:
        raise UserError(f"norm_activation {norm!r}: expected one of {', '.join(map(str, _NORMS))}")
    transcoder = config.get("hook_point_out") not in (None, config.get("hook_point_in"))
    if norm == "batch-wise" or (norm == "token-wise" and transcoder):
        raise UserError(f"norm_activation {norm!r}: what it divides by is not known at inference")
    pre = b_dec if config.get("apply_decoder_bias_to_pre_encoder") else None
    at_run_time = InputNorm("constant_norm") if norm == "token-wise" else None
    sae = build(W_enc, b_enc, W_dec, b_dec, rule, b_pre=pre, norm=at_run_time)
    check_size(sae, config, "d_model", "d_sae")
    if norm == "dataset-wise":
        s_in, s_out = _scales(config, t, sae)
        sae = with_latents_scaled(with_input_scaled(sae, s_in, s_out), torch.full((sae.d_sae,), 1 / s_in))
    if by_norm:
        sae = with_latents_scaled(sae, decoder_norms(sae))
    return replace(sae, activation=JumpReLU(torch.full((sae.d_sae,), one_threshold))) if one_threshold > 0 else sae


def _weights(t: Tensors) -> tuple[Float[Tensor, "..."], Tensor | None, Float[Tensor, "..."], Tensor | None]:
    if "W_E" in t:
        return t["W_E"], t["b_E"], t["W_D"], t.get("b_D")
    return t["encoder.weight"].T, t["encoder.bias"], t["decoder.weight"].T, t.get("decoder.bias")


def _rule(
    config: dict[str, Any], log_threshold: Tensor | None, W_dec: Float[Tensor, "..."], by_norm: bool
) -> Activation:
    kind = config.get("act_fn") or "relu"
    if kind == "topk":
        return TopK(int(needs(config, "top_k")))
    if kind == "relu":
        return ReLU()
    if kind != "jumprelu" or log_threshold is None:
        raise UserError(f"act_fn {kind!r}: expected relu, topk, or jumprelu with thresholds")
    threshold = log_threshold.exp()
    return JumpReLU(threshold / W_dec.norm(dim=1).clamp(min=1e-8) if by_norm else threshold)


def _scales(config: dict[str, Any], t: Tensors, sae: SAE) -> tuple[float, float]:
    """What the input is multiplied by, and the output divided by."""
    reads = config["hook_point_in"]
    writes = config.get("hook_point_out") or reads
    stored = t.under("dataset_average_activation_norm.")
    if reads in stored and writes in stored:
        norms = stored[reads].item(), stored[writes].item()
    else:
        norm: dict[str, float] = needs(config, "dataset_average_activation_norm")
        norms = norm["in"], norm.get("out", norm["in"])
    return sae.d_model**0.5 / norms[0], sae.d_out**0.5 / norms[1]


FORMAT = Format("OpenMOSS", f"{OLD} or {NEW} with hook_point_in, weights", _here, _read)
