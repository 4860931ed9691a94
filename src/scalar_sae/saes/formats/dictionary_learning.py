"""dictionary_learning (Marks, Karvonen, Mueller): `<run>/trainer_<i>/{ae.pt, config.json}`."""

import re
from collections.abc import Iterator

import torch

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import Activation, JumpReLU, ReLU, TopK
from scalar_sae.saes.formats.fields import INTEGER, INTEGERS, NUMBER, TEXT, Fields, choice
from scalar_sae.saes.formats.files import Folder, Format, Found, build, check_size
from scalar_sae.saes.formats.tensors import Tensors
from scalar_sae.saes.origin import Origin
from scalar_sae.saes.reparam import gate_as_threshold, with_input_scaled, with_latents_scaled
from scalar_sae.saes.sae import SAE

CONFIG, WEIGHTS = "config.json", "ae.pt"

HARMLESS = {
    "how it was trained": "trainer_class lr steps warmup_steps decay_start resample_steps seed device "
    "steps_before_annealing lambda_warm_steps",
    "what the loss weighed": "l1_penalty l0_penalty sparsity_penalty sparsity_function sparsity_warmup_steps "
    "adaptive_sparsity_penalty target_l0 p_start p_end anneal_start n_sparsity_updates sparsity_queue_length "
    "sparsity_loss_queue_length activation_queue_length auxk_alpha top_k_aux bandwidth",
    "how the threshold, which is among the tensors, was learned": "threshold_beta threshold_start_step",
    "what the loss weighed, and how wide groups are of dict_size": "group_weights group_fractions weights_temperature",
    "its name in a log": "wandb_name",
}
BUFFER_HARMLESS = {
    "how activations were kept": "n_ctxs refresh_batch_size out_batch_size device",
}
STATE_HARMLESS = {
    "the rest of a training state": "step optimizer",
    "a copy of config.json": "config",
}
_SITE = r"(resid_post|mlp_out|attn_out)_layer_?(\d+)"
_OUTPUTS = {"resid_post": "resid_post.{}", "mlp_out": "layers.{}.mlp", "attn_out": "layers.{}.attention"}
"""Site by name in the config. Modules are hooked, whose output some models normalise before adding it."""
_NO_THRESHOLD = "its BatchTopK threshold was not learned yet: read as TopK, which keeps k latents on every token"


def _here(folder: Folder) -> bool:
    return folder.has(CONFIG, WEIGHTS) and "trainer" in folder.json(CONFIG)


def _read(folder: Folder) -> Iterator[Found]:
    file = folder.config(CONFIG)
    config, buffer = file.inside("trainer"), file.inside("buffer")
    config.harmless(HARMLESS)
    buffer.harmless(BUFFER_HARMLESS)
    file_tensors = folder.tensors(WEIGHTS)
    backup = "ae" in file_tensors  # an interrupted run leaves its training state, in units of its normalised input
    kind, _ = config.need("dict_class", TEXT), config.get("k", INTEGER)  # k is not read by kinds without TopK
    sae = _sae(kind, config, file_tensors.inside("ae") if backup else file_tensors)
    if backup:
        file_tensors.harmless(STATE_HARMLESS)
        sae = _in_units_of_the_model(sae, file_tensors)
    check_size(sae, config, "activation_dim", "dict_size")
    buffer.same("d_submodule", INTEGER, sae.d_model)
    site, remarks = _site(folder, config, buffer)
    if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE") and isinstance(sae.activation, TopK):
        remarks += (_NO_THRESHOLD,)
    origin = Origin(model=config.get("lm_name", TEXT), context=buffer.get("ctx_len", INTEGER))
    yield Found(sae, folder.path.name, site, "", folder.json(CONFIG), origin, remarks)


def _sae(kind: str, config: Fields, t: Tensors) -> SAE:
    match kind:
        case "AutoEncoder":
            return build(
                t.matrix("encoder.weight").T,
                t["encoder.bias"],
                t.matrix("decoder.weight").T,
                t["bias"],
                ReLU(),
                b_pre=t["bias"],
            )
        case "AutoEncoderNew":
            return build(
                t.matrix("encoder.weight").T, t["encoder.bias"], t.matrix("decoder.weight").T, t["decoder.bias"], ReLU()
            )
        case "GatedAutoEncoder":
            W_gate = t.matrix("encoder.weight").T
            gate = (t.sized(name, *W_gate.shape[1:]) for name in ("gate_bias", "r_mag", "mag_bias"))
            W_enc, b_enc, rule = gate_as_threshold(W_gate, *gate)
            return build(W_enc, b_enc, t.matrix("decoder.weight").T, t["decoder_bias"], rule, b_pre=t["decoder_bias"])
        case "JumpReluAutoEncoder":
            return build(t["W_enc"], t["b_enc"], t["W_dec"], t["b_dec"], JumpReLU(t["threshold"]))
        case "AutoEncoderTopK" | "BatchTopKSAE":
            W_enc, b_enc, W_dec = t.matrix("encoder.weight").T, t["encoder.bias"], t.matrix("decoder.weight").T
        case "MatryoshkaBatchTopKSAE":
            W_enc, b_enc, W_dec = t.matrix("W_enc"), t["b_enc"], t["W_dec"]
            _check_groups(config, t, W_enc.shape[1])
        case _:
            raise UserError(f"dict_class {kind!r} is not supported")
    return build(W_enc, b_enc, W_dec, t["b_dec"], _selection(kind, config, t, W_enc.shape[1]), b_pre=t["b_dec"])


def _selection(kind: str, config: Fields, t: Tensors, d_sae: int) -> Activation:
    """TopK, or the single inference threshold of a BatchTopK SAE if it was learned."""
    k, threshold = t.scalar("k", INTEGER), t.scalar("threshold", NUMBER)
    if k is None:
        k = config.need("k", INTEGER)
    config.same("k", INTEGER, k)
    if threshold is None and config.get("threshold_beta", NUMBER) is not None:
        raise UserError("the config gives threshold_beta, and there is no threshold among the tensors")
    if kind != "AutoEncoderTopK" and threshold is not None and threshold >= 0:
        return JumpReLU(torch.full((d_sae,), threshold))
    return TopK(k)


def _check_groups(config: Fields, t: Tensors, d_sae: int) -> None:
    """Raise a UserError unless the groups of a Matryoshka SAE, which must all be active, cover the whole dictionary."""
    for sizes in (t.integers("group_sizes"), config.get("group_sizes", INTEGERS)):
        if sizes is not None and sum(sizes) != d_sae:
            raise UserError(f"group_sizes = {sizes}: they should add up to {d_sae}, the number of latents")


def _in_units_of_the_model(sae: SAE, state: Tensors) -> SAE:
    """An SAE that reads activations, given one that reads them divided by the state's `norm_factor`."""
    factor = state.scalar("norm_factor", NUMBER)
    if factor is None:
        return sae
    if factor <= 0:
        raise UserError(f"norm_factor = {factor:g}: expected a positive number")
    return with_latents_scaled(with_input_scaled(sae, 1 / factor, 1 / factor), sae.b_enc.new_full((sae.d_sae,), factor))


def _site(folder: Folder, config: Fields, buffer: Fields) -> tuple[str, tuple[str, ...]]:
    """The site that it reads, and remarks on it. The format has no field for the site, only free names."""
    layer, named = config.get("layer", INTEGER), config.get("submodule_name", TEXT)
    side = buffer.get("io", choice("in", "out", "in_and_out"))
    if side == "in_and_out":
        raise UserError("buffer: io = 'in_and_out': a transcoder of dictionary_learning is not supported")
    match = re.fullmatch(_SITE, named) if named else folder.ending(rf"{_SITE}/[^/]+")
    if match and layer not in (None, int(match[2])):
        raise UserError(f"layer = {layer} contradicts the name {match[0].rpartition('/')[0] or match[0]}")
    if side == "in" or (named and not match):
        return "", ()  # a module's input, or a module without a known site: the user has to name the site
    if match:
        return _OUTPUTS[match[1]].format(match[2]), ()
    if layer is None:
        return "", ()
    return f"resid_post.{layer}", (f"its files give a layer and no place in it: read as resid_post.{layer}",)


FORMAT = Format("dictionary_learning", f"{CONFIG} with trainer, {WEIGHTS}", _here, (WEIGHTS,), _read)
