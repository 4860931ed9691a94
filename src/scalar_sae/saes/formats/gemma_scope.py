"""Gemma Scope 1 (`params.npz`) and 2 (`params.safetensors`, mostly with `config.json`).

Gemma Scope 1 has no config. Its site is in the path, as in `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`.
"""

from collections.abc import Iterator

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import JumpReLU
from scalar_sae.saes.formats.fields import FLAG, TEXT, choice
from scalar_sae.saes.formats.files import Folder, Format, Found, build, check_size
from scalar_sae.saes.formats.tensors import Tensors
from scalar_sae.saes.origin import Origin
from scalar_sae.saes.reparam import with_input_scaled
from scalar_sae.saes.sae import SAE

FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"

HARMLESS = {
    "measured after training": "l0",
    "what the folder's name says": "type",
}
_SAE_FOLDER = r"width_[^/]+(?:/(?:average_l0_[^/]+|canonical))?"
_SITE = rf"gemma-scope-[^/]+-(res|mlp|att|transcoders)(?:-canonical)?/layer_(\d+)/{_SAE_FOLDER}"
_REPOSITORIES = {
    "res": ("resid_post.{}", ""),
    "mlp": ("mlp_out.{}", ""),
    "att": ("blocks.{}.attn.hook_z", ""),
    "transcoders": ("blocks.{}.ln2.hook_normalized", "mlp_out.{}"),
}


def _here(folder: Folder) -> bool:
    return folder.has(FIRST) or folder.has(SECOND)


def _read(folder: Folder) -> Iterator[Found]:
    yield _first(folder) if folder.has(FIRST) else _second(folder)


def _first(folder: Folder) -> Found:
    sae = _sae(folder.tensors(FIRST))
    if folder.ending(f"embedding/{_SAE_FOLDER}"):  # trained on rows of the embedding, which the model scales by sqrt(d)
        sae = with_input_scaled(sae, sae.d_model**-0.5, sae.d_model**-0.5)
        return Found(sae, "gemma-scope", "resid_pre.0")
    place = folder.ending(_SITE)
    if place is None:
        return Found(sae, "gemma-scope", "")
    reads, writes = (name.format(place[2]) for name in _REPOSITORIES[place[1]])
    return Found(sae, "gemma-scope", reads, writes)


def _second(folder: Folder) -> Found:
    t = folder.tensors(SECOND)
    if not folder.has(CONFIG):
        return Found(_sae(t), "gemma-scope-2", "")
    config = folder.config(CONFIG)
    config.harmless(HARMLESS)
    config.get("architecture", choice("jump_relu"))
    sae = _sae(t)
    config.same("affine_connection", FLAG, sae.W_skip is not None)
    check_size(sae, config, "d_in", "width")
    reads, writes = (config.get(f"hf_hook_point_{side}", TEXT) or "" for side in ("in", "out"))
    if sae.W_skip is not None and writes in ("", reads):
        raise UserError(f"hf_hook_point_out = {writes!r}: a transcoder, which has a skip connection, writes elsewhere")
    origin = Origin(model=config.get("model_name", TEXT))
    return Found(sae, "gemma-scope-2", reads, "" if writes == reads else writes, folder.json(CONFIG), origin)


def _sae(t: Tensors) -> SAE:
    W_enc, W_dec = (t[name if name in t else name.lower()] for name in ("W_enc", "W_dec"))
    skip = t.get("affine_skip_connection")
    return build(W_enc, t["b_enc"], W_dec, t["b_dec"], JumpReLU(t["threshold"]), W_skip=skip)


FORMAT = Format("Gemma Scope", f"{FIRST}, or {SECOND} with {CONFIG}", _here, (FIRST, SECOND), _read)
