"""Which architecture a model is of is found exactly, in every precision alike, or the model is refused."""
# pyright: reportUnknownLambdaType=false, reportPrivateUsage=false

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    BloomConfig,
    GPTNeoXConfig,
    MambaConfig,
    OPTConfig,
    PretrainedConfig,
    StableLmConfig,
)

from scalar_sae.errors import UserError
from scalar_sae.lm import recognition
from scalar_sae.lm.architectures import ARCHITECTURES, Architecture
from scalar_sae.lm.model import LanguageModel
from scalar_sae.sites import Site
from tests.lm.families import BLOOM, DTYPES, FAMILIES, GROUPED, NONE, OPT, family_hf, family_lm

TOKENS = torch.arange(33).view(3, 11) * 5 % 64
ROWS = {
    "mistral": "llama", "qwen2": "llama", "qwen3": "llama", "gemma3": "gemma2", "olmo": "llama", "granite": "llama",
}  # fmt: skip
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
with_outlier = pytest.mark.parametrize("outlier", [False, True], ids=["", "outlier"])


def row_of(lm: LanguageModel) -> str:
    return lm._anatomy.architecture.name


@with_outlier
@every_dtype
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_of_one_architecture_in_every_precision(family: str, dtype: torch.dtype, outlier: bool):
    assert row_of(family_lm(family, dtype, outlier=outlier)) == ROWS.get(family, family)


@with_outlier
@every_dtype
def test_a_parallel_model_with_small_branches_is_not_taken_for_a_sequential_one(dtype: torch.dtype, outlier: bool):
    """Pythia's composition with fresh weights: what attention adds is far below half a precision's rounding of the
    outlier.
    """
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    hf = AutoModelForCausalLM.from_config(
        GPTNeoXConfig(**sizes, **NONE, intermediate_size=256, max_position_embeddings=64, use_parallel_residual=True)
    ).eval()
    if outlier:
        hf.gpt_neox.embed_in.weight.data[:, 7] += 3.0
    hf.to(dtype)
    seen: list[torch.Tensor] = []
    hook = hf.gpt_neox.layers[2].register_forward_hook(lambda _m, _a, output: seen.append(output))
    with torch.no_grad():
        own = hf(TOKENS).logits.float()
    hook.remove()
    lm = LanguageModel.load(hf)
    last = Site("resid_post", 2)
    assert row_of(lm) == "pythia"
    x = lm.activations(TOKENS, [last])[last]
    assert torch.equal(x, seen[0].float())
    assert torch.equal(lm.logits_from(last, x), own)
    with pytest.raises(UserError, match="runs attention and MLP side by side"):
        lm.check(Site("resid_mid", 0))


@every_dtype
def test_a_layer_that_adds_nothing_is_recognised_all_the_same(dtype: torch.dtype):
    """With output matrices of zero parallel and sequential layers compute the same, but are put together otherwise."""
    for family, row in (("pythia", "pythia"), ("gpt-neox", "gpt-neox")):
        hf = family_hf(family, dtype)
        for layer in hf.gpt_neox.layers:
            for linear in (layer.attention.dense, layer.mlp.dense_4h_to_h):
                linear.weight.data.zero_()
                linear.bias.data.zero_()
        assert row_of(LanguageModel.load(hf)) == row


def test_two_rows_that_fit_are_named(monkeypatch: pytest.MonkeyPatch):
    twin = Architecture("twin", "h", "ln_1", "attn", "ln_2", "mlp", ("ln_f",))
    monkeypatch.setattr(recognition, "ARCHITECTURES", (*ARCHITECTURES, twin))
    with pytest.raises(UserError, match="mine: gpt2 fits the architectures gpt2 and twin alike"):
        LanguageModel(family_hf("gpt2"), "mine")


@pytest.mark.parametrize("change", ["factor", "clamp", "bias", "twice"])
@every_dtype
def test_a_layer_that_does_a_little_more_is_refused(change: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """Half a percent more, which bfloat16 rounds away; a limit that no small activation reaches; and so on."""
    hf = family_hf("llama", dtype)
    block = type(hf.model.layers[0])
    own = block.forward

    def forward(self: nn.Module, x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        y = own(self, x, *args, **kwargs)
        if change == "factor":
            return x + (y - x) * 1.001
        if change == "clamp":
            return y.clamp(-3e3, 3e3)
        return y + 1e-4 if change == "bias" else own(self, y, *args, **kwargs)

    monkeypatch.setattr(block, "forward", forward)
    with pytest.raises(UserError, match=r"llama: (layer 0 puts out|.* is called 2 times)"):
        LanguageModel(hf, "mine")


@every_dtype
@pytest.mark.parametrize("change", ["factor", "cap"])
def test_logits_that_are_changed_a_little_are_refused(change: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    hf = family_hf("llama", dtype)
    own = type(hf).forward

    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        output = own(self, *args, **kwargs)
        output.logits = output.logits * 1.001 if change == "factor" else 50 * (output.logits / 50).tanh()
        return output

    monkeypatch.setattr(type(hf), "forward", forward)
    with pytest.raises(UserError, match="llama: the logits are computed in another way"):
        LanguageModel(hf, "mine")


def test_attention_that_is_handed_what_depends_on_the_text_is_refused(monkeypatch: pytest.MonkeyPatch):
    hf = family_hf("llama")
    block = type(hf.model.layers[0])
    own = block.forward

    def forward(self: nn.Module, x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        kwargs["attention_mask"] = x[:, :1, :1].unsqueeze(1).expand(-1, 1, x.shape[1], x.shape[1])
        return own(self, x, *args, **kwargs)

    monkeypatch.setattr(block, "forward", forward)
    with pytest.raises(UserError, match=r"llama: .*`attention_mask`, which depends on the prompt's tokens"):
        LanguageModel(hf, "mine")


@every_dtype
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1),
            "mamba is not an .* but there is no .*add one",
        ),
        (
            OPTConfig(**OPT, ffn_dim=32, init_std=0.3, do_layer_norm_before=False),
            "opt: model.decoder.layers.0.self_attn_layer_norm reads something else",
        ),
        (
            BloomConfig(**BLOOM, apply_residual_connection_post_layernorm=True),
            "bloom: transformer.h.0.post_attention_layernorm reads something else",
        ),
    ],
)
def test_an_architecture_that_is_not_understood_says_what_is_missing(
    config: PretrainedConfig, message: str, dtype: torch.dtype
):
    with pytest.raises(UserError, match=message):
        LanguageModel(AutoModelForCausalLM.from_config(config).to(dtype), "new")


@every_dtype
def test_a_relative_needs_no_row_of_its_own(dtype: torch.dtype):
    """StableLM is a Llama or, with its one norm, a Cohere."""
    for parallel, row in ((False, "llama"), (True, "cohere")):
        torch.manual_seed(0)
        hf = AutoModelForCausalLM.from_config(StableLmConfig(**GROUPED, use_parallel_residual=parallel)).to(dtype)
        assert row_of(LanguageModel(hf, "new")) == row


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("Starcoder2", "llama"), ("Nemotron", "llama"), ("Phi3", "llama"), ("SmolLM3", "llama"), ("Glm", "llama"),
        ("Mixtral", "llama"), ("Olmo3", "olmo2"), ("Exaone4", "olmo2"), ("Cohere2", "cohere"),
    ],
)  # fmt: skip
def test_so_it_is_with_other_families(name: str, row: str):
    """What they put out is their own to the bit: fused matrices, gains of 1 + w, layers without positions, experts."""
    config: Any = getattr(transformers, f"{name}Config", None)
    if config is None:
        pytest.skip(f"this version of transformers has no {name}")
    torch.manual_seed(0)
    experts = {"num_local_experts": 2} if name == "Mixtral" else {}
    hf: Any = AutoModelForCausalLM.from_config(config(**GROUPED, **experts)).eval().to(torch.bfloat16)
    lm = LanguageModel(hf, "new")
    assert row_of(lm) == row
    x = lm.activations(TOKENS, [Site("resid_pre", 0)])[Site("resid_pre", 0)]
    with torch.no_grad():
        assert torch.equal(lm.logits_from(Site("resid_pre", 0), x), hf(TOKENS, use_cache=False).logits.float())


def test_weights_that_are_not_finite_are_named():
    hf = family_hf("gpt2")
    with torch.no_grad():
        hf.transformer.h[1].mlp.c_fc.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"^mine: transformer.h.1.mlp.c_fc.weight holds values that are not finite"):
        LanguageModel(hf, "mine")


def test_what_is_no_causal_language_model_is_refused():
    bert = BertModel(BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(UserError, match="BertModel is not a causal language model"):
        LanguageModel.load(bert)
    with pytest.raises(UserError, match="Linear is not a causal language model"):
        LanguageModel.load(torch.nn.Linear(2, 2))


def test_activations_that_do_not_fit_half_precision_are_told_from_an_unknown_architecture():
    hf = family_hf("llama", torch.float16)
    with torch.no_grad():
        hf.model.layers[0].mlp.down_proj.weight.fill_(6e4)
    with pytest.raises(
        UserError, match=r"^mine: its activations do not fit torch.float16; load it with dtype bfloat16"
    ):
        LanguageModel(hf, "mine")
    assert row_of(LanguageModel(hf.float(), "mine")) == "llama"
