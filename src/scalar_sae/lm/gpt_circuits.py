"""The SCALAR authors' GPT checkpoints (`model.json` and `model.safetensors`), read as `transformers` GPT-2 models.

Their linear layers are stored [out, in], whereas GPT-2 stores [in, out]. The tied embedding is stored once, as
`lm_head.weight`.
"""

import json
from pathlib import Path

from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from scalar_sae.errors import UserError

_LINEAR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds such a checkpoint."""
    return (folder / "model.json").is_file() and (folder / "model.safetensors").is_file()


def load(folder: Path) -> GPT2LMHeadModel:
    """Read a checkpoint.

    Raises:
        UserError: files are damaged, tensors are missing, or the model is not a GPT-2.
    """
    try:
        config = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        state = load_file(folder / "model.safetensors")
        hf = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config["vocab_size"],
                n_positions=config["block_size"],
                n_embd=config["n_embd"],
                n_layer=config["n_layer"],
                n_head=config["n_head"],
                activation_function="gelu_pytorch_tanh",
                bos_token_id=None,
                eos_token_id=None,
                use_cache=False,
            )
        )
    except Exception as error:
        raise UserError(f"{folder}: cannot be read as a gpt-circuits model ({error!r})") from error
    norm = config.get("norm_strategy", "LayerNorm")
    if norm != "LayerNorm":
        raise UserError(f"{folder}: norm_strategy {norm!r}; GPT-2 has LayerNorm, and only that is supported")
    state = {name: tensor.T if name.endswith(_LINEAR) else tensor for name, tensor in state.items()}
    state["transformer.wte.weight"] = state.get("transformer.wte.weight", state.get("lm_head.weight"))
    try:
        hf.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{folder}: model.safetensors does not fit model.json ({' '.join(str(error).split())})"
        ) from error
    hf.config.name_or_path = str(folder)  # it may also hold a tokenizer
    return hf
