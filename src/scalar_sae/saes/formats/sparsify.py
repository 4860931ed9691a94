"""EleutherAI sparsify: `<hookpoint>/{cfg.json, sae.safetensors}`, the folder's name being the module it reads."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import GroupMax, TopK
from scalar_sae.saes.formats.files import Folder, Format, Found, build, check_size, needs, save_folder
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def _here(folder: Folder) -> bool:
    return folder.has(CONFIG, WEIGHTS)


def _read(folder: Folder) -> Iterator[Found]:
    config, tensors = folder.json(CONFIG), folder.tensors(WEIGHTS)
    if config.get("signed"):
        raise UserError("signed = true: latents of either sign, selected by size, are not supported")
    k = int(needs(config, "k"))
    kind = config.get("activation") or "topk"
    if kind not in ("topk", "groupmax"):
        raise UserError(f"activation {kind!r}: expected topk or groupmax")
    transcoder = bool(config.get("transcode"))
    W_skip = tensors.get("W_skip")
    if config.get("skip_connection") is not None and bool(config["skip_connection"]) != (W_skip is not None):
        raise UserError(f"skip_connection = {config['skip_connection']}, which the tensors contradict")
    sae = build(
        tensors["encoder.weight"].T,
        tensors["encoder.bias"],
        tensors["W_dec"],
        tensors["b_dec"],
        TopK(k) if kind == "topk" else GroupMax(k),
        b_pre=None if transcoder else tensors["b_dec"],
        W_skip=None if W_skip is None else W_skip.T,
    )
    check_size(sae, config, "d_in", "num_latents")
    seed = re.fullmatch(r"seed\d+", folder.path.name)
    module = folder.path.parent.name if seed else folder.path.name
    group = "-".join([kind, *(["transcoder"] if transcoder else []), *([seed[0]] if seed else [])])
    yield Found(sae, group, f"{module}.input" if transcoder else module, module if transcoder else "", config)


FORMAT = Format("sparsify", f"{CONFIG}, {WEIGHTS}", _here, _read)

_MODULES = {
    "h": {"resid_post": "", "attn_in": ".ln_1", "attn_out": ".attn", "mlp_in": ".ln_2", "mlp_out": ".mlp"},
    "layers": {"resid_post": "", "attn_in": ".input_layernorm", "attn_out": ".self_attn", "mlp_out": ".mlp"},
}


def hookpoint(site: Site, layers: str) -> str:
    """The module whose output is a site, where a model's layers lie under the name `layers`: `h` or `layers`.

    Raises:
        UserError: no module's output is this site.
    """
    if layers not in _MODULES:
        raise UserError(f"layers = {layers!r}: expected {' or '.join(_MODULES)}")
    if site.kind == "resid_pre" and site.layer:
        site = Site("resid_post", site.layer - 1)
    if site.kind not in _MODULES[layers]:
        raise UserError(f"{site}: sparsify reads what a module writes, and no module of such a model writes this")
    return f"{layers}.{site.layer}{_MODULES[layers][site.kind]}"


def save(sae: SAE, folder: Path) -> None:
    """Write an SAE as sparsify does, for sparsify and delphi; the folder should be named after the hookpoint.

    Raises:
        UserError: sparsify has no such SAE.
    """
    rule = sae.activation
    if not isinstance(rule, TopK | GroupMax):
        raise UserError(f"{folder.name}: sparsify keeps TopK and GroupMax SAEs, this one is {rule}")
    if sae.norm is not None or sae.d_out != sae.d_model:
        raise UserError(f"{folder.name}: sparsify has no run-time normalisation and reads and writes one width")
    transcoder = sae.writes is not None
    config: dict[str, Any] = {
        "activation": rule.kind,
        "expansion_factor": max(1, sae.d_sae // sae.d_model),
        "normalize_decoder": False,
        "num_latents": sae.d_sae,
        "k": rule.k,
        "multi_topk": False,
        "skip_connection": sae.W_skip is not None,
        "transcode": transcoder,
        "d_in": sae.d_model,
    }
    tensors = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": sae.b_enc if transcoder else sae.b_enc + sae.b_dec @ sae.W_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip.T
    save_folder(folder, config, tensors, (CONFIG, WEIGHTS))
