"""One small random model a family, from the family's own configuration class."""

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from scalar_sae.lm.model import LanguageModel

SPREAD = 0.3  # weights large enough for blocks to matter
NONE = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
OLD = {
    "vocab_size": 64,
    "n_positions": 32,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "initializer_range": SPREAD,
    **NONE,
}
PLAIN = {
    "vocab_size": 64, "max_position_embeddings": 32, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "initializer_range": SPREAD, "intermediate_size": 32, **NONE,
}  # fmt: skip
GROUPED = PLAIN | {"num_key_value_heads": 2}
WINDOW = GROUPED | {"sliding_window": 4}
OPT = {key: value for key, value in PLAIN.items() if key not in ("initializer_range", "intermediate_size")}
GEMMA = WINDOW | {"head_dim": 8, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]}

FAMILIES: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(**OLD),
    "pythia": GPTNeoXConfig(**PLAIN, use_parallel_residual=True),
    "gpt-neox": GPTNeoXConfig(**PLAIN, use_parallel_residual=False),
    "llama": LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "mistral": MistralConfig(**WINDOW),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=8),
    "gemma2": Gemma2Config(**GEMMA, attn_logit_softcapping=1.0, final_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**GEMMA),
    "olmo2": Olmo2Config(**GROUPED),
    "gptj": GPTJConfig(**OLD, rotary_dim=4),
    "opt": OPTConfig(**OPT, ffn_dim=32, word_embed_proj_dim=8, init_std=SPREAD),
    "phi": PhiConfig(**PLAIN),
}
PARALLEL = ("pythia", "gptj", "phi")
POST_NORM = ("gemma2", "gemma3", "olmo2")
GATED = ("llama", "mistral", "qwen2", "qwen3")


def family_hf(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The `transformers` model of a family; norms and biases are random too."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(FAMILIES[name]).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return hf.to(dtype)


def family_lm(name: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """The same as a LanguageModel."""
    return LanguageModel(family_hf(name, dtype), name)
