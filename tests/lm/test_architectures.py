"""Every family: the sites are places in the model's own computation, and SCALAR's identities hold on it."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.scoring.pair import Pair, read
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.sweep.edges import GlobalEdges
from scalar_sae.scoring.sweep.subcircuits import sweep
from scalar_sae.sites import KINDS, Block, Site
from tests.helpers import random_sae
from tests.lm.families import DTYPES, FAMILIES, PARALLEL, RAW, family_hf, family_lm
from tests.reference import scorer

TOKENS = torch.arange(33).view(3, 11) * 5 % 64
every_family = pytest.mark.parametrize("family", FAMILIES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
with_outlier = pytest.mark.parametrize("outlier", [False, True], ids=["", "outlier"])


def kinds(family: str) -> list[str]:
    return [
        kind
        for kind in KINDS
        if not (kind == "resid_mid" and family in PARALLEL) and not (kind.endswith("_raw") and family not in RAW)
    ]


def sites(family: str) -> list[Site]:
    return [Site(kind, layer) for layer in range(2) for kind in kinds(family)]


@with_outlier
@every_dtype
@every_family
def test_hidden_states_and_logits_are_the_models_own_to_the_bit(family: str, dtype: torch.dtype, outlier: bool):
    lm = family_lm(family, dtype, outlier=outlier)
    own = lm.hf(TOKENS, output_hidden_states=True, use_cache=False)
    logits = lm.logits(TOKENS)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, own.logits.float())
    places = lm.activations(TOKENS, [Site("resid_pre", 0), Site("resid_post", 0), Site("resid_pre", 1)])
    for (site, x), layer in zip(places.items(), (0, 1, 1), strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, own.hidden_states[layer].float()), site


@with_outlier
@every_dtype
@every_family
def test_splicing_the_exact_activation_back_changes_nothing(family: str, dtype: torch.dtype, outlier: bool):
    lm = family_lm(family, dtype, outlier=outlier)
    clean = lm.logits(TOKENS)
    states = lm.states(TOKENS, sites(family))
    assert set(states) == set(sites(family))
    for site, state in states.items():
        spliced = lm.logits_from(site, state.x, state.skip)
        if site.on_residual_stream or family not in PARALLEL:
            assert torch.equal(spliced, clean), site
        else:  # two branches are added in another order
            torch.testing.assert_close(spliced, clean, atol=40 * torch.finfo(dtype).eps, rtol=0)


@every_dtype
@every_family
def test_a_block_recomputed_from_its_input_gives_the_models_own_output(family: str, dtype: torch.dtype):
    lm = family_lm(family, dtype, outlier=True)
    states = lm.states(TOKENS, sites(family))
    for start, end in pairwise(site for site in states if site.on_residual_stream):
        assert torch.equal(lm.run(start, end, states[start].x), states[end].x), (start, end)
    for start, end in (("attn_in", "attn_out"), ("mlp_in", "mlp_out")):
        start, end = Site(start, 1), Site(end, 1)
        assert torch.equal(lm.run(start, end, states[start].x), states[end].x), (start, end)
    assert torch.equal(lm.run(Site("resid_pre", 0), Site("resid_post", 1), states[Site("resid_pre", 0)].x),
                       states[Site("resid_post", 1)].x)  # fmt: skip


@every_dtype
@every_family
def test_side_branches_hold_what_the_models_own_modules_put_out(family: str, dtype: torch.dtype):
    """Compared with what hooks on the modules see in the model's own forward."""
    lm = family_lm(family, dtype, outlier=True)
    seen: dict[str, torch.Tensor] = {}

    def see(name: str):
        def hook(_module: object, args: tuple, kwargs: dict, output: object) -> None:
            seen[f"{name}_in"] = args[0] if args else kwargs["hidden_states"]
            seen[f"{name}_raw"] = output if isinstance(output, torch.Tensor) else output[0]

        return hook

    layer = getattr(lm.hf.get_decoder(), "layers" if hasattr(lm.hf.get_decoder(), "layers") else "h")[1]
    attention = next(module for name, module in layer.named_children() if name.startswith(("attn", "atten", "self_at"))
                     and "norm" not in name)  # fmt: skip
    hooks = [attention.register_forward_hook(see("attn"), with_kwargs=True)]
    if family != "opt":  # whose MLP is not a module
        hooks.append(layer.mlp.register_forward_hook(see("mlp"), with_kwargs=True))
    lm.logits(TOKENS)
    for hook in hooks:
        hook.remove()
    at = lm.activations(TOKENS, [site for site in sites(family) if site.layer == 1])
    if family == "bloom":  # whose modules add the residual stream themselves
        assert torch.equal(seen.pop("attn_raw").float(), at[Site("resid_mid", 1)])
        assert torch.equal(seen.pop("mlp_raw").float(), at[Site("resid_post", 1)])
    if family in ("falcon-parallel", "falcon-two-norms"):  # which add one branch to the other in place
        seen["mlp_raw"] = (seen["mlp_raw"].float() - seen["attn_raw"].float()).to(dtype)
        close = {"atol": 8 * torch.finfo(dtype).eps, "rtol": 0}
        torch.testing.assert_close(at[Site("mlp_out", 1)], seen.pop("mlp_raw").float(), **close)
    for name, x in seen.items():
        place = name if family in RAW else name.replace("_raw", "_out")
        assert torch.equal(at[Site(place, 1)], x.float()), place
    stream = at[Site("resid_pre", 1)] + at[Site("attn_out", 1)] + at[Site("mlp_out", 1)]
    atol = 4 * torch.finfo(dtype).eps * stream.abs().max().item()
    torch.testing.assert_close(stream, at[Site("resid_post", 1)], atol=atol, rtol=0)
    if family in RAW:
        assert not torch.allclose(at[Site("mlp_raw", 1)], at[Site("mlp_out", 1)])


@every_dtype
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@every_family
def test_what_attention_is_handed_is_right_at_every_length_and_batch(family: str, attention: str, dtype: torch.dtype):
    """Sliding windows, a rotary table for each kind of layer, ALiBi: each length has its own, and batches share it."""
    try:
        hf = family_hf(family, dtype, attn_implementation=attention)
    except ValueError:
        pytest.skip(f"{family} has no {attention} attention")
    lm = LanguageModel.load(hf)
    for n_prompts, n_tokens in ((1, 1), (3, 3), (2, 11), (1, 20), (5, 11)):
        tokens = torch.arange(n_prompts * n_tokens).view(n_prompts, n_tokens) * 7 % 64
        own = hf(tokens, output_hidden_states=True, use_cache=False)
        x = lm.activations(tokens, [Site("resid_pre", 0)])[Site("resid_pre", 0)]
        assert torch.equal(lm.run(Site("resid_pre", 0), Site("resid_pre", 1), x), own.hidden_states[1].float())
        assert torch.equal(lm.logits_from(Site("resid_pre", 0), x), own.logits.float())


@pytest.mark.parametrize("block", ["ff_block.1", "ff_layer.1", "transformer_block.0", "mlp_raw.0->mlp_out.0"])
@every_family
def test_all_edges_are_the_full_circuit_and_no_edges_the_decoder_bias(family: str, block: str):
    place = Block.parse(block)
    lm = family_lm(family)
    if place.up.kind not in kinds(family):
        with pytest.raises(
            UserError, match=rf"{place.up}: {family} (runs|adds) .* its layers have only resid_pre, attn_in"
        ):
            Pair(lm, place, random_sae(16, 24, 4, 1), random_sae(16, 20, 4, 2))
        return
    pair = Pair(lm, place, random_sae(16, 24, 4, 1), random_sae(16, 20, 4, 2))
    prompt = next(read(pair, TOKENS[:1]))
    keep_index = keep_indices(torch.rand(24, 20), np.array([0, 100, 480]), 0)
    subs = [(sub.pre_acts.clone(), sub.acts) for sub in sweep(pair, prompt, GlobalEdges(keep_index), 3)]
    for index, (pre_acts, _) in enumerate(subs):
        torch.testing.assert_close(pre_acts, scorer.pre_acts(pair, prompt, keep_index <= index), atol=2e-5, rtol=1e-4)
    none, some, everything = (acts for _, acts in subs)
    full = pair.down.encode(pair.compute(pair.up.decode(prompt.z).unsqueeze(0), prompt.up_skip))[0]
    ablated = pair.compute(pair.up.b_dec.expand(1, 11, -1), prompt.up_skip)
    torch.testing.assert_close(none, pair.down.encode(ablated)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(everything, full, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(some, full)


@pytest.mark.parametrize("family", ["llama", *RAW])
def test_a_module_before_a_norm_is_not_taken_for_what_joins_the_residual_stream(family: str):
    lm, block = family_lm(family), Block.parse("mlp_out.0->resid_post.0")
    named, said = Site.parse("model.layers.0.mlp"), Site.parse("mlp_out.0")
    assert named == said
    saes = {Site.parse("resid_post.0"): random_sae(16, 20, 4, 1)}
    Pair.between(lm, block, {said: random_sae(16, 20, 4, 0), **saes})
    if family in RAW:
        with pytest.raises(UserError, match=r"mlp_raw\.0=PATH \(the module's output\) or mlp_out\.0=PATH"):
            Pair.between(lm, block, {named: random_sae(16, 20, 4, 0), **saes})
    else:
        Pair.between(lm, block, {named: random_sae(16, 20, 4, 0), **saes})


def test_gradients_flow_through_a_block():
    lm = family_lm("llama")
    x = torch.randn(1, 4, 16, requires_grad=True)
    lm.run(Site("resid_pre", 0), Site("resid_post", 1), x)[0, -1].sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()


def test_a_sliding_window_is_seen():
    """With a window of 4 in both layers the last of 11 tokens cannot see the first."""
    lm = family_lm("mistral")
    x = torch.randn(1, 11, 16)
    changed = x.clone()
    changed[0, 0] += 1
    after = [lm.run(Site("resid_pre", 0), Site("resid_post", 1), inp)[0] for inp in (x, changed)]
    assert torch.equal(after[0][-1], after[1][-1])
    assert not torch.equal(after[0][3], after[1][3])


def test_nothing_leads_from_one_parallel_branch_to_the_other():
    lm = family_lm("gptj")
    with pytest.raises(UserError, match=r"attn_in.0->mlp_in.0: gptj runs attention and MLP side by side"):
        lm.run(Site("attn_in", 0), Site("mlp_in", 0), torch.zeros(1, 4, 16), torch.zeros(1, 4, 16))
    with pytest.raises(UserError, match="in the other direction"):
        lm.run(Site("mlp_in", 1), Site("mlp_in", 0), torch.zeros(1, 4, 16))


def test_a_loaded_module_is_taken_as_it_is():
    hf = family_hf("qwen3")
    lm = LanguageModel.load(hf)
    assert lm.hf is hf
    assert not any(parameter.requires_grad for parameter in hf.parameters())
    assert (lm.d_model, lm.n_layers, lm.d_vocab, lm.context) == (16, 2, 64, 32)
