"""gpt-circuits, the SCALAR authors' code: `sae.json`, `sae.<id>.safetensors` and, for staircases, shared matrices.

`<id>` is a position in the list of SAEs, or its key: `0_residmid`. Every encoder subtracts b_dec.
"""

import re
from collections.abc import Iterator
from typing import Any

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import JumpReLU, ReLU, TopK
from scalar_sae.saes.folds import gate_as_threshold
from scalar_sae.saes.formats.files import Folder, Format, Found, Tensors, build, needs
from scalar_sae.saes.sae import SAE

CONFIG = "sae.json"

_POINTS = {
    "residmid": "resid_mid", "residpost": "resid_post", "mlpin": "mlp_in", "mlpout": "mlp_out",
    "attnin": "attn_in", "attnout": "attn_out",
}  # fmt: skip
_PAIRS = {"jsae_layer": ("mlpin", "mlpout"), "jsae_block": ("residmid", "residpost")}
_PAIRS["staircase_block"] = _PAIRS["jsae_block"]


def _here(folder: Folder) -> bool:
    return folder.has(CONFIG) and "sae_variant" in folder.json(CONFIG)


def _read(folder: Folder) -> Iterator[Found]:
    config = folder.json(CONFIG)
    widths: list[int] = needs(config, "n_features")
    variant = str(config["sae_variant"])
    keys = config.get("sae_keys") or _keys(variant, len(widths))
    if len(keys) != len(widths):
        raise UserError(f"{CONFIG} has {len(widths)} n_features and {len(keys)} sae_keys")
    for i, (key, width) in enumerate(zip(keys, widths, strict=True)):
        name = next((name for name in (f"sae.{i}.safetensors", f"sae.{key}.safetensors") if folder.has(name)), None)
        if name is None:
            raise UserError(f"neither sae.{i}.safetensors nor sae.{key}.safetensors is there")
        own = folder.tensors(name)
        shared, first = _shared(folder, variant, i, own)
        sae = _sae(variant, config, i, own, shared or own, tuple(widths[first : i + 1]) if shared else ())
        if sae.d_sae != width:
            raise UserError(f"{CONFIG} says n_features = {width} for {name}, the tensors have {sae.d_sae}")
        yield Found(sae, variant, _site(key), recipe=config)


def _keys(variant: str, n: int) -> list[str]:
    """The keys of a list of SAEs that does not give them."""
    if variant in _PAIRS:
        return [f"{i // 2}_{_PAIRS[variant][i % 2]}" for i in range(n)]
    return [f"{i}_act" for i in range(n)]


def _site(key: str) -> str:
    layer, _, point = key.partition("_")
    if point == "act":  # a block's input; the last one is the final norm's
        return f"resid_post.{int(layer) - 1}" if int(layer) else "resid_pre.0"
    if point not in _POINTS:
        raise UserError(f"{CONFIG}: {key!r} is not one of act, {', '.join(_POINTS)} after a layer's number")
    return f"{_POINTS[point]}.{layer}"


def _shared(folder: Folder, variant: str, i: int, own: Tensors) -> tuple[Tensors | None, int]:
    """The matrices that SAE i of a staircase reads a slice of, and the staircase's first SAE."""
    if variant == "staircase_block":
        return folder.tensors(f"sae.shared.{i // 2}.safetensors"), i - i % 2
    if variant.startswith("topk_staircase"):
        name = "sae.shared.0.safetensors"
        return folder.tensors(name if folder.has(name) else "sae.shared.safetensors"), 0
    if variant == "jumprelu_staircase":
        return own.under("shared_context."), 0
    return None, i


def _sae(variant: str, config: dict[str, Any], i: int, t: Tensors, weights: Tensors, chunks: tuple[int, ...]) -> SAE:
    b_dec = t["b_dec"]
    kind = re.sub("_v2$", "", variant)
    if kind == "gated":
        tied = variant == "gated_v2"
        W_gate = t["W_dec"].T if tied else t["W_gate"]
        r_mag = t["b_gate"].new_zeros(len(t["b_gate"])) if tied else t["r_mag"]
        W_enc, b_enc, rule = gate_as_threshold(W_gate, t["b_gate"], r_mag, t["b_mag"])
        return build(W_enc, b_enc, t["W_dec"], b_dec, rule, b_pre=b_dec)
    b_enc = t["b_enc"]
    if kind == "standard":
        rule = ReLU()
    elif kind.startswith("jumprelu"):
        rule = JumpReLU(t["jumprelu.log_threshold"].exp())
    elif kind.startswith("topk") or variant in _PAIRS:
        rule = TopK(int(needs(config, "top_k")[i]))
    else:
        raise UserError(f"sae_variant {variant!r} is not supported")
    W_dec = weights["W_dec"][: len(b_enc)]
    W_enc = W_dec.T if variant == "standard_v2" else weights["W_enc"][:, : len(b_enc)]
    return build(W_enc, b_enc, W_dec, b_dec, rule, b_pre=b_dec, chunks=chunks)


FORMAT = Format("gpt-circuits", f"{CONFIG}, sae.<i>.safetensors", _here, _read)
