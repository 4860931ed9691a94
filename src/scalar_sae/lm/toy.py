"""The paper's toy GPT as an ordinary `transformers` GPT-2, and the trained weights that ship with the package.

4 layers, 4 heads, d_model 64, context 128, 128 ASCII symbols, GELU-tanh, tied embeddings: 216,448 parameters
(SCALAR §3).
"""

from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel

WEIGHTS = Path(__file__).parent / "weights"


def shipped() -> list[str]:
    """The corpora for which trained weights come with the package."""
    return sorted(path.name for path in WEIGHTS.iterdir() if (path / "model.safetensors").is_file())


def toy_config() -> GPT2Config:
    """The configuration of the paper's toy model."""
    return GPT2Config(
        vocab_size=128,
        n_positions=128,
        n_embd=64,
        n_layer=4,
        n_head=4,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
        use_cache=False,
    )


def toy_gpt(attention: str = "sdpa") -> GPT2LMHeadModel:
    """A toy GPT with random weights from torch's global generator."""
    config = toy_config()
    config._attn_implementation = attention  # pyright: ignore[reportPrivateUsage]
    return GPT2LMHeadModel(config)
