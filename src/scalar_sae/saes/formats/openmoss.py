"""OpenMOSS Language-Model-SAEs: Llama Scope of 2024, Llama Scope R1, and the current format of Llamascopium.

Weights act on normalised activations, x sqrt(d_model) / (mean norm over the data). They are folded in the authors'
order: first the input scale, then latents are put into the units of the activations, then decoder rows are scaled to
unit length. An activation then equals the norm of what the latent adds. The single threshold of the 2024 release was
measured after these folds, those of later releases before them.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import Activation, JumpReLU, ReLU, TopK
from scalar_sae.saes.formats.fields import DTYPE, FLAG, INTEGER, NUMBER, TEXT, Fields, choice
from scalar_sae.saes.formats.files import Folder, Format, Found, build, check_size
from scalar_sae.saes.formats.tensors import Tensors
from scalar_sae.saes.normalization import InputNorm
from scalar_sae.saes.reparam import decoder_norms, with_input_scaled, with_latents_scaled
from scalar_sae.saes.sae import SAE

HARMLESS = {
    "d_sae, or the tensors, say the same": "expansion_factor",
    "how it was trained": "seed lp l1_coefficient l1_coefficient_warmup_steps use_ghost_grads use_batch_norm_mse "
    "k_warmup_steps initial_k use_auxk k_aux dead_threshold aux_coefficient",
    "where the weights began": "decoder_bias_init_method geometric_median_max_iter bias_init_method init_decoder_norm "
    "init_encoder_norm init_encoder_with_decoder_transpose from_pretrained_path sae_from_pretrained_path "
    "sae_pretrained_name_or_path",
    "what training did to the weights before they were saved": "decoder_exactly_unit_norm decoder_exactly_fixed_norm "
    "force_unit_decoder_norm",
    "gradients of thresholds": "jumprelu_threshold_window jumprelu_threshold_grad_scale",
    "where and how fast it ran": "device tp_size ddp_size n_devices use_triton_kernel sparsity_threshold_for_csr "
    "sparsity_threshold_for_triton_spmm_kernel promote_act_fn_dtype circuit_tracing_mode",
    "how files are loaded": "strict_loading",
}
_LOG_THRESHOLDS = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")
_NORMS = choice("none", "inference", "token-wise", "batch-wise", "dataset-wise")
OLD, NEW = "hyperparams.json", "config.json"
_WEIGHTS = (
    "sae_weights.safetensors", "sae_weights.pt", "checkpoints/pruned.safetensors", "checkpoints/pruned.pt",
    "checkpoints/final.safetensors", "checkpoints/final.pt",
)  # fmt: skip


def _here(folder: Folder) -> bool:
    return folder.has(OLD) or (folder.has(NEW) and "hook_point_in" in folder.json(NEW))


def _read(folder: Folder) -> Iterator[Found]:
    file = OLD if folder.has(OLD) else NEW
    config = folder.config(file)
    config.harmless(HARMLESS)
    config.get("dtype", DTYPE)
    linear = "only SAEs and transcoders with a linear encoder are supported"
    if (kind := config.get("sae_type", TEXT) or "sae") != "sae":
        raise UserError(f"sae_type = {kind!r}: {linear}")
    for encoder in ("use_glu_encoder", "use_gau_encoder"):
        config.absent(encoder, linear)
    name = next((name for name in _WEIGHTS if (folder.path / name).is_file()), None)
    if name is None:
        raise UserError(f"no weights: expected one of {', '.join(_WEIGHTS)}")
    tensors = folder.tensors(name)
    tensors = tensors.inside("sae") if "sae" in tensors else tensors
    reads, writes = config.need("hook_point_in", TEXT), config.get("hook_point_out", TEXT) or ""
    writes = "" if writes == reads else writes
    sae, group = _sae(config, tensors, reads, writes, first=file == OLD)
    yield Found(sae, group, reads, writes, folder.json(file))


def _sae(config: Fields, t: Tensors, reads: str, writes: str, first: bool) -> tuple[SAE, str]:
    """The SAE, and the name of its activation function in training. `first` says whether it is of the 2024 release."""
    W_enc, b_enc, W_dec, b_dec = _weights(t)
    (config.get if b_dec is not None else config.need)("use_decoder_bias", FLAG)
    config.same("use_decoder_bias", FLAG, b_dec is not None)
    norm = config.need("norm_activation", _NORMS)
    ask = config.need if "top_k" in config or norm != "none" else config.get
    by_norm = ask("sparsity_include_decoder_norm", FLAG) or False
    kind = ask("act_fn", choice("relu", "topk", "jumprelu")) or "relu"
    rule, one_threshold = _rule(kind, config, t, W_dec, by_norm, first)
    if norm == "batch-wise" or (norm == "token-wise" and writes):
        hooks = f"{reads} -> {writes}" if writes else reads
        raise UserError(f"norm_activation {norm!r} ({hooks}): what it divides by is not known at inference")
    ask = config.need if first and b_dec is not None else config.get
    pre = b_dec if ask("apply_decoder_bias_to_pre_encoder", FLAG) else None
    at_run_time = InputNorm("constant_norm") if norm == "token-wise" else None
    sae = build(W_enc, b_enc, W_dec, b_dec, rule, b_pre=pre, norm=at_run_time)
    check_size(sae, config, "d_model", "d_sae")
    norms = _norms(config, t, reads, writes or reads)
    if norm == "dataset-wise":
        if norms is None:
            raise UserError(
                "neither the config gives dataset_average_activation_norm, nor do the tensors "
                f"(dataset_average_activation_norm.{reads})"
            )
        s_in, s_out = sae.d_model**0.5 / norms[0], sae.d_out**0.5 / norms[1]
        sae = with_latents_scaled(with_input_scaled(sae, s_in, s_out), torch.full((sae.d_sae,), 1 / s_in))
    if by_norm:
        sae = with_latents_scaled(sae, decoder_norms(sae))
    if one_threshold is not None:
        sae = replace(sae, activation=JumpReLU(torch.full((sae.d_sae,), one_threshold)))
    return sae, kind


def _weights(t: Tensors) -> tuple[Float[Tensor, "..."], Tensor, Float[Tensor, "..."], Tensor | None]:
    if "W_E" in t or "W_D" in t:
        return t.matrix("W_E"), t["b_E"], t.matrix("W_D"), t.get("b_D")
    return t.matrix("encoder.weight").T, t["encoder.bias"], t.matrix("decoder.weight").T, t.get("decoder.bias")


def _rule(
    kind: str, config: Fields, t: Tensors, W_dec: Float[Tensor, "..."], by_norm: bool, first: bool
) -> tuple[Activation, float | None]:
    """The activation rule, and the single threshold of the 2024 release, if any, which is applied after all folds."""
    k = config.get("top_k", INTEGER)
    single = (config.need if first and kind != "relu" else config.get)("jump_relu_threshold", NUMBER) or 0.0
    name = next((name for name in _LOG_THRESHOLDS if name in t), None)
    if name is not None and kind != "jumprelu":
        raise UserError(f"act_fn {kind!r}, and {name} among the tensors: they contradict each other")
    if name is not None:
        threshold = t.sized(name, *W_dec.shape[:1]).exp()
        return JumpReLU(threshold / W_dec.norm(dim=1).clamp(min=1e-8) if by_norm else threshold), None
    if kind != "relu" and single > 0:
        return ReLU(), single
    if kind == "jumprelu":
        raise UserError("act_fn 'jumprelu', and neither jump_relu_threshold nor log_jumprelu_threshold is there")
    if single:
        raise UserError(f"jump_relu_threshold = {single:g}: contradicts act_fn {kind!r}")
    if kind == "relu":
        return ReLU(), None
    return TopK(config.need("top_k", INTEGER) if k is None else k), None


def _norms(config: Fields, t: Tensors, reads: str, writes: str) -> tuple[float, float] | None:
    """Mean norms over the data of the activations read and written, from the config or the tensors."""
    stored = t.under("dataset_average_activation_norm.")
    written = config.inside("dataset_average_activation_norm")
    pairs = [
        (stored.scalar(reads, NUMBER), stored.scalar(writes, NUMBER)),
        (written.get("in", NUMBER), written.get("out", NUMBER)),
    ]
    for first, second in pairs:
        if first is not None:
            second = first if second is None and reads == writes else second
            if second is None or first <= 0 or second <= 0 or (reads == writes and first != second):
                raise UserError(
                    f"dataset_average_activation_norm = {first:g} at {reads}, {second} at {writes}: expected two "
                    "positive numbers, the same where hook_point_out is hook_point_in"
                )
            return first, second
    return None


FORMAT = Format("OpenMOSS", f"{OLD} or {NEW} with hook_point_in, weights", _here, (), _read)
