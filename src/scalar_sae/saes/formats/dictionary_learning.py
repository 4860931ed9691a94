"""dictionary_learning (Marks, Karvonen, Mueller): `<run>/trainer_<i>/{ae.pt, config.json}`."""

import re
from collections.abc import Iterator
from typing import Any

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import Activation, JumpReLU, ReLU, TopK
from scalar_sae.saes.folds import gate_as_threshold, with_input_scaled, with_latents_scaled
from scalar_sae.saes.formats.files import Folder, Format, Found, Tensors, build, check_size, needs
from scalar_sae.saes.sae import SAE

CONFIG, WEIGHTS = "config.json", "ae.pt"


def _here(folder: Folder) -> bool:
    return folder.has(CONFIG, WEIGHTS) and "trainer" in folder.json(CONFIG)


def _read(folder: Folder) -> Iterator[Found]:
    config: dict[str, Any] = folder.json(CONFIG)["trainer"]
    tensors = folder.tensors(WEIGHTS)
    backup = "ae" in tensors  # a run that was killed leaves its training state, in units of its normalised input
    sae = _sae(str(needs(config, "dict_class")), config, tensors.inside("ae") if backup else tensors)
    factor = tensors.plain("norm_factor") if backup else None
    if factor is not None:
        sae = with_latents_scaled(
            with_input_scaled(sae, 1 / factor, 1 / factor), sae.b_enc.new_full((sae.d_sae,), factor)
        )
    check_size(sae, config, "activation_dim", "dict_size")
    yield Found(sae, folder.path.name, _site(config), recipe=config)


def _sae(kind: str, config: dict[str, Any], t: Tensors) -> SAE:
    match kind:
        case "AutoEncoder":
            return build(
                t["encoder.weight"].T, t["encoder.bias"], t["decoder.weight"].T, t["bias"], ReLU(), b_pre=t["bias"]
            )
        case "AutoEncoderNew":
            return build(t["encoder.weight"].T, t["encoder.bias"], t["decoder.weight"].T, t["decoder.bias"], ReLU())
        case "GatedAutoEncoder":
            W_enc, b_enc, rule = gate_as_threshold(t["encoder.weight"].T, t["gate_bias"], t["r_mag"], t["mag_bias"])
            return build(W_enc, b_enc, t["decoder.weight"].T, t["decoder_bias"], rule, b_pre=t["decoder_bias"])
        case "JumpReluAutoEncoder":
            return build(t["W_enc"], t["b_enc"], t["W_dec"], t["b_dec"], JumpReLU(t["threshold"]))
        case "AutoEncoderTopK" | "BatchTopKSAE":
            W_enc, b_enc, W_dec = t["encoder.weight"].T, t["encoder.bias"], t["decoder.weight"].T
        case "MatryoshkaBatchTopKSAE":
            W_enc, b_enc, W_dec = t["W_enc"], t["b_enc"], t["W_dec"]
        case _:
            raise UserError(f"dict_class {kind!r} is not supported")
    rule = _selection(kind, config, t, len(b_enc))
    return build(W_enc, b_enc, W_dec, t["b_dec"], rule, b_pre=t["b_dec"])


def _selection(kind: str, config: dict[str, Any], t: Tensors, d_sae: int) -> Activation:
    """TopK; or, where it was learned, the one threshold that a BatchTopK SAE has at inference."""
    threshold = t.get("threshold")
    if kind != "AutoEncoderTopK" and threshold is not None and threshold >= 0:
        return JumpReLU(threshold.expand(d_sae).clone())
    return TopK(int(t["k"]) if "k" in t else int(needs(config, "k")))


def _site(config: dict[str, Any]) -> str:
    """Block outputs, unless the module's name says otherwise; the format has no field for it."""
    name = re.match(r"(resid_post|mlp_out|attn_out)_layer_(\d+)", str(config.get("submodule_name")))
    if name:
        return f"{name[1]}.{name[2]}"
    return "" if config.get("layer") is None else f"resid_post.{config['layer']}"


FORMAT = Format("dictionary_learning", f"{CONFIG}, {WEIGHTS}", _here, _read)
