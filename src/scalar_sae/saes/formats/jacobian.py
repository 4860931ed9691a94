"""jacobian-saes (Farnik et al., arXiv 2502.18147): a pair before and after an MLP in one SAELens-like folder."""

import re
from collections.abc import Iterator

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import TopK
from scalar_sae.saes.formats.files import Folder, Format, Found, build, check_size, needs
from scalar_sae.saes.formats.saelens import CONFIG, WEIGHTS, modern


def _here(folder: Folder) -> bool:
    return folder.has(CONFIG, WEIGHTS) and bool(folder.json(CONFIG).get("is_pair"))


def _read(folder: Folder) -> Iterator[Found]:
    config, t = modern(folder.json(CONFIG)), folder.tensors(WEIGHTS)
    if config["normalize_activations"] != "none":
        raise UserError(f"normalize_activations = {config['normalize_activations']!r} is not supported for a pair")
    layer = re.search(r"blocks\.(\d+)\.", str(needs(config, "hook_name")))
    if layer is None:
        raise UserError(f"hook_name {config['hook_name']!r} names no layer")
    for suffix, kind in (("", "mlp_in"), ("_out", "mlp_out")):
        b_dec = t[f"_b_dec{suffix}"]
        sae = build(
            t[f"_W_enc{suffix}"],
            t[f"_b_enc{suffix}"],
            t[f"_W_dec{suffix}"],
            b_dec,
            TopK(int(needs(config, "k"))),
            b_pre=b_dec if config["apply_b_dec_to_input"] else None,
        )
        check_size(sae, config, "d_in", "d_sae")
        yield Found(sae, "jacobian", f"{kind}.{layer[1]}", recipe=config)


FORMAT = Format("jacobian-saes", f"{CONFIG} with is_pair, {WEIGHTS}", _here, _read)
