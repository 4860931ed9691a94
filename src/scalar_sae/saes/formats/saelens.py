"""SAELens, before and after 6.0, and its training checkpoints: `cfg.json` and `sae_weights.safetensors`."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import Activation, JumpReLU, ReLU, TopK
from scalar_sae.saes.formats import saelens_config
from scalar_sae.saes.formats.fields import FLAG, INTEGER, NUMBER, Fields
from scalar_sae.saes.formats.files import Folder, Format, Found, build, check_size, save_folder
from scalar_sae.saes.formats.tensors import Tensors
from scalar_sae.saes.normalization import InputNorm
from scalar_sae.saes.origin import Origin
from scalar_sae.saes.reparam import (
    decoder_norms,
    gate_as_threshold,
    with_input_centred,
    with_input_scaled,
    with_input_whitened,
    with_latents_scaled,
)
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"

_NORMS = {
    "layer_norm": InputNorm("layer_norm", 1e-5),
    "constant_norm_rescale": InputNorm("constant_norm"),
}
_CLOSED = ("standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk")
_TRANSCODERS = re.compile(r"(jumprelu_)?(skip_)?transcoder")


def _here(folder: Folder) -> bool:
    return folder.has(CONFIG, WEIGHTS) and not is_pair(folder.json(CONFIG))


def is_pair(config: dict[str, Any]) -> bool:
    """Whether a config describes a pair of jacobian-saes."""
    return bool(config.get("is_pair") or config.get("use_jacobian_loss"))


def _read(folder: Folder) -> Iterator[Found]:
    fields = folder.config(CONFIG)
    fields.absent("is_pair", "this is a pair")
    config, t = saelens_config.read(fields), folder.tensors(WEIGHTS)
    transcoder = _TRANSCODERS.fullmatch(config.architecture)
    if config.architecture not in _CLOSED and not transcoder:
        supported = ", ".join((*_CLOSED, "the transcoders"))
        raise UserError(
            f"architecture {config.architecture!r} is not one encoder, rule and decoder; supported: {supported}"
        )
    if transcoder:
        _check_transcoder(fields, config)
    if "_W_enc" in t:
        raise UserError(f"{WEIGHTS} holds the pair of jacobian-saes, and {CONFIG} does not say is_pair")
    W_enc, b_enc, rule = _encoder(config, t)
    W_dec, W_skip = t["W_dec"], t.matrix("W_skip") if "skip" in config.architecture else None
    sae = build(
        W_enc,
        b_enc,
        W_dec,
        t["b_dec"],
        rule,
        b_pre=t["b_dec"] if config.b_dec_from_input and not transcoder else None,
        norm=_NORMS.get(config.norm),
        W_skip=None if W_skip is None else W_skip.T,
    )
    check_size(sae, fields, "d_in", "d_sae")
    if transcoder:
        fields.same("d_out", INTEGER, sae.d_out)
    sae = _finetuned(sae, config, t)
    white = config.norm == "covariance_whitening"  # whitening would change the norms
    for fold in (_by_decoder_norm, _input_folded) if white else (_input_folded, _by_decoder_norm):
        sae = fold(sae, config, folder)
    writes = config.writes if transcoder else ""
    remarks = config.remarks
    if writes and config.centred_at(writes):
        raise UserError(
            "model_from_pretrained_kwargs: center_writing_weights = True: the mean that a transcoder's output lacks is "
            "no function of its input; refused"
        )
    if config.centred_at(config.reads):
        sae = with_input_centred(sae)
        remarks += ("center_writing_weights is folded in: the SAE takes out a token's mean, and puts it back",)
    yield Found(sae, config.name, config.reads, writes, folder.json(CONFIG), config.origin, remarks)


def _check_transcoder(fields: Fields, config: saelens_config.Config) -> None:
    """Refuse options that SAELens' transcoders ignore, or that change the input without undoing it."""
    fields.absent("apply_b_dec_to_input", "a transcoder's b_dec lies at another site than its input")
    if config.norm != "none":
        raise UserError(f"normalize_activations = {config.norm!r}: a transcoder's output is in other units; refused")
    if not config.writes:
        raise UserError("the config gives no hook_name_out, where the transcoder writes")


def _encoder(
    config: saelens_config.Config, t: Tensors
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], Activation]:
    W_enc = t.matrix("W_enc")
    if config.activation not in ("relu", "topk" if config.architecture == "topk" else "relu"):
        raise UserError(f"activation function {config.activation!r}: expected relu or topk")
    if config.architecture == "gated":
        return gate_as_threshold(W_enc, *(t.sized(name, *W_enc.shape[1:]) for name in ("b_gate", "r_mag", "b_mag")))
    b_enc = t["b_enc"]
    if config.architecture == "topk":
        return W_enc, b_enc, TopK(whole_k(config))
    if "jumprelu" in config.architecture:
        log = t.get("log_threshold")
        return W_enc, b_enc, JumpReLU(t["threshold"] if log is None else log.exp())
    # a training checkpoint: one threshold, in the units of the selected quantity
    if "batchtopk" in config.architecture:
        threshold = W_enc.new_full((W_enc.shape[-1],), t.need("topk_threshold", NUMBER))
        if config.by_decoder_norm:
            threshold = threshold / t.sized("W_dec", *W_enc.T.shape).norm(dim=1).clamp(min=1e-8)
        return W_enc, b_enc, JumpReLU(threshold)
    return W_enc, b_enc, ReLU()


def whole_k(config: saelens_config.Config) -> int:
    """The k of a TopK SAE.

    Raises:
        UserError: there is none, or it is not an integer.
    """
    if config.k is None or not config.k.is_integer():
        raise UserError("the config gives no k" if config.k is None else f"k = {config.k:g}: expected a whole number")
    return int(config.k)


def _finetuned(sae: SAE, config: saelens_config.Config, t: Tensors) -> SAE:
    """Fold the factors by which latents were fine-tuned. `scaling_factor` is always present up to version 2."""
    names = [name for name in ("scaling_factor", "finetuning_scaling_factor") if name in t]
    if len(names) > 1:
        raise UserError(f"{WEIGHTS} holds {' and '.join(names)}: which of them is meant?")
    if not names:
        if config.finetuned:
            raise UserError(
                "the config says that the decoder was fine-tuned (finetuning_scaling_factor, finetuning_method), and "
                f"{WEIGHTS} holds neither scaling_factor nor finetuning_scaling_factor"
            )
        return sae
    factor = t.sized(names[0], sae.d_sae)
    if bool((factor == 1).all()):
        return sae
    if config.finetuned is False or (config.finetuned is None and names[0] == "finetuning_scaling_factor"):
        raise UserError(
            f"{WEIGHTS} holds a {names[0]} that is not 1, and the config does not say that the decoder was fine-tuned: "
            "they contradict each other"
        )
    if not factor.isfinite().all():
        raise UserError(f"{names[0]} holds NaN or infinity: the training diverged; take an earlier checkpoint")
    return replace(sae, W_dec=sae.W_dec * factor.unsqueeze(1))


def _by_decoder_norm(sae: SAE, config: saelens_config.Config, _: Folder) -> SAE:
    """Fold decoder norms if latents are selected by activation times decoder norm."""
    return with_latents_scaled(sae, decoder_norms(sae)) if config.by_decoder_norm else sae


def _input_folded(sae: SAE, config: saelens_config.Config, folder: Folder) -> SAE:
    """Fold the scale or whitening that a training checkpoint keeps in separate files."""
    if config.norm in _NORMS or config.norm == "none":
        return sae
    if config.norm == "expected_average_only_in" and folder.has(SCALER):
        scaler = folder.config(SCALER)
        scaler.absent("has_whitening", "the config says that the input was scaled, not whitened")
        if (scale := scaler.get("scaling_factor", NUMBER)) is not None:
            if scale <= 0:
                raise UserError(f"{SCALER}: scaling_factor = {scale:g}: expected a positive number")
            return with_input_scaled(sae, scale, scale)
    if config.norm == "covariance_whitening" and folder.has(WHITENING):
        map_, d = folder.tensors(WHITENING), sae.d_model
        if folder.has(SCALER):
            scaler = folder.config(SCALER)
            scaler.get("has_whitening", FLAG)
            scaler.absent("scaling_factor", "the config says that the input was whitened, not scaled")
        maps = map_.sized("matrix", d, d), map_.sized("inverse_matrix", d, d)
        return with_input_whitened(sae, map_.sized("mean", d), *maps)
    raise UserError(
        f"normalize_activations = {config.norm!r}, and its numbers are in none of the files; "
        "fold them with SAELens (SAE.from_pretrained does, then save_model) and load what that saved "
        f"(a training checkpoint has scaling_factor in {SCALER}, or {WHITENING})"
    )


FORMAT = Format("SAELens", f"{CONFIG}, {WEIGHTS}", _here, (WEIGHTS,), _read)


def save(sae: SAE, site: Site, folder: Path, origin: Origin) -> None:
    """Write an SAE in the format of SAELens 6, for SAELens, SAEDashboard, Neuronpedia and SAEBench. Its metadata say
    what the SAE was trained on, as far as that is known.

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
        "metadata": {
            "sae_lens_version": "6.0.0",
            "model_name": origin.model or "",
            "hook_name": site.transformer_lens,
            **_known(origin),
        },
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


def _known(origin: Origin) -> dict[str, Any]:
    """What is known of the training prompts, in SAELens' words."""
    facts = {
        "dataset_path": origin.text,
        "context_size": origin.context,
        "prepend_bos": origin.bos,
        "seqpos_slice": origin.positions,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _architecture(sae: SAE, site: Site, transcoder: bool) -> str:
    kinds = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu"}
    if transcoder:
        skip = "" if sae.W_skip is None else "skip_"
        kinds = {"relu": f"{skip}transcoder", "jumprelu": f"jumprelu_{skip}transcoder"}
    if sae.activation.kind not in kinds:
        raise UserError(f"{site}: SAELens has no {'transcoder' if transcoder else 'SAE'} with {sae.activation}")
    return kinds[sae.activation.kind]
