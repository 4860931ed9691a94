"""SAELens, before and after 6.0, and its training checkpoints: `cfg.json` + `sae_weights.safetensors`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import Activation, JumpReLU, ReLU, TopK
from scalar_sae.saes.folds import (
    decoder_norms,
    gate_as_threshold,
    with_input_scaled,
    with_input_whitened,
    with_latents_scaled,
)
from scalar_sae.saes.formats.files import Folder, Format, Found, Tensors, build, check_size, needs, save_folder
from scalar_sae.saes.norm import InputNorm
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

_NORMS = {
    "layer_norm": InputNorm("layer_norm", 1e-5),
    "constant_norm_rescale": InputNorm("constant_norm"),
}
_CLOSED = ("standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk")
_TRANSCODERS = re.compile(r"(jumprelu_)?(skip_)?transcoder")


def _here(folder: Folder) -> bool:
    return folder.has(CONFIG, WEIGHTS) and not folder.json(CONFIG).get("is_pair")


def _read(folder: Folder) -> Iterator[Found]:
    config = modern(folder.json(CONFIG))
    tensors = folder.tensors(WEIGHTS)
    architecture = config["architecture"]
    transcoder = _TRANSCODERS.fullmatch(architecture)
    if architecture not in _CLOSED and not transcoder:
        supported = ", ".join((*_CLOSED, "the transcoders"))
        raise UserError(f"architecture {architecture!r} is not one encoder, rule and decoder; supported: {supported}")
    W_enc, b_enc, rule = _encoder(architecture, config, tensors)
    W_dec, W_skip = tensors["W_dec"], tensors.get("W_skip")
    finetuned = tensors.get("scaling_factor")
    sae = build(
        W_enc,
        b_enc,
        W_dec if finetuned is None else W_dec * finetuned.unsqueeze(1),
        tensors["b_dec"],
        rule,
        b_pre=None if transcoder or not config["apply_b_dec_to_input"] else tensors["b_dec"],
        norm=_NORMS.get(config["normalize_activations"]),
        W_skip=None if W_skip is None else W_skip.T,
    )
    check_size(sae, config, "d_in", "d_sae")
    sae = _input_folded(sae, config, folder)
    if config.get("rescale_acts_by_decoder_norm"):
        sae = with_latents_scaled(sae, decoder_norms(sae))
    about: dict[str, Any] = config["metadata"]
    writes = about.get("hook_name_out") or "" if transcoder else ""
    yield Found(sae, about.get("training_architecture") or architecture, about.get("hook_name") or "", writes, config)


def modern(config: dict[str, Any]) -> dict[str, Any]:
    """A config in the layout of 6.0: the model under `metadata`, and nothing left to defaults."""
    if "metadata" not in config:
        renamed = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
        config = {renamed.get(key, key): value for key, value in config.items()}
        config["metadata"] = {key: config[key] for key in ("model_name", "hook_name", "hook_name_out") if key in config}
        if config.get("activation_fn") == "topk":  # before 5.0 a TopK SAE calls itself `standard`
            config |= {"architecture": "topk", "k": (config.get("activation_fn_kwargs") or {}).get("k")}
    norm = config.get("normalize_activations") or "none"
    return {
        **config,
        "architecture": config.get("architecture") or "standard",
        "apply_b_dec_to_input": config.get("apply_b_dec_to_input", True),
        "normalize_activations": "expected_average_only_in" if norm is True else norm,
    }


def _encoder(
    architecture: str, config: dict[str, Any], tensors: Tensors
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], Activation]:
    W_enc = tensors["W_enc"]
    if architecture == "gated":
        return gate_as_threshold(W_enc, tensors["b_gate"], tensors["r_mag"], tensors["b_mag"])
    b_enc = tensors["b_enc"]
    if architecture == "topk":
        return W_enc, b_enc, TopK(int(needs(config, "k")))
    if "jumprelu" in architecture:
        log = tensors.get("log_threshold")
        return W_enc, b_enc, JumpReLU(tensors["threshold"] if log is None else log.exp())
    if "batchtopk" in architecture:  # a training checkpoint: one threshold, in the units of what is selected
        threshold = tensors["topk_threshold"].expand(len(b_enc))
        if config.get("rescale_acts_by_decoder_norm"):
            threshold = threshold / tensors["W_dec"].norm(dim=1).clamp(min=1e-8)
        return W_enc, b_enc, JumpReLU(threshold.clone())
    if config.get("activation_fn", "relu") not in ("relu", None):
        raise UserError(f"activation function {config['activation_fn']!r}: expected relu or topk")
    return W_enc, b_enc, ReLU()


def _input_folded(sae: SAE, config: dict[str, Any], folder: Folder) -> SAE:
    """Fold the scale or whitening that a training checkpoint keeps in files of its own."""
    norm = config["normalize_activations"]
    if norm in _NORMS or norm == "none":
        return sae
    scaler = folder.json("activation_scaler.json") if folder.has("activation_scaler.json") else {}
    if norm == "expected_average_only_in" and scaler.get("scaling_factor"):
        return with_input_scaled(sae, scaler["scaling_factor"], scaler["scaling_factor"])
    if norm == "covariance_whitening" and folder.has("activation_whitening.safetensors"):
        map_ = folder.tensors("activation_whitening.safetensors")
        return with_input_whitened(sae, map_["mean"], map_["matrix"], map_["inverse_matrix"])
    raise UserError(
        f"normalize_activations = {norm!r}, and its numbers are in none of the files; "
        "fold them with SAELens (SAE.from_pretrained does, then save_model) and load what that saved"
    )


FORMAT = Format("SAELens", f"{CONFIG}, {WEIGHTS}", _here, _read)


def save(sae: SAE, site: Site, folder: Path, model_name: str) -> None:
    """Write an SAE as SAELens 6 does, for SAELens, SAEDashboard, Neuronpedia and SAEBench.

    Raises:
        UserError: SAELens has no architecture for it.
    """
    transcoder = sae.writes is not None or sae.W_skip is not None
    norms = {norm: name for name, norm in _NORMS.items()}
    if sae.norm is not None and (transcoder or sae.norm not in norms):
        raise UserError(f"{site}: SAELens has no architecture with this run-time normalisation")
    config: dict[str, Any] = {
        "architecture": _architecture(sae, site, transcoder),
        "d_in": sae.d_model,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none" if sae.norm is None else norms[sae.norm],
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0", "model_name": model_name, "hook_name": site.transformer_lens},
    }
    tensors = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    if isinstance(sae.activation, TopK):
        config |= {"k": sae.activation.k, "rescale_acts_by_decoder_norm": False}
    if isinstance(sae.activation, JumpReLU):
        tensors["threshold"] = sae.activation.threshold
    if transcoder:
        config["d_out"] = sae.d_out
        config["metadata"]["hook_name_out"] = (sae.writes or site).transformer_lens
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip.T
    save_folder(folder, config, tensors, (CONFIG, WEIGHTS))


def _architecture(sae: SAE, site: Site, transcoder: bool) -> str:
    kinds = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu"}
    if transcoder:
        skip = "" if sae.W_skip is None else "skip_"
        kinds = {"relu": f"{skip}transcoder", "jumprelu": f"jumprelu_{skip}transcoder"}
    if sae.activation.kind not in kinds:
        raise UserError(f"{site}: SAELens has no {'transcoder' if transcoder else 'SAE'} with {sae.activation}")
    return kinds[sae.activation.kind]
