"""Blocks with a known circuit: an MLP that computes a sparse map between the latents of two true dictionaries.

Token t has a sparse code z_t. Its embedding is z_t D_up. The MLP's hidden units read the latents of D_up, and its
output is relu(z) M D_down with a sparse matrix M. Attention adds nothing. The features that the block computes with are
therefore known, and so are the edges between them: the entries of M that are not zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import GPT2Config, GPT2LMHeadModel

from scalar_sae.lm.model import LanguageModel
from scalar_sae.saes.activation import ReLU
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.texts import Texts
from scalar_sae.sites import Block
from scalar_sae.tokenizer import Ascii

D_MODEL, N_UP, N_DOWN, ACTIVE, N_TOKENS = 64, 32, 24, 4, 96
BLOCK = Block.parse("ff_layer.0")


@dataclass(frozen=True)
class Planted:
    """A model with a known circuit in its MLP."""

    lm: LanguageModel
    D_up: Tensor
    """[n_up, d_model], orthonormal."""
    D_down: Tensor
    """[n_down, d_model], orthonormal."""
    M: Tensor
    """[n_up, n_down]: the planted edges."""

    def pair(self, D_up: Tensor | None = None, D_down: Tensor | None = None) -> Pair:
        """SAEs with these dictionaries, each read with its pseudoinverse, at both ends; by default the true ones."""
        ends = (self.D_up if D_up is None else D_up, self.D_down if D_down is None else D_down)
        return Pair(self.lm, BLOCK, *map(sae_of, ends))

    @property
    def n_edges(self) -> int:
        """How many edges are planted."""
        return int((self.M > 0).sum())


def planted(per_latent: int, seed: int = 0) -> Planted:
    """A model with so many edges into every downstream latent."""
    g = torch.Generator().manual_seed(seed)
    D_up, D_down = (orthonormal(n, g) for n in (N_UP, N_DOWN))
    inputs = torch.rand(N_UP, N_DOWN, generator=g).argsort(0) < per_latent
    M = inputs * (0.5 + torch.rand(N_UP, N_DOWN, generator=g))
    codes = (torch.rand(N_TOKENS, N_UP, generator=g).argsort(1) < ACTIVE) * (
        0.5 + torch.rand(N_TOKENS, N_UP, generator=g)
    )
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=N_TOKENS, n_positions=32, n_embd=D_MODEL, n_inner=N_UP, n_layer=1, n_head=1,
        activation_function="relu", use_cache=False, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config)
    layer = hf.transformer.h[0]
    with torch.no_grad():
        for parameter in (*layer.attn.parameters(), *layer.mlp.parameters(), hf.transformer.wpe.weight):
            parameter.zero_()
        hf.transformer.wte.weight.copy_(codes @ D_up)
        layer.mlp.c_fc.weight.copy_(D_up.T)
        layer.mlp.c_proj.weight.copy_(M @ D_down)
        hf.lm_head.weight.copy_(torch.randn(N_TOKENS, D_MODEL, generator=g))
    return Planted(LanguageModel(hf, "planted", Ascii()), D_up, D_down, M)


def orthonormal(n: int, g: torch.Generator) -> Tensor:
    """Orthonormal directions without a mean over dimensions: a LayerNorm only scales what is made of them."""
    basis = torch.linalg.qr(torch.cat([torch.ones(D_MODEL, 1), torch.randn(D_MODEL, n, generator=g)], 1)).Q
    return basis[:, 1:].T.contiguous()


def sae_of(D: Tensor) -> SAE:
    """A ReLU SAE with a dictionary, read with its pseudoinverse."""
    return SAE(torch.linalg.pinv(D), torch.zeros(len(D)), D, torch.zeros(D_MODEL), ReLU())


def rotated(D: Tensor, angle: float) -> Tensor:
    """Neighbouring latents mixed in pairs."""
    a, b = D[0::2], D[1::2]
    sin, cos = torch.tensor(angle).sin(), torch.tensor(angle).cos()
    return torch.stack([cos * a + sin * b, cos * b - sin * a], 1).flatten(0, 1)


def merged(D: Tensor) -> Tensor:
    """Neighbouring latents made one."""
    return normalize(D[0::2] + D[1::2], dim=1)


def dense(D: Tensor, seed: int = 0) -> Tensor:
    """The same space with a random basis."""
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(len(D), len(D), generator=g)).Q @ D


def random(n: int, seed: int) -> Tensor:
    """Directions that have nothing to do with the block."""
    return normalize(torch.randn(n, D_MODEL, generator=torch.Generator().manual_seed(seed)), dim=1)


def texts(seed: int = 0) -> Texts:
    """Random tokens to rank and to score on."""
    g = torch.Generator().manual_seed(seed)
    ranking, scoring = (torch.randint(0, N_TOKENS, (n, 32), generator=g) for n in (16, 20))
    return Texts(ranking, scoring, {})


def config(ranking: str, edges: str = "full") -> ScoreConfig:
    """How planted circuits are scored."""
    return ScoreConfig(ranking=ranking, rank_prompts=16, prompts=20, context=32, edges=edges)
