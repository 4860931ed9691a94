"""The BatchTopK repository (Bussmann, Leask, Nanda): `<name>_<step>/{sae.pt, config.json}`.

It saves no threshold, so a BatchTopK SAE is read as the TopK SAE that it is on one token at a time.
"""

from collections.abc import Iterator

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import JumpReLU, ReLU, TopK
from scalar_sae.saes.formats.files import Folder, Format, Found, build, check_size, needs
from scalar_sae.saes.norm import InputNorm

CONFIG, WEIGHTS = "config.json", "sae.pt"


def _here(folder: Folder) -> bool:
    return folder.has(CONFIG, WEIGHTS)


def _read(folder: Folder) -> Iterator[Found]:
    config, t = folder.json(CONFIG), folder.tensors(WEIGHTS)
    kind = str(needs(config, "sae_type"))
    b_enc = t["b_enc"]
    match kind:
        case "topk" | "batchtopk":
            rule = TopK(int(needs(config, "top_k")))
            b_enc = b_enc.new_zeros(len(b_enc))  # their forward pass does not read it
        case "vanilla":
            rule = ReLU()
        case "jumprelu":
            rule = JumpReLU(t["jumprelu.log_threshold"].exp())
        case _:
            raise UserError(f"sae_type {kind!r}: expected topk, batchtopk, vanilla or jumprelu")
    norm = InputNorm("layer_norm", 1e-5) if config.get("input_unit_norm") else None
    sae = build(t["W_enc"], b_enc, t["W_dec"], t["b_dec"], rule, b_pre=t["b_dec"], norm=norm)
    check_size(sae, config, "act_size", "dict_size")
    yield Found(sae, kind, str(config.get("hook_point") or ""), recipe=config)


FORMAT = Format("BatchTopK", f"{CONFIG}, {WEIGHTS}", _here, _read)
