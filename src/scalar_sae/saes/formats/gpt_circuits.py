"""gpt-circuits, the SCALAR authors' code: `sae.json`, `sae.<id>.safetensors` and, for staircases, shared matrices.

`<id>` is an index in the list of SAEs, or a key such as `0_residmid`. Every encoder subtracts b_dec.
"""

import re
from collections.abc import Iterator

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import JumpReLU, ReLU, TopK
from scalar_sae.saes.formats.fields import INTEGERS, TEXTS, choice
from scalar_sae.saes.formats.files import Folder, Format, Found, build
from scalar_sae.saes.formats.tensors import Tensors
from scalar_sae.saes.reparam import gate_as_threshold
from scalar_sae.saes.sae import SAE

CONFIG = "sae.json"

_POINTS = {
    "residmid": "resid_mid", "residpost": "resid_post", "mlpin": "mlp_in", "mlpout": "mlp_out",
    "attnin": "attn_in", "attnout": "attn_out",
}  # fmt: skip
_PAIRS = {"jsae_layer": ("mlpin", "mlpout"), "jsae_block": ("residmid", "residpost")}
_PAIRS["staircase_block"] = _PAIRS["jsae_block"]
_VARIANTS = (
    "standard", "standard_v2", "gated", "gated_v2", "jumprelu", "jumprelu_staircase", "topk", "topk_staircase",
    "topk_staircase_detach", *_PAIRS,
)  # fmt: skip


def _here(folder: Folder) -> bool:
    return folder.has(CONFIG) and "sae_variant" in folder.json(CONFIG)


def _read(folder: Folder) -> Iterator[Found]:
    config = folder.config(CONFIG)
    widths, variant = config.need("n_features", INTEGERS), config.need("sae_variant", choice(*_VARIANTS))
    keys = config.get("sae_keys", TEXTS) or _keys(variant, len(widths))
    ks = config.get("top_k", INTEGERS)
    for name, values in (("sae_keys", keys), ("top_k", ks)):
        if values is not None and len(values) != len(widths):
            raise UserError(f"{CONFIG} has {len(widths)} n_features and {len(values)} {name}")
    for i, (key, width) in enumerate(zip(keys, widths, strict=True)):
        names = [name for name in (f"sae.{i}.safetensors", f"sae.{key}.safetensors") if folder.has(name)]
        if len(names) != 1:
            which = "both are" if names else "neither is"
            raise UserError(f"sae.{i}.safetensors, sae.{key}.safetensors: {which} there; expected one of them")
        own = folder.tensors(names[0])
        shared, first = _shared(folder, variant, i, own)
        chunks = tuple(widths[first : i + 1]) if shared else ()
        sae = _sae(variant, None if ks is None else ks[i], own, shared or own, chunks)
        if sae.d_sae != width:
            raise UserError(f"{CONFIG} says n_features = {width} for {names[0]}, the tensors have {sae.d_sae}")
        yield Found(sae, variant, _site(key), recipe=folder.json(CONFIG))


def _keys(variant: str, n: int) -> list[str]:
    """The keys of a list of SAEs that does not include them."""
    if variant in _PAIRS:
        return [f"{i // 2}_{_PAIRS[variant][i % 2]}" for i in range(n)]
    return [f"{i}_act" for i in range(n)]


def _site(key: str) -> str:
    layer, _, point = key.partition("_")
    if point == "act":  # a block's input; the last one is the input of the final norm
        return f"resid_post.{int(layer) - 1}" if int(layer) else "resid_pre.0"
    if point not in _POINTS:
        raise UserError(f"{CONFIG}: {key!r} is not one of act, {', '.join(_POINTS)} after a layer's number")
    return f"{_POINTS[point]}.{layer}"


def _shared(folder: Folder, variant: str, i: int, own: Tensors) -> tuple[Tensors | None, int]:
    """The matrices of which SAE i of a staircase reads a slice, and the staircase's first SAE."""
    if variant == "staircase_block":
        return folder.tensors(f"sae.shared.{i // 2}.safetensors"), i - i % 2
    if variant.startswith("topk_staircase"):
        name = "sae.shared.0.safetensors"
        return folder.tensors(name if folder.has(name) else "sae.shared.safetensors"), 0
    if variant == "jumprelu_staircase":
        return own.under("shared_context."), 0
    return None, i


def _sae(variant: str, k: int | None, t: Tensors, weights: Tensors, chunks: tuple[int, ...]) -> SAE:
    b_dec = t["b_dec"]
    kind = re.sub("_v2$", "", variant)
    if kind == "gated":
        tied, W_dec = variant == "gated_v2", t.matrix("W_dec")
        W_gate = W_dec.T if tied else t.matrix("W_gate")
        size = W_gate.shape[1:]
        r_mag = W_dec.new_zeros(size) if tied else t.sized("r_mag", *size)
        gate = gate_as_threshold(W_gate, t.sized("b_gate", *size), r_mag, t.sized("b_mag", *size))
        W_enc, b_enc, rule = gate
        return build(W_enc, b_enc, W_dec, b_dec, rule, b_pre=b_dec)
    b_enc = t["b_enc"]
    if kind == "standard":
        rule = ReLU()
    elif kind.startswith("jumprelu"):
        rule = JumpReLU(t["jumprelu.log_threshold"].exp())
    elif k is None:
        raise UserError("the config gives no top_k")
    else:
        rule = TopK(k)
    width = len(b_enc)
    W_dec = weights.matrix("W_dec")
    W_enc = W_dec.T if variant == "standard_v2" else weights.matrix("W_enc")
    if chunks:  # a slice of the shared matrices
        W_enc, W_dec = W_enc[:, :width], W_dec[:width]
    return build(W_enc, b_enc, W_dec, b_dec, rule, b_pre=b_dec, chunks=chunks)


FORMAT = Format("gpt-circuits", f"{CONFIG} with sae_variant, sae.<i>.safetensors", _here, (), _read)
