"""One small random model a family, from the family's own configuration class."""

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OlmoConfig,
    OPTConfig,
    PersimmonConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from scalar_sae.lm.model import LanguageModel

SPREAD = 0.3  # weights large enough for blocks to matter
NONE: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
OLD: dict[str, Any] = {
    "vocab_size": 64,
    "n_positions": 32,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "initializer_range": SPREAD,
    **NONE,
}
PLAIN: dict[str, Any] = {
    "vocab_size": 64, "max_position_embeddings": 32, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "initializer_range": SPREAD, "intermediate_size": 32, **NONE,
}  # fmt: skip
GROUPED: dict[str, Any] = PLAIN | {"num_key_value_heads": 2}
WINDOW: dict[str, Any] = GROUPED | {"sliding_window": 4}
OPT: dict[str, Any] = {
    key: value for key, value in PLAIN.items() if key not in ("initializer_range", "intermediate_size")
}
GEMMA: dict[str, Any] = WINDOW | {
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}

FALCON: dict[str, Any] = {key: value for key, value in PLAIN.items() if key != "intermediate_size"}
BLOOM: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "n_layer": 2,
    "n_head": 4,
    "initializer_range": SPREAD,
    **NONE,
}
GRANITE: dict[str, Any] = {
    "residual_multiplier": 0.22,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.3,
    "logits_scaling": 3.0,
}

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
    "olmo": OlmoConfig(**GROUPED),
    "olmo2": Olmo2Config(**GROUPED),
    "glm4": Glm4Config(**GROUPED, head_dim=4),
    "granite": GraniteConfig(**GROUPED, **GRANITE),
    "cohere": CohereConfig(**GROUPED),
    "persimmon": PersimmonConfig(**PLAIN),
    "gptj": GPTJConfig(**OLD, rotary_dim=4),
    "opt": OPTConfig(**OPT, ffn_dim=32, word_embed_proj_dim=8, init_std=SPREAD),
    "phi": PhiConfig(**PLAIN),
    "bloom": BloomConfig(**BLOOM),
    "falcon": FalconConfig(**FALCON, alibi=True, parallel_attn=False, multi_query=False, bias=True),
    "falcon-parallel": FalconConfig(**FALCON, ffn_hidden_size=32),
    "falcon-two-norms": FalconConfig(**FALCON, ffn_hidden_size=32, new_decoder_architecture=True, num_kv_heads=2),
}
PARALLEL = ("pythia", "gptj", "phi", "cohere", "falcon-parallel", "falcon-two-norms")
POST_NORM = ("gemma2", "gemma3", "olmo2", "glm4")
RAW = (*POST_NORM, "granite")
"""What MLP and attention put out is normalised or scaled before it is added to the residual stream."""
GATED = ("llama", "mistral", "qwen2", "qwen3", "olmo", "granite")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def family_hf(name: str, dtype: torch.dtype = torch.float32, *, outlier: bool = False, **more: Any) -> Any:
    """The `transformers` model of a family; norms and biases are random too.

    Args:
        name: the family.
        dtype: precision of its weights.
        outlier: whether a dimension of the residual stream is much larger than the others, as in trained models.
        more: options of `from_config`.
    """
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(deepcopy(FAMILIES[name]), **more).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        if outlier:
            hf.get_input_embeddings().weight[:, 3] += 3.0
    return hf.to(dtype)


@cache
def family_lm(name: str, dtype: torch.dtype = torch.float32, *, outlier: bool = False) -> LanguageModel:
    """The same as a LanguageModel, shared by all tests: leave it as it is."""
    return LanguageModel(family_hf(name, dtype, outlier=outlier), name)


@cache
def upcast(name: str, dtype: torch.dtype, *, outlier: bool = False) -> LanguageModel:
    """A family's model in a precision with its weights turned into float32."""
    return LanguageModel(deepcopy(family_lm(name, dtype, outlier=outlier).hf).float(), name)
