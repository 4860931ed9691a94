"""EleutherAI sparsify: `<hookpoint>/{cfg.json, sae.safetensors}`. The folder is named after the module that it
reads.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import GroupMax, TopK
from scalar_sae.saes.formats.fields import FLAG, INTEGER, choice
from scalar_sae.saes.formats.files import Folder, Format, Found, build, save_folder
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"

HARMLESS = {
    "num_latents or the tensors say the same": "expansion_factor",
    "says that decoder rows have length 1, which they do or do not": "normalize_decoder",
    "what the loss weighed": "multi_topk",
}
_UNSAID = (
    "sparsify's files from November 2024 to February 2025 do not say whether they hold an SAE or a transcoder: "
    "read as an SAE"
)


def _here(folder: Folder) -> bool:
    return folder.has(CONFIG, WEIGHTS)


def _read(folder: Folder) -> Iterator[Found]:
    config, t = folder.config(CONFIG), folder.tensors(WEIGHTS)
    config.harmless(HARMLESS)
    config.absent("signed", "latents of either sign, selected by size, are not supported")
    k = config.need("k", INTEGER)
    newer = "activation" in config or "transcode" in config  # both were introduced in February 2025
    ask = config.need if newer else config.get
    kind = ask("activation", choice("topk", "groupmax")) or "topk"
    W_skip = t.matrix("W_skip") if "W_skip" in t else None
    transcoder = (ask if W_skip is None else config.need)("transcode", FLAG) or False
    config.same("skip_connection", FLAG, W_skip is not None, "which the tensors contradict: W_skip is there =")
    sae = build(
        t.matrix("encoder.weight").T,
        t["encoder.bias"],
        t["W_dec"],
        t["b_dec"],
        TopK(k) if kind == "topk" else GroupMax(k),
        b_pre=None if transcoder else t["b_dec"],
        W_skip=None if W_skip is None else W_skip.T,
    )
    if config.get("num_latents", INTEGER):  # 0: use expansion_factor
        config.same("num_latents", INTEGER, sae.d_sae)
    else:
        config.same("expansion_factor", INTEGER, sae.d_sae // sae.d_model, "num_latents nothing else, the tensors")
    config.same("d_in", INTEGER, sae.d_model)
    named = folder.ending(r"(?P<module>[^/]+)(?:/(?P<seed>seed\d+))?")
    assert named is not None  # every folder has a name
    group = "-".join(filter(None, [kind, "transcoder" if transcoder else "", named["seed"]]))
    module = named["module"]
    remarks = (_UNSAID,) if "skip_connection" in config and not newer else ()
    reads, writes = (f"{module}.input", module) if transcoder else (module, "")
    yield Found(sae, group, reads, writes, folder.json(CONFIG), remarks=remarks)


FORMAT = Format("sparsify", f"{CONFIG}, {WEIGHTS}", _here, (WEIGHTS,), _read)

_MODULES = {
    "h": {"resid_post": "", "attn_in": ".ln_1", "attn_out": ".attn", "mlp_in": ".ln_2", "mlp_out": ".mlp"},
    "layers": {"resid_post": "", "attn_in": ".input_layernorm", "attn_out": ".self_attn", "mlp_out": ".mlp"},
}


def hookpoint(site: Site, layers: str) -> str:
    """The module whose output is a site. `layers` is the name of the model's list of layers: `h` or `layers`.

    Raises:
        UserError: no module's output is this site.
    """
    if layers not in _MODULES:
        raise UserError(f"layers = {layers!r}: expected {' or '.join(_MODULES)}")
    if site.normalized:
        raise UserError(f"{site}: it reads before a norm's gain, which no module of such a model writes")
    if site.kind == "resid_pre" and site.layer:
        site = Site("resid_post", site.layer - 1)
    if site.kind not in _MODULES[layers]:
        raise UserError(f"{site}: sparsify reads what a module writes, and no module of such a model writes this")
    return f"{layers}.{site.layer}{_MODULES[layers][site.kind]}"


def save(sae: SAE, folder: Path) -> None:
    """Write an SAE in sparsify's format, for sparsify and delphi. The folder should be named after the hookpoint.

    Raises:
        UserError: sparsify cannot represent the SAE.
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
