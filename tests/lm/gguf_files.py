"""Small GGUF files, written with llama.cpp's own library as its converter writes them."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
START = "<|endoftext|>"


def small_llama() -> LlamaForCausalLM:
    """A random Llama with grouped queries; 32 numbers, a block of llama.cpp's types, fit into each row."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True,
        initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def digits_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs with every digit apart, as SmolLM2's tokenizer does."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    text = ["def f(x):\n    return x  +  12\n", "x =   3\n\n    y = 1999;  the cats", "12  12   123"] * 20
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=300, special_tokens=[START], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=START, eos_token=START)


def write_gguf(
    path: Path,
    hf: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    quantize: gguf.GGMLQuantizationType | None = None,
    architecture: str = "llama",
    fields: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    leave_out: tuple[str, ...] = (),
) -> Path:
    """Write a Llama; matrices are quantised if asked for, `fields` are added and `leave_out` tensors are not there."""
    config, writer = hf.config, gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    content = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = sorted(content["vocab"], key=content["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token == START else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in content["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, value in ({"tokenizer.ggml.pre": "smollm"} | (fields or {})).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
        add[type(value)](name, value)
    for name, weights in as_gguf(hf).items():
        if name in leave_out:
            continue
        if quantize and weights.ndim == 2:
            writer.add_tensor(name, gguf.quantize(weights, quantize), raw_dtype=quantize)
        else:
            writer.add_tensor(name, weights)
    for name, weights in (tensors or {}).items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_gguf(hf: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """A Llama's weights under llama.cpp's names and in its order of query and key rows."""
    config = hf.config
    found = {
        "token_embd.weight": hf.model.embed_tokens.weight,
        "output_norm.weight": hf.model.norm.weight,
    }
    for number, layer in enumerate(hf.model.layers):
        for name, weights in layer.named_parameters():
            ours = NAMES[name.removesuffix(".weight")]
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(ours)
            found[f"blk.{number}.{ours}.weight"] = weights if heads is None else interleaved(weights, heads)
    return {name: weights.detach().numpy().astype(np.float32) for name, weights in found.items()}


def interleaved(weights: Tensor, n_heads: int) -> Tensor:
    """From two halves a head, as `transformers` rotates, to pairs of neighbours, as llama.cpp does."""
    return weights.view(n_heads, 2, -1, weights.shape[1]).transpose(1, 2).reshape(weights.shape).contiguous()
