"""circuit-tracer's sets of transcoders: `config.yaml` + `layer_<i>.safetensors`, encoders stored latent by latent."""

import re
from collections.abc import Iterator
from typing import Any

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import JumpReLU, ReLU, TopK
from scalar_sae.saes.formats.files import Folder, Format, Found, Tensors, build, needs
from scalar_sae.saes.sae import SAE

CONFIG = "config.yaml"


def _here(folder: Folder) -> bool:
    return folder.has(CONFIG) and "model_kind" in folder.json(CONFIG)


def _read(folder: Folder) -> Iterator[Found]:
    config = folder.json(CONFIG)
    if config["model_kind"] != "transcoder_set":
        raise UserError(
            f"model_kind {config['model_kind']!r}: only transcoder_set, where each writes one layer, is supported"
        )
    files = folder.matching("layer_*.safetensors")
    if not files:
        elsewhere = ", ".join(config.get("transcoders") or []) or "nowhere"
        raise UserError(f"{CONFIG} without layer_<i>.safetensors beside it; its transcoders lie in {elsewhere}")
    reads, writes = str(needs(config, "feature_input_hook")), str(needs(config, "feature_output_hook"))
    for name in files:
        layer = re.findall(r"\d+", name)[-1]
        sae = _sae(config, folder.tensors(name))
        yield Found(sae, "transcoder", f"blocks.{layer}.{reads}", f"blocks.{layer}.{writes}", config)


def _sae(config: dict[str, Any], t: Tensors) -> SAE:
    W_skip = t.get("W_skip")
    threshold = t.get("activation_function.threshold")
    if threshold is not None:
        rule = JumpReLU(threshold.flatten().expand(len(t["b_enc"])).clone())
    elif "k" in t or config.get("k"):
        rule = TopK(int(t["k"]) if "k" in t else int(config["k"]))
    elif "jump" in str(config.get("activation", "")):
        raise UserError(f"activation {config['activation']!r}, and no activation_function.threshold in the tensors")
    else:
        rule = ReLU()
    return build(t["W_enc"].T, t["b_enc"], t["W_dec"], t["b_dec"], rule, W_skip=None if W_skip is None else W_skip.T)


FORMAT = Format("circuit-tracer", f"{CONFIG}, layer_<i>.safetensors", _here, _read)
