"""Small models and SAEs for the tests."""

import json
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from scalar_sae.lm.feedforward import FeedForward
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.toy import toy_gpt
from scalar_sae.loopback import LoopbackServer
from scalar_sae.saes.activation import GroupMax, JumpReLU, ReLU, TopK
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring.pair import Pair
from scalar_sae.sealed import digest_of_file
from scalar_sae.sites import KINDS, Block
from scalar_sae.tokenizer import Ascii

PLAIN_KINDS = tuple(kind for kind in KINDS if not kind.endswith("_raw"))
"""The places in a layer that has no norm behind attention and MLP."""

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = Path(__file__).parent / "golden"


def shared(*parts: str) -> Path:
    """A file of the shared folder; the test is skipped where that folder is missing; in .ci/run it fails."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        if os.environ.get("NOTHING_MAY_BE_MISSING"):
            pytest.fail(f"{path} is missing")
        pytest.skip(f"needs {path.name} of the shared folder beside the checkout")
    return path


def tiny_lm(
    seed: int = 0, n_layers: int = 2, d_model: int = 16, spread: float = 0.3, d_vocab: int = 32, context: int = 16
) -> LanguageModel:
    """A random GPT-2 whose weights are large enough for blocks to matter."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=d_vocab, n_positions=context, n_embd=d_model, n_layer=n_layers, n_head=2,
        activation_function="gelu_pytorch_tanh", initializer_range=spread, use_cache=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LanguageModel(GPT2LMHeadModel(config), "tiny", Ascii())


class Shape(NamedTuple):
    """A language model as far as most SAE methods see it."""

    d_model: int
    n_layers: int

    def feed_forward(self, layer: int) -> FeedForward:
        """The tiny model's."""
        return tiny_lm(n_layers=self.n_layers, d_model=self.d_model).feed_forward(layer)


def random_sae(d_model: int, d_sae: int, k: int, seed: int, kind: str = "topk") -> SAE:
    """An SAE with random weights and biases of every sign."""
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(d_sae, d_model, generator=g) / d_model**0.5
    b_enc, b_dec = (0.3 * torch.randn(n, generator=g) for n in (d_sae, d_model))
    W_enc = W_dec.T + 0.1 * torch.randn(d_model, d_sae, generator=g)
    threshold = torch.rand(d_sae, generator=g) - 0.2
    rules = {"topk": TopK(k), "relu": ReLU(), "jumprelu": JumpReLU(threshold), "groupmax": GroupMax(k)}
    return SAE(W_enc, b_enc, W_dec, b_dec, rules[kind])


def seal_again(folder: Path) -> None:
    """Write the digest of an SAE's weights, which a test changed, into its card."""
    card = folder / "sae.json"
    digest = digest_of_file(folder / "sae.safetensors")
    card.write_text(json.dumps({**json.loads(card.read_text()), "sha256": digest}))


def tiny_pair(
    block: str,
    n_up: int = 24,
    n_down: int = 20,
    k: int = 4,
    seed: int = 0,
    kind: str = "topk",
    ablation_value: bool = False,
) -> Pair:
    """A pair of random SAEs on a tiny random model; `ablation_value`: ablated latents are not set to zero."""
    ends = random_sae(16, n_up, k, seed + 1, kind), random_sae(16, n_down, k, seed + 2, kind)
    value = torch.rand(n_up, generator=torch.Generator().manual_seed(seed)) if ablation_value else None
    return Pair(tiny_lm(seed), Block.parse(block), *ends, ablation_value=value)


def moved(pair: Pair, device: torch.device) -> Pair:
    """A pair on a device."""
    ablation_value = None if pair.ablation_value is None else pair.ablation_value.to(device)
    return replace(
        pair,
        lm=deepcopy(pair.lm).to(device),
        up=pair.up.to(device),
        down=pair.down.to(device),
        ablation_value=ablation_value,
    )


def golden_lm() -> LanguageModel:
    """The toy model that the golden values were computed on (linear weights transposed to GPT-2's Conv1D)."""
    state = load_file(GOLDEN / "gpt.safetensors")
    state = {key: value.T if key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else value
             for key, value in state.items()}  # fmt: skip
    state["transformer.wte.weight"] = state["lm_head.weight"]
    hf = toy_gpt()
    hf.load_state_dict(state)
    return LanguageModel(hf, "golden")


def golden_sae(variant: str, key: str, rows: int | None = None, shared_key: str = "") -> SAE:
    """One of the authors' SAEs: `key` such as 0_residmid; a staircase step reads the first `rows` shared rows.

    What tests/golden does not hold is read from the shared folder.
    """
    name = f"sae_{variant}.safetensors"
    t = load_file(GOLDEN / name) if (GOLDEN / name).exists() else {}
    if f"{key}.b_enc" not in t:
        t = load_file(shared("golden", name))
    W_enc, W_dec = (t[f"{shared_key or key}.{name}"] for name in ("W_enc", "W_dec"))
    W_enc, b_dec = W_enc[:, :rows], t[f"{key}.b_dec"]
    return SAE(W_enc, t[f"{key}.b_enc"] - b_dec @ W_enc, W_dec[:rows], b_dec, TopK(10))


@contextmanager
def running(server: LoopbackServer) -> Generator[LoopbackServer]:
    """A server that answers within the block."""
    thread = threading.Thread(target=server.run, daemon=True)
    with server:
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join()
