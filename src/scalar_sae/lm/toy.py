"""The paper's toy GPT as an ordinary `transformers` GPT-2, and the trained weights that ship with the package.

It has 4 layers, 4 heads, d_model 64, context 128, 128 ASCII symbols, GELU-tanh and tied embeddings: 216,448 parameters
(SCALAR §3).
"""

from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel

WEIGHTS = Path(__file__).parent / "weights"


def shipped() -> list[str]:
    """The corpora for which the package ships trained weights."""
    return sorted(path.name for path in WEIGHTS.iterdir() if (path / "model.safetensors").is_file())


def toy_config(
    d_vocab: int = 128, d_model: int = 64, n_layers: int = 4, n_heads: int = 4, context: int = 128
) -> GPT2Config:
    """The configuration of the paper's toy model, or of the same model in another size."""
    return GPT2Config(
        vocab_size=d_vocab,
        n_positions=context,
        n_embd=d_model,
        n_layer=n_layers,
        n_head=n_heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
        use_cache=False,
    )


def toy_gpt(attention: str = "sdpa", **sizes: int) -> GPT2LMHeadModel:
    """A toy GPT with random weights from torch's global generator."""
    config = toy_config(**sizes)
    config._attn_implementation = attention  # pyright: ignore[reportPrivateUsage]
    return GPT2LMHeadModel(config)
