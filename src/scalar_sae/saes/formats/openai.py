"""OpenAI's GPT-2 SAEs (Gao et al., arXiv 2406.04093): `<location>/autoencoders/<layer>.pt`, one state dict per file."""

from collections.abc import Iterator

import torch

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import Activation, ReLU, TopK
from scalar_sae.saes.formats.fields import INTEGER, choice
from scalar_sae.saes.formats.files import Folder, Format, Found, build
from scalar_sae.saes.formats.tensors import Tensors
from scalar_sae.saes.normalization import InputNorm
from scalar_sae.saes.sae import SAE

HARMLESS = {
    "counted in training": "stats_last_nonzero latents_activation_frequency latents_mean_square",
}
_LOCATIONS = {
    "resid_delta_attn": "attn_out",
    "resid_post_attn": "resid_mid",
    "resid_delta_mlp": "mlp_out",
    "resid_post_mlp": "resid_post",
    "mlp_post_act": "mlp_post_act",  # there is no such site; it is named in the error
}
_FOLDER = rf"({'|'.join(_LOCATIONS)})(?:_v\d[^/]*)?/autoencoders"


def _here(folder: Folder) -> bool:
    one_file = len(folder.names) == 1
    return bool(folder.matching("*.pt")) and (one_file or folder.path.name == "autoencoders")


def _read(folder: Folder) -> Iterator[Found]:
    location = folder.ending(_FOLDER)
    for name in folder.matching("*.pt"):
        layer = name.removesuffix(".pt")
        site = f"{_LOCATIONS[location[1]]}.{layer}" if location and layer.isdecimal() else ""
        yield Found(_sae(folder.tensors(name)), "openai", site)


def _sae(t: Tensors) -> SAE:
    t.harmless(HARMLESS)
    W_enc, (rule, norm) = t.matrix("encoder.weight").T, _rule(t)
    tied = t.get("decoder.linear.weight")  # another name of the encoder's weight
    if tied is not None and not torch.equal(tied, W_enc.T):
        raise UserError("decoder.linear.weight is that of a tied decoder, and not encoder.weight")
    if norm is None and "decoder.weight" not in t:
        tied = W_enc.T  # the ReLU checkpoints may be tied, with one matrix stored
    W_dec = t.matrix("decoder.weight").T if tied is None else tied
    return build(W_enc, t["latent_bias"], W_dec, t["pre_bias"], rule, b_pre=t["pre_bias"], norm=norm)


def _rule(t: Tensors) -> tuple[Activation, InputNorm | None]:
    kind, state = t.text("activation"), t.fields("activation_state_dict")
    if kind == "TopK":  # only the TopK checkpoints normalise each token
        state.get("postact_fn", choice("ReLU"))
        return TopK(state.need("k", INTEGER)), InputNorm("layer_norm", 1e-5)
    if kind != "ReLU":
        raise UserError(f"activation {kind!r}: expected ReLU or TopK")
    if "k" in state:
        raise UserError("activation ReLU, and its activation_state_dict holds k: they contradict each other")
    return ReLU(), None


FORMAT = Format("OpenAI", "<layer>.pt under <location>/autoencoders, or one .pt file", _here, (), _read)
