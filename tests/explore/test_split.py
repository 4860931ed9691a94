"""The split of an edge over source positions and heads, against exchanges made by hooks in the model's own forward."""

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

import scalar_sae as ss
from scalar_sae.errors import UserError
from scalar_sae.explore.attention import LastQuery, heads_of
from scalar_sae.scoring.pair import Pair, read
from tests.helpers import random_sae, tiny_pair
from tests.lm.families import PARALLEL, family_lm
from tests.reference import hooked

TOKENS = torch.randint(32, (1, 9), generator=torch.Generator().manual_seed(0))
POSITION = 7


def carried(pair: Pair, journey: ss.Journey) -> tuple[int, int]:
    """An upstream latent that is active at several tokens, and the downstream latent most active at the token."""
    z, acts = journey.latents()
    return int((z[: POSITION + 1] > 0).sum(0).argmax()), int(acts[POSITION].argmax())


@torch.no_grad()
def pre_act(pair: Pair, x: Tensor, j: int, heads: Tensor | None = None) -> tuple[float, Tensor]:
    """Pre-activation of a latent at the token when x stands upstream and the heads give something else there, and what
    they gave: [head, d_head].
    """
    projection, found = pair.lm.hf.transformer.h[pair.block.down.layer].attn.c_proj, []

    def see(_: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        mixed = args[0].clone()
        found.append(mixed[0, POSITION].view(2, -1).clone())
        if heads is not None:
            mixed[0, POSITION] = heads.flatten()
        return (mixed,)

    hook = projection.register_forward_pre_hook(see)
    y = hooked.activation(pair, pair.block.down, TOKENS, {pair.block.up: x})
    hook.remove()
    return float(pair.down.pre_acts(y)[0, POSITION, j]), found[0]


def exchanges(pair: Pair, i: int, j: int) -> dict[tuple[int, int | None], float]:
    """Mean change of the pre-activation that each source and head makes, over two orders of both."""
    (prompt,) = read(pair, TOKENS)
    sources = [s for s in range(POSITION + 1) if prompt.z[s, i] > 0]
    assert len(sources) > 2
    found: dict[tuple[int, int | None], float] = defaultdict(float)
    for order in (sources, sources[::-1]):
        z = prompt.z.clone()
        for s in order:
            after = z.clone()
            after[s, i] = 0 if pair.ablation_value is None else pair.ablation_value[i]
            x, x_after = (pair.up.decode(each).unsqueeze(0) for each in (z, after))
            heads, heads_after = (pre_act(pair, each, j)[1] for each in (x, x_after))
            for components in ([None, 0, 1], [1, 0, None]):
                x_now, heads_now = x.clone(), heads.clone()
                before = pre_act(pair, x_now, j, heads_now)[0]
                for component in components:
                    if component is None:
                        x_now[0, POSITION] = x_after[0, POSITION]
                    else:
                        heads_now[component] = heads_after[component]
                    now = pre_act(pair, x_now, j, heads_now)[0]
                    found[s, component] += (before - now) / 4
                    before = now
            z = after
    return found


@pytest.mark.parametrize("block", ["transformer_block.0", "attn_block.1"])
def test_parts_are_those_of_exchanges_in_the_hooked_model(block: str):
    pair = tiny_pair(block)
    journey = ss.Journey(pair, TOKENS)
    i, j = carried(pair, journey)
    expected = exchanges(pair, i, j)
    found = journey.split(i, j, POSITION)
    assert len(found.parts) > 5
    for part in found.parts:
        assert part.pre_act == pytest.approx(expected.pop((part.source, part.head)), abs=2e-5)
    assert all(rest == pytest.approx(0, abs=2e-5) for rest in expected.values())


@pytest.mark.parametrize(
    ("block", "kind"),
    [("ff_block.0", "topk"), ("attn_block.1", "jumprelu"), ("transformer_block.0", "topk"),
     ("resid_mid.0->resid_post.1", "jumprelu")],
)  # fmt: skip
def test_parts_add_up_to_the_removal_of_the_edge(block: str, kind: str):
    pair = tiny_pair(block, kind=kind, ablation_value=True)
    journey = ss.Journey(pair, TOKENS)
    i, j = carried(pair, journey)
    found = journey.split(i, j, POSITION)
    (prompt,) = read(pair, TOKENS)
    without = prompt.z.clone()
    without[:, i] = pair.ablation_value[i]  # pyright: ignore[reportOptionalSubscript]
    p, changed = (
        pair.down.pre_acts(pair.compute(pair.up.decode(z, prompt.x_up).unsqueeze(0), prompt.up_skip))[0, POSITION]
        for z in (prompt.z, without)
    )
    alone = p.clone()
    alone[j] = changed[j]
    effect = (pair.down.activation.select(p) - pair.down.activation.select(alone))[j]
    assert found.pre_act == pytest.approx(float(p[j] - changed[j]), abs=1e-5)
    assert found.effect == pytest.approx(float(effect), abs=1e-5)
    assert sum(part.pre_act for part in found.parts) == pytest.approx(found.pre_act, abs=1e-5)
    assert sum(part.effect for part in found.parts) == pytest.approx(found.effect, abs=1e-5)
    assert any(part.head is not None for part in found.parts) == pair.block.mixes_tokens
    assert any(part.source < POSITION for part in found.parts) == pair.block.mixes_tokens
    sizes = [abs(part.pre_act) for part in found.parts]
    assert sizes == sorted(sizes, reverse=True)
    assert len(found.table()) == len(found.parts)


@pytest.mark.parametrize("name", ["llama", "gemma2", *PARALLEL[:1]])
def test_heads_are_told_apart_in_other_families(name: str):
    ends = random_sae(16, 24, 4, 1), random_sae(16, 20, 4, 2)
    pair = Pair(family_lm(name), ss.Block.parse("transformer_block.1"), *ends)
    journey = ss.Journey(pair, TOKENS)
    i, j = carried(pair, journey)
    found = journey.split(i, j, POSITION)
    assert sum(part.pre_act for part in found.parts) == pytest.approx(found.pre_act, abs=2e-5)
    assert {part.head for part in found.parts} >= {0, 1, 2, 3}


@pytest.mark.parametrize(("name", "known"), [("gpt2", True), ("llama", True), ("mistral", True), ("gemma2", False)])
def test_heads_that_see_one_other_token_change_as_in_a_pass_over_the_prompt(name: str, known: bool):
    ends = random_sae(16, 24, 4, 1), random_sae(16, 20, 4, 2)
    pair = Pair(family_lm(name), ss.Block.parse("transformer_block.0"), *ends)
    here = ss.Journey(pair, TOKENS).stage()
    heads, (source, up) = heads_of(here), here.active[:-1].nonzero(as_tuple=True)
    add = pair.added(up, here.change[source, up])
    query = LastQuery.of(here, heads) if heads else None
    assert (query is not None) == known  # attention with a soft cap is not computed by torch's own function
    if heads and query:
        x = here.whole.repeat(len(up), 1, 1)
        x[torch.arange(len(up)), source] -= add
        torch.testing.assert_close(
            query.without(here, heads, source, add), heads.outputs(here, x), atol=1e-5, rtol=1e-4
        )


def test_a_latent_without_activity_has_no_parts_and_several_attention_layers_are_refused():
    pair = tiny_pair("transformer_block.0")
    journey = ss.Journey(pair, TOKENS)
    silent = int(journey.latents()[0].sum(0).argmin())
    found = journey.split(silent, 0, POSITION)
    assert found.parts == ()
    assert found.pre_act == 0
    with pytest.raises(UserError, match="upstream latent 24"):
        journey.split(24, 0, POSITION)
    with pytest.raises(UserError, match="holds 2 attention layers"):
        ss.Journey(tiny_pair("resid_pre.0->resid_post.1"), TOKENS).split(0, 0, POSITION)
