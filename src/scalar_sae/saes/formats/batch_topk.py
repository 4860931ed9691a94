"""The BatchTopK repository (Bussmann, Leask, Nanda): `<name>_<step>/{sae.pt, config.json}`.

It saves no threshold, so a BatchTopK SAE is read as a TopK SAE, which it is on a single token. All kinds except
JumpReLU subtract b_dec from the input. Its `main.py` loads the language model with TransformerLens' `from_pretrained`,
which removes the mean of everything that a model with LayerNorm writes to its residual stream.
"""

import re
from collections.abc import Iterator

from scalar_sae.saes.activation import JumpReLU, ReLU, TopK
from scalar_sae.saes.formats.fields import DTYPE, FLAG, INTEGER, TEXT, Fields, choice
from scalar_sae.saes.formats.files import Folder, Format, Found, build, check_size
from scalar_sae.saes.formats.saelens_config import loses_its_mean
from scalar_sae.saes.normalization import InputNorm
from scalar_sae.saes.origin import Origin
from scalar_sae.saes.reparam import with_input_centred

CONFIG, WEIGHTS = "config.json", "sae.pt"

HARMLESS = {
    "how it was trained": "seed batch_size lr num_tokens beta1 beta2 max_grad_norm model_batch_size "
    "num_batches_in_buffer device",
    "what the loss weighed": "l1_coeff aux_penalty top_k_aux n_batches_to_dead bandwidth",
    "logs and names": "wandb_project perf_log_freq checkpoint_freq name",
    "the site in other words": "site",
}
_CENTRED = (
    "its authors' code takes the mean out of what {model} writes to its stream; that is folded in: the SAE takes out a "
    "token's mean, and puts it back"
)
_PERHAPS_CENTRED = (
    "its authors' code takes the mean out of what a model with LayerNorm writes to its stream; whether {model} has "
    "LayerNorm is not known: read as it is"
)
_PER_TOKEN = "BatchTopK without a threshold: read as TopK, which keeps top_k latents on every token"


def _here(folder: Folder) -> bool:
    return folder.has(CONFIG, WEIGHTS)


def _read(folder: Folder) -> Iterator[Found]:
    config, t = folder.config(CONFIG), folder.tensors(WEIGHTS)
    config.harmless(HARMLESS)
    config.get("dtype", DTYPE)
    kind = config.need("sae_type", choice("topk", "batchtopk", "vanilla", "jumprelu"))
    b_enc, k = t["b_enc"], config.get("top_k", INTEGER)
    if "topk" in kind:
        rule = TopK(config.need("top_k", INTEGER) if k is None else k)
        b_enc = b_enc.new_zeros(b_enc.shape)  # their forward pass does not use it
    else:
        rule = ReLU() if kind == "vanilla" else JumpReLU(t["jumprelu.log_threshold"].exp())
    norm = InputNorm("layer_norm", 1e-5) if config.get("input_unit_norm", FLAG) else None
    b_pre = None if kind == "jumprelu" else t["b_dec"]
    sae = build(t["W_enc"], b_enc, t["W_dec"], t["b_dec"], rule, b_pre=b_pre, norm=norm)
    check_size(sae, config, "act_size", "dict_size")
    site, model, text = _site(config), config.get("model_name", TEXT), config.get("dataset_path", TEXT)
    origin = Origin(model=model, text=text, context=config.get("seq_len", INTEGER))
    remarks = (_PER_TOKEN,) if kind == "batchtopk" else ()
    centred = False if norm is not None else loses_its_mean(model, site)  # the norm itself subtracts the mean
    if centred:
        sae = with_input_centred(sae)
    if centred is not False:
        remarks += ((_CENTRED if centred else _PERHAPS_CENTRED).format(model=model or "the model"),)
    yield Found(sae, kind, site, "", folder.json(CONFIG), origin, remarks)


def _site(config: Fields) -> str:
    hook = config.get("hook_point", TEXT) or ""
    if layer := re.match(r"blocks\.(\d+)\.", hook):
        config.same("layer", INTEGER, int(layer[1]), f"its hook_point {hook} is in layer")
    else:
        config.get("layer", INTEGER)
    return hook


FORMAT = Format("BatchTopK", f"{CONFIG}, {WEIGHTS}", _here, (WEIGHTS,), _read)
