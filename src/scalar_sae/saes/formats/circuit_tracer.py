"""circuit-tracer's sets of transcoders: `config.yaml` and `layer_<i>.safetensors`, with encoders stored latent by
latent.
"""

import re
from collections.abc import Iterator

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import Activation, JumpReLU, ReLU, TopK
from scalar_sae.saes.formats.fields import INTEGER, TEXT, TEXTS
from scalar_sae.saes.formats.files import Folder, Format, Found, build
from scalar_sae.saes.formats.tensors import Tensors
from scalar_sae.saes.origin import Origin
from scalar_sae.saes.sae import SAE

CONFIG = "config.yaml"

HARMLESS = {
    "where pages of features lie": "scan",
    "where the same files lie on the Hub": "repo_id subfolder revision",
}


def _here(folder: Folder) -> bool:
    return folder.has(CONFIG) and "model_kind" in folder.json(CONFIG)


def _read(folder: Folder) -> Iterator[Found]:
    config = folder.config(CONFIG)
    config.harmless(HARMLESS)
    kind = config.need("model_kind", TEXT)
    if kind != "transcoder_set":
        raise UserError(f"model_kind {kind!r}: only transcoder_set, where each writes one layer, is supported")
    remote = config.get("transcoders", TEXTS) or []
    files = folder.matching("layer_*.safetensors")
    if not files:
        elsewhere = ", ".join(remote) or "nowhere"
        raise UserError(f"{CONFIG} without layer_<i>.safetensors beside it; its transcoders lie in {elsewhere}")
    reads, writes = config.need("feature_input_hook", TEXT), config.need("feature_output_hook", TEXT)
    activation, k = config.get("activation", TEXT), config.get("k", INTEGER)
    origin = Origin(model=config.get("model_name", TEXT))
    for name in files:
        layer = re.fullmatch(r"layer_(\d+)\.safetensors", name)
        if layer is None:
            raise UserError(f"{name}: expected layer_<i>.safetensors")
        sae = _sae(folder.tensors(name), activation, k)
        block = f"blocks.{layer[1]}"
        yield Found(sae, "transcoder", f"{block}.{reads}", f"{block}.{writes}", folder.json(CONFIG), origin)


def _sae(t: Tensors, activation: str | None, k: int | None) -> SAE:
    W_skip, b_enc = t.matrix("W_skip") if "W_skip" in t else None, t["b_enc"]
    rule = _rule(t, activation, k, b_enc.shape[-1])
    return build(t.matrix("W_enc").T, b_enc, t["W_dec"], t["b_dec"], rule, W_skip=None if W_skip is None else W_skip.T)


def _rule(t: Tensors, activation: str | None, k: int | None, d_sae: int) -> Activation:
    """The activation rule that the tensors imply, which must agree with the config."""
    threshold, own_k = t.get("activation_function.threshold"), t.scalar("k", INTEGER)
    found: Activation = ReLU()
    if threshold is not None:
        threshold = threshold.flatten()
        found = JumpReLU(threshold.expand(d_sae).clone() if len(threshold) == 1 else threshold)
    elif own_k is not None or k is not None:
        found = TopK(own_k if own_k is not None else int(k or 0))
    if threshold is not None and own_k is not None:
        raise UserError("the tensors hold k and activation_function.threshold: which of them is meant?")
    if k is not None and found != TopK(k):
        raise UserError(f"the config says k = {k}, the tensors {found}: they contradict each other")
    named = (activation or found.kind).lower().replace("_", "").replace("-", "")
    if named != found.kind:
        raise UserError(
            f"activation {activation!r}, and {'no activation_function.threshold' if 'jump' in named else found} in the "
            "tensors: they contradict each other"
        )
    return found


FORMAT = Format("circuit-tracer", f"{CONFIG} with model_kind, layer_<i>.safetensors", _here, (), _read)
