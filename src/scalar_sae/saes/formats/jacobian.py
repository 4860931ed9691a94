"""jacobian-saes (Farnik et al., arXiv 2502.18147): a pair before and after an MLP, in one folder similar to
SAELens'.
"""

import re
from collections.abc import Iterator

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import TopK
from scalar_sae.saes.formats import saelens_config
from scalar_sae.saes.formats.fields import FLAG
from scalar_sae.saes.formats.files import Folder, Format, Found, build, check_size
from scalar_sae.saes.formats.saelens import CONFIG, WEIGHTS, is_pair, whole_k
from scalar_sae.saes.reparam import with_input_centred

HARMLESS = {
    "what the loss weighed": "sparsity_metric jacobian_coefficient jacobian_warm_up_steps mlp_out_mse_coefficient "
    "normalize_jac_loss norm_jac_across_batch",
}


def _here(folder: Folder) -> bool:
    return folder.has(CONFIG, WEIGHTS) and is_pair(folder.json(CONFIG))


def _read(folder: Folder) -> Iterator[Found]:
    fields = folder.config(CONFIG)
    fields.one(("is_pair", "use_jacobian_loss"), FLAG)
    fields.harmless(HARMLESS)
    config, t = saelens_config.read(fields), folder.tensors(WEIGHTS)
    random = fields.get("randomize_llm_weights", FLAG)
    remarks = (*config.remarks, *(["made for a language model with random weights"] if random else []))
    if config.norm != "none":
        raise UserError(f"normalize_activations = {config.norm!r} is not supported for a pair")
    if config.architecture != "topk" or config.by_decoder_norm or config.finetuned:
        raise UserError(
            f"architecture {config.architecture!r}, activation {config.activation!r}: only plain TopK pairs are "
            "supported, without finetuning_scaling_factor and rescale_acts_by_decoder_norm"
        )
    layer = re.fullmatch(r"blocks\.(\d+)\.ln2\.hook_normalized", config.reads)
    if layer is None:
        raise UserError(f"hook_name {config.reads!r} is not the input of an MLP")
    found: list[Found] = []
    for suffix, site in (("", config.reads), ("_out", f"blocks.{layer[1]}.hook_mlp_out")):
        b_dec = t[f"_b_dec{suffix}"]
        sae = build(
            t[f"_W_enc{suffix}"],
            t[f"_b_enc{suffix}"],
            t[f"_W_dec{suffix}"],
            b_dec,
            TopK(whole_k(config)),
            b_pre=b_dec if config.b_dec_from_input else None,
        )
        check_size(sae, fields, "d_in", "d_sae")
        if config.centred_at(site):
            sae = with_input_centred(sae)
        found.append(Found(sae, "jacobian", site, "", folder.json(CONFIG), config.origin, remarks))
    yield from found


FORMAT = Format("jacobian-saes", f"{CONFIG} with is_pair, {WEIGHTS}", _here, (WEIGHTS,), _read)
