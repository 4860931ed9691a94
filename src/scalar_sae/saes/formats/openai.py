"""OpenAI's GPT-2 SAEs (Gao et al., arXiv 2406.04093): `<location>/autoencoders/<layer>.pt`, one state dict a file."""

import re
from collections.abc import Iterator

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import ReLU, TopK
from scalar_sae.saes.formats.files import Folder, Format, Found, Tensors, build
from scalar_sae.saes.norm import InputNorm
from scalar_sae.saes.sae import SAE

_LOCATIONS = {
    "resid_delta_attn": "attn_out",
    "resid_post_attn": "resid_mid",
    "resid_delta_mlp": "mlp_out",
    "resid_post_mlp": "resid_post",
}
_LOCATION = re.compile("|".join([*_LOCATIONS, "mlp_post_act"]))


def _here(folder: Folder) -> bool:
    one_file = len(folder.names) == 1
    return bool(folder.matching("*.pt")) and (one_file or folder.path.name == "autoencoders")


def _read(folder: Folder) -> Iterator[Found]:
    location = _LOCATION.findall(str(folder.path))
    kind = _LOCATIONS.get(location[-1], location[-1]) if location else ""
    for name in folder.matching("*.pt"):
        layer = name.removesuffix(".pt")
        known = kind and layer.isdecimal()
        yield Found(_sae(folder.tensors(name)), "openai", f"{kind}.{layer}" if known else "")


def _sae(t: Tensors) -> SAE:
    W_enc = t["encoder.weight"].T
    W_dec = t["decoder.weight"].T if "decoder.weight" in t else W_enc.T
    kind = t.plain("activation")
    if kind == "TopK":
        state = t.plain("activation_state_dict") or {}
        if state.get("postact_fn", "ReLU") != "ReLU":
            raise UserError(f"activation TopK followed by {state['postact_fn']} is not supported")
        # the TopK checkpoints, and only they, normalise each token
        rule, norm = TopK(int(state["k"])), InputNorm("layer_norm", 1e-5)
    elif kind == "ReLU":
        if "k" in (t.plain("activation_state_dict") or {}):
            raise UserError("activation ReLU, and its activation_state_dict holds k: they contradict each other")
        rule, norm = ReLU(), None
    else:
        raise UserError(f"activation {kind!r}: expected ReLU or TopK")
    return build(W_enc, t["latent_bias"], W_dec, t["pre_bias"], rule, b_pre=t["pre_bias"], norm=norm)


FORMAT = Format("OpenAI", "<layer>.pt under <location>/autoencoders, or one .pt file", _here, _read)
