"""Runs that differ at one token alone against the model's own forward, in which a hook changes that token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from scalar_sae.lm.model import LanguageModel
from scalar_sae.sites import Site
from tests.lm.families import DTYPES, FAMILIES, GROUPED, PARALLEL, family_hf, family_lm

TOKENS = torch.arange(11).view(1, 11) * 5 % 64
POSITIONS = (0, 6, 10)
"""The windows of the families with sliding attention are shorter."""
every_family = pytest.mark.parametrize("family", FAMILIES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def varied(lm: LanguageModel, position: int) -> tuple[Tensor, Tensor]:
    """Three activations of a token before the first layer, and what the model's own forward makes of each."""
    decoder: Any = lm.hf.get_decoder()
    layers = decoder.layers if hasattr(decoder, "layers") else decoder.h
    own = lm.activations(TOKENS, ["resid_pre.0"])["resid_pre.0"][0, position]
    noise = torch.randn(3, len(own), generator=torch.Generator().manual_seed(position))
    rows = (own + noise * torch.tensor([[0.0], [0.3], [3.0]])).to(lm.dtype)
    found: list[Tensor] = []
    for row in rows:

        def change(_module: object, args: Any, kwargs: Any, row: Tensor = row) -> tuple[Any, Any]:
            x = (args[0] if args else kwargs["hidden_states"]).clone()
            x[0, position] = row
            return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

        def read(_module: object, _args: object, output: Any) -> None:
            found.append((output if isinstance(output, Tensor) else output[0])[0, position].float())

        hooks = layers[0].register_forward_pre_hook(change, with_kwargs=True), layers[-1].register_forward_hook(read)
        with torch.no_grad():
            lm.hf(TOKENS, use_cache=False)
        for hook in hooks:
            hook.remove()
    return rows.float(), torch.stack(found)


def check(lm: LanguageModel, position: int, reuses: bool) -> None:
    start = Site("resid_pre", 0)
    run = lm.cached_run(start, lm.activations(TOKENS, [start])[start])
    assert torch.equal(run.end, lm.activations(TOKENS, [lm.end])[lm.end])
    assert run.reuses(position) == reuses
    rows, expected = varied(lm, position)
    atol = (32 if lm.dtype == torch.float32 else 4) * torch.finfo(lm.dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(run.varied(position, rows), expected, atol=atol, rtol=0)
    assert (expected[0] - expected[2]).abs().max() > 10 * atol  # what is compared is more than rounding


@every_dtype
@every_family
def test_a_run_of_one_token_is_that_of_the_whole_prompt(family: str, dtype: torch.dtype):
    for position in POSITIONS:
        check(family_lm(family, dtype), position, reuses=True)


@every_family
def test_a_run_begins_at_any_site_and_takes_the_stream_beside_it(family: str):
    lm = family_lm(family)
    kinds = ("attn_in", "mlp_in", "mlp_out", "resid_pre", *(() if family in PARALLEL else ("resid_mid",)))
    sites = [Site(kind, layer) for kind in kinds for layer in range(2)] + [lm.end]
    for site, state in lm.states(TOKENS, sites).items():
        run = lm.cached_run(site, state.x, state.skip)
        changed = state.x.repeat(2, 1, 1)
        changed[:, 6] += torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
        skip = None if state.skip is None else state.skip.expand_as(changed)
        expected = lm.run(site, lm.end, changed, skip)[:, 6]
        assert run.reuses(6)
        torch.testing.assert_close(run.varied(6, changed[:, 6]), expected, atol=1e-5, rtol=1e-5)
        assert run.varied(6, changed[:0, 6]).shape == (0, 16)


def both_ways() -> LanguageModel:
    """A model without a causal mask."""
    lm = LanguageModel(family_hf("llama", attn_implementation="sdpa"), "both ways")
    for layer in lm.hf.model.layers:
        layer.self_attn.is_causal = False
    return lm


def forgetful() -> LanguageModel:
    """A model whose second layer's attention loses the first token of its cache."""
    lm = LanguageModel(family_hf("llama"), "forgetful")
    attention = lm.hf.model.layers[1].self_attn
    forward = attention.forward

    def forgets(hidden_states: Tensor, position_embeddings: Any, past_key_values: Any = None, **rest: Any) -> Any:
        if past_key_values is not None and past_key_values.get_seq_length(1):
            past_key_values.layers[1].values[:, :, 0] = 0
        return forward(hidden_states, position_embeddings, past_key_values=past_key_values, **rest)

    attention.forward = forgets
    return lm


def stretched() -> LanguageModel:
    """A model whose rotary positions depend on the length of the prompt."""
    torch.manual_seed(0)
    rope: dict[str, Any] = {
        "rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": 8,
        "short_factor": [1.0, 1.0], "long_factor": [3.0, 5.0],
    }  # fmt: skip
    return LanguageModel(AutoModelForCausalLM.from_config(LlamaConfig(**GROUPED, rope_parameters=rope)), "stretched")


def only_half() -> LanguageModel:
    """A model whose attention computes in bfloat16 only."""
    lm = LanguageModel(family_hf("llama", torch.bfloat16), "only half")
    for layer in lm.hf.model.layers:
        forward = layer.self_attn.forward

        def half(hidden_states: Tensor, forward: Any = forward, **rest: Any) -> Any:
            if hidden_states.dtype == torch.float32:
                raise RuntimeError("only half precision")
            return forward(hidden_states, **rest)

        layer.self_attn.forward = half
    return lm


def without_cache() -> LanguageModel:
    """A model whose forward takes no cache, such as a HookedTransformer."""
    lm = LanguageModel(family_hf("gpt2"), "without cache")
    forward = lm.hf.forward

    def of_tokens(tokens: Tensor, use_cache: bool) -> Any:
        return forward(tokens, use_cache=use_cache)

    lm.hf.forward = of_tokens
    return lm


@pytest.mark.parametrize("made", [both_ways, forgetful, stretched, only_half, without_cache])
def test_a_model_whose_keys_and_values_cannot_be_reused_runs_the_whole_prompt(made: Callable[[], LanguageModel]):
    check(made(), 6, reuses=False)


def test_keys_and_values_are_reused_at_the_positions_where_they_can_be():
    lm = stretched()
    check(lm, 10, reuses=True)
    check(lm, 6, reuses=False)
