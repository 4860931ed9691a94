"""TransformerLens' models: the package's own where it is installed, and a stand-in with its names and signatures."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.scoring.pair import Pair, read
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.sweep.edges import GlobalEdges
from scalar_sae.scoring.sweep.subcircuits import sweep
from scalar_sae.sites import Block, Site
from scalar_sae.tokenizer import byte_pairs
from tests.helpers import random_sae
from tests.lm.families import family_hf

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")

TOKENS = torch.arange(33).view(3, 11) * 5 % 64
SIZES = {"n_layers": 2, "d_model": 16, "n_ctx": 32, "d_head": 4, "n_heads": 4, "d_mlp": 32, "d_vocab": 64}
FORMS: dict[str, dict[str, Any]] = {
    "hooked": {},
    "hooked-parallel": {"parallel_attn_mlp": True},
    "hooked-gemma2": {"use_normalization_before_and_after": True, "output_logits_soft_cap": 2.0},
}
KINDS = ("resid_pre", "attn_out", "mlp_out", "resid_post")


class LayerNormPre(nn.Module):
    """The folded norm: without weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:])


class Attention(nn.Module):
    def __init__(self, cfg: SimpleNamespace) -> None:
        super().__init__()
        shape = (cfg.n_heads, cfg.d_model, cfg.d_head)
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(0.3 * torch.randn(shape)) for _ in range(3))
        self.W_O = nn.Parameter(0.3 * torch.randn(cfg.n_heads, cfg.d_head, cfg.d_model))

    def forward(
        self,
        query_input: Tensor,
        key_input: Tensor,
        value_input: Tensor,
        past_kv_cache_entry: None = None,
        additive_attention_mask: None = None,
        attention_mask: None = None,
    ) -> Tensor:
        given = ((query_input, self.W_Q), (key_input, self.W_K), (value_input, self.W_V))
        q, k, v = (torch.einsum("btd,hde->bhte", x, weight) for x, weight in given)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.einsum("bhte,hed->btd", z, self.W_O)


class Mlp(nn.Module):
    def __init__(self, cfg: SimpleNamespace) -> None:
        super().__init__()
        self.W_in = nn.Parameter(0.3 * torch.randn(cfg.d_model, cfg.d_mlp))
        self.W_out = nn.Parameter(0.3 * torch.randn(cfg.d_mlp, cfg.d_model))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x @ self.W_in) @ self.W_out


class Layer(nn.Module):
    def __init__(self, cfg: SimpleNamespace) -> None:
        super().__init__()
        self.cfg = cfg
        self.ln1, self.attn, self.ln2, self.mlp = LayerNormPre(), Attention(cfg), LayerNormPre(), Mlp(cfg)
        if cfg.use_normalization_before_and_after:
            self.ln1_post, self.ln2_post = nn.LayerNorm(cfg.d_model), nn.LayerNorm(cfg.d_model)
        self.seen: dict[str, Tensor] = {}

    def forward(self, resid_pre: Tensor, shortformer_pos_embed: None, attention_mask: None) -> Tensor:
        x = self.ln1(resid_pre)
        attn_out = self.attn(
            query_input=x, key_input=x, value_input=x, past_kv_cache_entry=None, attention_mask=attention_mask
        )
        post = self.cfg.use_normalization_before_and_after
        attn_out = self.ln1_post(attn_out) if post else attn_out
        mlp_out = self.mlp(self.ln2(resid_pre if self.cfg.parallel_attn_mlp else resid_pre + attn_out))
        mlp_out = self.ln2_post(mlp_out) if post else mlp_out
        resid_post = resid_pre + attn_out + mlp_out
        self.seen = {"resid_pre": resid_pre, "attn_out": attn_out, "mlp_out": mlp_out, "resid_post": resid_post}
        return resid_post


class StandIn(nn.Module):
    """What is used here of a HookedTransformer 2 and 3."""

    def __init__(self, **form: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        flags = dict.fromkeys(("parallel_attn_mlp", "use_attn_in", "use_split_qkv_input"), False)
        flags |= {"use_normalization_before_and_after": False, "output_logits_soft_cap": -1.0, "model_name": "custom"}
        self.cfg = SimpleNamespace(**SIZES | flags | form)
        self.tokenizer: Any = None
        self.embed = nn.Embedding(self.cfg.d_vocab, self.cfg.d_model)
        self.pos_embed = nn.Parameter(torch.randn(self.cfg.n_ctx, self.cfg.d_model))
        self.blocks = nn.ModuleList(Layer(self.cfg) for _ in range(self.cfg.n_layers))
        self.ln_final = LayerNormPre()
        self.unembed = nn.Linear(self.cfg.d_model, self.cfg.d_vocab)

    def forward(self, input: Tensor, return_type: str = "logits", padding_side: str = "left") -> Tensor:
        assert (return_type, padding_side) == ("logits", "right")
        x = self.embed(input) + self.pos_embed[: input.shape[1]]
        for block in self.blocks:
            x = block(x, shortformer_pos_embed=None, attention_mask=None)
        logits, cap = self.unembed(self.ln_final(x)), self.cfg.output_logits_soft_cap
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    def own(self) -> tuple[Tensor, dict[Site, Tensor]]:
        """Logits and what stands at the sites, from its own forward."""
        logits = self(TOKENS, padding_side="right")
        return logits, {
            Site(kind, layer): x for layer, block in enumerate(self.blocks) for kind, x in block.seen.items()
        }


def stand_in(form: str) -> tuple[Any, Tensor, dict[Site, Tensor]]:
    model = StandIn(**FORMS[form])
    return model, *model.own()


def package(form: str) -> tuple[Any, Tensor, dict[Site, Tensor]]:
    """TransformerLens' own, with rotary positions, grouped queries and RMSNorm where there are post-norms."""
    module = pytest.importorskip("transformer_lens.HookedTransformer", reason="TransformerLens below 4 not installed")
    rotary = {"positional_embedding_type": "rotary", "rotary_dim": 4}
    more = rotary | {"normalization_type": "RMS", "gated_mlp": True, "n_key_value_heads": 2}
    model = module.HookedTransformer(
        module.HookedTransformerConfig(
            **SIZES, act_fn="gelu_new", initializer_range=0.3, device="cpu",
            **FORMS[form] | {"hooked": {}, "hooked-parallel": rotary, "hooked-gemma2": more}[form],
        )
    )  # fmt: skip
    if form == "hooked":
        model.process_weights_()
    logits, cache = model.run_with_cache(TOKENS)
    return model, logits, {
        Site(kind, layer): cache[f"blocks.{layer}.hook_{kind}"] for layer in range(2) for kind in KINDS
    }  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", [stand_in, package])
def test_a_hooked_transformers_own_forward_is_used(build: Any, form: str):
    model, logits, seen = build(form)
    lm = LanguageModel.load(model)
    assert (lm.name, lm.d_model, lm.n_layers, lm.d_vocab, lm.context) == ("custom", 16, 2, 64, 32)
    assert torch.equal(lm.logits(TOKENS), logits)
    close = {"atol": 1e-5, "rtol": 0} if "parallel" in form else {"atol": 0, "rtol": 0}  # added in another order
    states = lm.states(TOKENS, list(seen))
    for site, x in seen.items():
        torch.testing.assert_close(states[site].x, x, **close, msg=str(site))
        torch.testing.assert_close(lm.logits_from(site, states[site].x, states[site].skip), logits, **close)
    for start, end in pairwise(site for site in states if site.on_residual_stream):
        torch.testing.assert_close(lm.run(start, end, states[start].x), states[end].x, **close)
    short = TOKENS[:, :4]  # attention's other arguments are another prompt length's
    torch.testing.assert_close(lm.logits(short), logits[:, :4], atol=1e-5, rtol=1e-5)
    x = lm.activations(short, [Site("resid_post", 0)])[Site("resid_post", 0)]
    torch.testing.assert_close(x, seen[Site("resid_post", 0)][:, :4], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", [stand_in, package])
def test_scalars_identities_hold_on_it(build: Any, form: str):
    model, *_ = build(form)
    block = Block.parse("ff_layer.1" if "parallel" in form else "ff_block.1")
    pair = Pair(LanguageModel.load(model), block, random_sae(16, 24, 4, 1), random_sae(16, 20, 4, 2))
    prompt = next(read(pair, TOKENS[:1]))
    keep_index = keep_indices(torch.rand(24, 20), np.array([0, 480]), 0)
    none, everything = (sub.acts for sub in sweep(pair, prompt, GlobalEdges(keep_index), 2))
    full = pair.down.encode(pair.compute(pair.up.decode(prompt.z).unsqueeze(0), prompt.up_skip))[0]
    ablated = pair.compute(pair.up.b_dec.expand(1, 11, -1), prompt.up_skip)
    torch.testing.assert_close(none, pair.down.encode(ablated)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(everything, full, atol=1e-5, rtol=1e-5)


def test_what_a_hooked_transformer_cannot_do_is_said(tmp_path: Path):
    with pytest.raises(UserError, match=r"set_use_split_qkv_input\(False\)"):
        LanguageModel.load(StandIn(use_split_qkv_input=True))
    model = StandIn()
    lm = LanguageModel.load(model)
    with pytest.raises(UserError, match="custom: no tokenizer"):
        lm.tokenizer  # noqa: B018
    with pytest.raises(UserError, match="cannot be written"):
        lm.save(tmp_path)
    assert not torch.equal(lm.shuffled(0).logits(TOKENS), lm.logits(TOKENS))
    model.tokenizer = byte_pairs(["the quick brown fox jumps over the lazy dog"] * 3, 270).inner
    assert LanguageModel.load(model).tokenizer.decode([1, 2]) == model.tokenizer.decode([1, 2])
    del model.blocks[0].ln2
    with pytest.raises(UserError, match=r"StandIn is not an architecture .* no blocks.0.ln2\).*ten lines"):
        LanguageModel.load(model)


def test_of_a_bridge_the_transformers_model_is_taken():
    """A TransformerBridge computes its logits with the model that it holds."""
    bridge = nn.Module()
    bridge.original_model = family_hf("llama")
    bridge.tokenizer = byte_pairs(["the quick brown fox"], 260).inner
    lm = LanguageModel.load(bridge)
    assert lm.hf is bridge.original_model
    assert torch.equal(lm.logits(TOKENS), bridge.original_model(TOKENS).logits)
    assert lm.tokenizer.decode([5, 6]) == bridge.tokenizer.decode([5, 6])
