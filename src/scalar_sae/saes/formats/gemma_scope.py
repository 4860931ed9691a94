"""Gemma Scope 1 (`params.npz`) and 2 (`params.safetensors`, mostly with `config.json`).

The first has no config: the site stands in the path, as in `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`.
"""

import re
from collections.abc import Iterator

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import JumpReLU
from scalar_sae.saes.folds import with_input_scaled
from scalar_sae.saes.formats.files import Folder, Format, Found, Tensors, build, check_size
from scalar_sae.saes.sae import SAE

FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"

_REPOSITORIES = {
    "res": ("resid_post.{}", ""),
    "mlp": ("mlp_out.{}", ""),
    "att": ("blocks.{}.attn.hook_z", ""),
    "transcoders": ("mlp_in.{}", "mlp_out.{}"),
}


def _here(folder: Folder) -> bool:
    return folder.has(FIRST) or folder.has(SECOND)


def _read(folder: Folder) -> Iterator[Found]:
    yield _first(folder) if folder.has(FIRST) else _second(folder)


def _first(folder: Folder) -> Found:
    path = folder.path.resolve().as_posix()
    sae = _sae(folder.tensors(FIRST))
    if "/embedding/" in path:  # made for rows of the embedding, which the model multiplies by sqrt(d_model)
        sae = with_input_scaled(sae, sae.d_model**-0.5, sae.d_model**-0.5)
        return Found(sae, "gemma-scope", "resid_pre.0")
    repository = re.search(r"gemma-scope-[^/]*-(res|mlp|att|transcoders)", path)
    layer = re.search(r"/layer_(\d+)", path)
    if not repository or not layer:
        return Found(sae, "gemma-scope", "")
    reads, writes = (name.format(layer[1]) for name in _REPOSITORIES[repository[1]])
    return Found(sae, "gemma-scope", reads, writes)


def _second(folder: Folder) -> Found:
    config = folder.json(CONFIG) if folder.has(CONFIG) else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise UserError(f"architecture {config['architecture']!r}: expected jump_relu")
    sae = _sae(folder.tensors(SECOND))
    if config.get("affine_connection", sae.W_skip is not None) != (sae.W_skip is not None):
        raise UserError(f"affine_connection = {config['affine_connection']}, which the tensors contradict")
    check_size(sae, config, "d_in", "width")
    reads, writes = str(config.get("hf_hook_point_in") or ""), str(config.get("hf_hook_point_out") or "")
    return Found(sae, "gemma-scope-2", reads, "" if writes == reads else writes, config)


def _sae(t: Tensors) -> SAE:
    W_enc, W_dec = (t[name if name in t else name.lower()] for name in ("W_enc", "W_dec"))
    skip = t.get("affine_skip_connection")
    return build(W_enc, t["b_enc"], W_dec, t["b_dec"], JumpReLU(t["threshold"]), W_skip=skip)


FORMAT = Format("Gemma Scope", f"{FIRST}, or {SECOND} with {CONFIG}", _here, _read)
