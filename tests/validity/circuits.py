"""Models with a known circuit: every feature that the block computes with is known, and so is every edge between them.

Each token of the vocabulary has a sparse code z over the upstream features. Its activation at the upstream site is
z D_up. The block computes a sparse map M between the features, and its output is f(z) M D_down. The planted edges are
the entries of M that are not zero.

- `orthonormal`: an MLP whose features do not overlap, so true SAEs reproduce it exactly.
- `superposed`: more features than dimensions at both ends. The block is linear, a ReLU MLP, or an attention head.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize
from transformers import GPT2Config, GPT2LMHeadModel

from scalar_sae.lm.model import LanguageModel
from scalar_sae.saes.activation import JumpReLU, ReLU
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.texts import Texts
from scalar_sae.sites import Block
from scalar_sae.tokenizer import Ascii

Directions = Float[Tensor, "feature d_model"]
Kind = Literal["linear", "relu", "attention"]

DENSITIES = (1, 3, 10)
"""Planted edges into each downstream feature."""
D_MODEL = 128
N_FEATURES: dict[Kind, int] = {"linear": 132, "relu": 192, "attention": 132}
"""Features at each end. A linear block passes on what overlaps, and its noise is N_FEATURES / 127 - 1 of its signal."""
ACTIVE = 2
"""Features of a token; a source token of the attention head has one more."""
THRESHOLD = 0.4
"""Active features have values between 0.7 and 1.3. What overlaps adds to the others lies below this."""


@dataclass(frozen=True, eq=False)
class Planted:
    """A model with a known circuit between two sites."""

    lm: LanguageModel
    block: Block
    D_up: Directions
    D_down: Directions
    edges: Bool[Tensor, "n_up n_down"]
    """Where edges are planted."""
    texts: Texts
    sae_of: Callable[[Directions], SAE]
    """The SAE that reads a dictionary as its true features are read."""
    constant: Float[Tensor, " d_model"] | None = None
    """What all upstream activations have in common, beside the features. The true upstream SAE has it in its decoder
    bias."""

    def pair(self, D_up: Directions | None = None, D_down: Directions | None = None) -> Pair:
        """SAEs with these dictionaries at both ends; by default the true ones."""
        ends = (self.D_up if D_up is None else D_up, self.D_down if D_down is None else D_down)
        up, down = map(self.sae_of, ends)
        up = up if self.constant is None else replace(up, b_dec=self.constant)
        return Pair(self.lm, self.block, up, down)

    def with_constant_latent(self) -> Pair:
        """The true pair, but what is constant is a latent that is always active instead of the decoder's bias."""
        assert self.constant is not None
        up = self.sae_of(torch.cat([self.D_up, self.constant.unsqueeze(0)]))
        return replace(self.pair(), up=up)

    @property
    def n_edges(self) -> int:
        """How many edges are planted."""
        return int(self.edges.sum())


def orthonormal(per_latent: int, seed: int = 0) -> Planted:
    """An MLP with so many edges into each of 24 downstream features, from 32 upstream features, in 64 dimensions."""
    d_model, n_up, n_down, active, n_tokens = 64, 32, 24, 4, 96
    g = torch.Generator().manual_seed(seed)
    D_up, D_down = (basis(n, d_model, g) for n in (n_up, n_down))
    M = (torch.rand(n_up, n_down, generator=g).argsort(0) < per_latent) * (0.5 + torch.rand(n_up, n_down, generator=g))
    codes = (torch.rand(n_tokens, n_up, generator=g).argsort(1) < active) * (
        0.5 + torch.rand(n_tokens, n_up, generator=g)
    )
    hf = empty_model(n_tokens, d_model, n_up, "relu", seed)
    mlp = hf.transformer.h[0].mlp
    with torch.no_grad():
        hf.transformer.wte.weight.copy_(codes @ D_up)
        mlp.c_fc.weight.copy_(D_up.T)
        mlp.c_proj.weight.copy_(M @ D_down)
        hf.lm_head.weight.copy_(torch.randn(n_tokens, d_model, generator=g))
    g = torch.Generator().manual_seed(0)
    ranking, scoring = (torch.randint(0, n_tokens, (n, 32), generator=g) for n in (16, 20))
    block = Block.parse("ff_layer.0")
    return Planted(lm_of(hf), block, D_up, D_down, M > 0, Texts(ranking, scoring, {}), read_by_pseudoinverse)


def superposed(kind: Kind, per_latent: int, seed: int = 0, with_constant: bool = False) -> Planted:
    """A block with so many edges into and out of each feature, with more features than dimensions at both ends.

    With a constant, all upstream activations have a direction in common, which the ReLU MLP takes its thresholds from.

    - `linear`: an MLP without a nonlinearity reads each feature by its direction.
    - `relu`: the MLP's hidden units are the upstream features, with a threshold that removes what overlaps.
    - `attention`: the first feature marks source tokens. A head reads the marker in its keys, so all tokens attend to
      the source before them, and their downstream features are the source's features times M. The planted edges are
      those of M and the marker's edge into every downstream feature.
    """
    g = torch.Generator().manual_seed(seed)
    n = N_FEATURES[kind]
    constant = basis(1, D_MODEL, g)[0] if with_constant else torch.zeros(D_MODEL)
    D_up, D_down = frame(n, g, constant), frame(n, g, constant)
    targets = torch.randperm(n, generator=g)
    weights = torch.zeros(n, n)
    for step in range(per_latent):
        weights[torch.arange(n), targets.roll(7 * step)] = 1.0
    weights *= 0.75 + 0.5 * torch.rand(n, n, generator=g)
    active = torch.cat([torch.randperm(n, generator=g).view(-1, ACTIVE) for _ in range(4)])
    codes = torch.zeros(2 * n, n).scatter_(1, active, 0.75 + 0.5 * torch.rand(active.shape, generator=g))
    edges = weights > 0
    hf = empty_model(len(codes), D_MODEL, n, "relu" if kind == "relu" else "linear", seed)
    layer = hf.transformer.h[0]
    size = math.sqrt(ACTIVE + (kind == "attention"))
    with torch.no_grad():
        if kind == "attention":
            marker, n_sources = D_up[0], n // 2
            D_up[1:] = normalize(D_up[1:] - (D_up[1:] @ marker).unsqueeze(1) * marker, dim=1)
            weights[0], codes[:, 0], edges = 0.0, 0.0, weights > 0
            codes[:n_sources, 0], edges[0] = 1.0, True
            layer.attn.c_attn.weight[:, D_MODEL] = marker
            layer.attn.c_attn.bias[0] = 12 * math.sqrt(D_MODEL)  # the source gets 12 more than the others
            layer.attn.c_attn.weight[:, 2 * D_MODEL :] = torch.eye(D_MODEL)
            layer.attn.c_proj.weight.copy_(D_up.T @ weights @ D_down)
        layer.mlp.c_fc.weight.copy_(D_up.T)
        if kind == "relu":
            layer.mlp.c_fc.weight.sub_(THRESHOLD * constant.unsqueeze(1))
            layer.mlp.c_fc.bias.fill_(0.0 if with_constant else -THRESHOLD)
            weights /= 1 - THRESHOLD
        if kind != "attention":
            layer.mlp.c_proj.weight.copy_(weights @ D_down)
        hf.transformer.wte.weight.copy_(normalize(codes @ D_up, dim=1) + constant / size)
        for norm in (layer.ln_1, layer.ln_2):
            norm.weight.fill_(math.sqrt((size**2 + with_constant) / D_MODEL))
        hf.lm_head.weight.copy_(0.15 * torch.randn(len(codes), D_MODEL, generator=g))
    texts = source_texts(n, g) if kind == "attention" else all_tokens(len(codes), g)
    block = Block.parse("attn_in.0->attn_out.0" if kind == "attention" else "ff_layer.0")
    common = constant if with_constant else None
    return Planted(lm_of(hf), block, D_up, D_down, edges, texts, read_above_threshold, common)


def all_tokens(n_tokens: int, g: torch.Generator) -> Texts:
    """Every token twice to rank on and once to score on, in prompts of 12."""
    ranking, scoring = (
        torch.cat([torch.randperm(n_tokens, generator=g) for _ in range(times)]).view(-1, 12) for times in (2, 1)
    )
    return Texts(ranking, scoring, {})


def source_texts(n: int, g: torch.Generator) -> Texts:
    """Prompts of eight tokens of which the second is a source. Every source twice to rank on, once to score on."""
    texts: list[Tensor] = []
    for times in (2, 1):
        sources = torch.cat([torch.randperm(n // 2, generator=g) for _ in range(times)])
        tokens = torch.randint(n // 2, 2 * n, (len(sources), 8), generator=g)
        tokens[:, 1] = sources
        texts.append(tokens)
    ranking, scoring = texts
    return Texts(ranking, scoring, {})


def empty_model(n_tokens: int, d_model: int, d_mlp: int, act: str, seed: int) -> Any:
    """A GPT-2 with one layer of one head, whose attention, MLP and positions are zero."""
    torch.manual_seed(seed)
    hf = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=n_tokens, n_positions=32, n_embd=d_model, n_inner=d_mlp, n_layer=1, n_head=1,
            activation_function=act, use_cache=False, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
        )
    )  # fmt: skip
    layer: Any = hf.transformer.h[0]
    with torch.no_grad():
        for parameter in (*layer.attn.parameters(), *layer.mlp.parameters(), hf.transformer.wpe.weight):
            parameter.zero_()
    return hf


def lm_of(hf: Any) -> LanguageModel:
    """The model with a tokenizer without special tokens."""
    return LanguageModel(hf, "planted", Ascii())


def basis(n: int, d_model: int, g: torch.Generator) -> Directions:
    """Orthonormal directions without a mean over dimensions: a LayerNorm only scales what is made of them."""
    q = torch.linalg.qr(torch.cat([torch.ones(d_model, 1), torch.randn(d_model, n, generator=g)], 1)).Q
    return q[:, 1:].T.contiguous()


def frame(n: int, g: torch.Generator, constant: Float[Tensor, " d_model"]) -> Directions:
    """More unit directions than dimensions, moved apart by gradient descent. All are orthogonal to a direction, and
    none has a mean over dimensions."""
    x = torch.randn(n, D_MODEL, generator=g).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.03)

    def directions() -> Directions:
        centred = x - x.mean(1, keepdim=True)
        return normalize(centred - (centred @ constant).unsqueeze(1) * constant, dim=1)

    for _ in range(150):
        overlap = directions() @ directions().T - torch.eye(n)
        optimiser.zero_grad()
        overlap.pow(6).sum().backward()
        optimiser.step()
    return directions().detach()


def read_by_pseudoinverse(D: Directions) -> SAE:
    """A ReLU SAE with a dictionary, read with its pseudoinverse."""
    return SAE(torch.linalg.pinv(D), torch.zeros(len(D)), D, torch.zeros(D.shape[1]), ReLU())


def read_above_threshold(D: Directions) -> SAE:
    """A JumpReLU SAE that reads each direction by itself."""
    return SAE(
        D.T.contiguous(), torch.zeros(len(D)), D, torch.zeros(D.shape[1]), JumpReLU(torch.full((len(D),), THRESHOLD))
    )
