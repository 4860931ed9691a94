"""Interventions against the model's own forward through hooks, and as data that can be written down and replayed."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import scalar_sae as ss
from scalar_sae.errors import UserError
from scalar_sae.scoring import chain
from scalar_sae.scoring.pair import Pair, Prompt, read
from tests.helpers import random_sae, tiny_lm, tiny_pair
from tests.reference import hooked

TOKENS = torch.randint(32, (1, 9), generator=torch.Generator().manual_seed(0))
OTHER = torch.randint(32, (1, 7), generator=torch.Generator().manual_seed(1))
SITES = [ss.Site("resid_pre", 0), ss.Site("resid_mid", 0), ss.Site("resid_post", 1)]
BLOCKS = ["ff_layer.1", "attn_block.1", "resid_mid.0->resid_post.1"]


def some_edges(pair: Pair, share: float = 0.5) -> Tensor:
    kept = torch.rand(pair.up.d_sae, pair.down.d_sae, generator=torch.Generator().manual_seed(0)) < share
    kept[:, 3] = False  # a latent without edges
    return kept


def strongest(prompt: Prompt, acts: Tensor) -> tuple[list[int], list[int]]:
    """The latents that are most active, upstream and downstream."""
    return tuple(a.sum(0).argsort(descending=True)[:3].tolist() for a in (prompt.z, acts))  # pyright: ignore


def factors(pair: Pair, n_token: int, interventions: list[ss.Intervention]) -> tuple[Tensor, Tensor]:
    """What multiplies each edge, [token, n_up, n_down], and each downstream latent, [token, n_down]."""
    edges, down = torch.ones(n_token, pair.up.d_sae, pair.down.d_sae), torch.ones(n_token, pair.down.d_sae)
    for one in interventions:
        for token in range(n_token) if one.positions is None else one.positions:
            if one.up is None:
                down[token, one.down] *= one.factor
            elif one.down is None:
                edges[token, one.up] *= one.factor
            else:
                edges[token, one.up, one.down] *= one.factor
    return edges, down


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) from logits."""
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def several(up: list[int], down: list[int]) -> list[ss.Intervention]:
    """Interventions of every kind, some on the same edge and latent."""
    return [
        ss.Intervention(up=up[0], down=down[0]),
        ss.Intervention(up=up[0], down=down[1], positions=(0, 2, -1), factor=3),
        ss.Intervention(up=up[0], down=down[1], positions=(2, 5), factor=-0.5),
        ss.Intervention(up=up[1], positions=(1, 4), factor=2),
        ss.Intervention(up=up[1], down=down[2], factor=0.5),
        ss.Intervention(down=down[1], positions=(-1,), factor=0),
        ss.Intervention(down=down[2], factor=1.5),
    ]


SPECIAL = (int(TOKENS[0, 0]), int(TOKENS[0, 4]))


@pytest.mark.parametrize(
    ("block", "mean", "special", "kept"),
    [(block, False, (), False) for block in BLOCKS]
    + [("ff_block.0", True, SPECIAL, True), ("transformer_block.0", True, SPECIAL, True)],
)
def test_interventions_change_the_prediction_as_in_the_hooked_model(
    block: str, mean: bool, special: tuple[int, ...], kept: bool
):
    pair = replace(tiny_pair(block, n_down=12, ablation_value=mean), special=special)
    (prompt,) = read(pair, TOKENS)
    edges = some_edges(pair) if kept else torch.ones(pair.up.d_sae, pair.down.d_sae, dtype=torch.bool)
    acts = hooked.circuit_latents(pair, prompt, edges)
    interventions = several(*strongest(prompt, acts))
    on_edges, on_down = factors(pair, len(acts), interventions)
    changed = hooked.circuit_latents(pair, prompt, edges, on_edges) * on_down
    before, after = (hooked.spliced_logits(pair, prompt, a) for a in (acts, changed))
    found = ss.Journey(pair, TOKENS).intervene(interventions, ss.Circuit(pair, edges) if kept else None, n=32)
    divergence = kl(before, after)
    assert float(divergence[-1]) > 1e-3
    assert found.position == 8
    assert found.kl == pytest.approx(float(divergence[-1]), rel=2e-3, abs=1e-5)
    text = ~torch.isin(TOKENS[0], torch.tensor(special))
    assert found.kl_mean == pytest.approx(float(divergence[text].mean()), rel=2e-3, abs=1e-5)
    for name, logits in (("", before[-1]), ("_after", after[-1])):
        found_logits = {row.token: getattr(row, f"logit{name}") for row in found.next_tokens}
        found_p = {row.token: getattr(row, f"p{name}") for row in found.next_tokens}
        torch.testing.assert_close(
            torch.tensor([found_logits[t] for t in range(32)]), logits - logits.mean(), atol=1e-3, rtol=1e-3
        )
        torch.testing.assert_close(
            torch.tensor([found_p[t] for t in range(32)]), logits.softmax(-1), atol=1e-4, rtol=1e-3
        )


def test_interventions_on_a_chain_change_the_prediction_as_in_the_hooked_model():
    saes = {s: random_sae(16, width, 4, seed) for seed, (s, width) in enumerate(zip(SITES, (24, 20, 24), strict=True))}
    pairs = chain.chain(tiny_lm(), saes, SITES)
    blocks = [str(pair.block) for pair in pairs]
    (prompt,) = read(pairs[0], TOKENS)
    circuits = [ss.Circuit(pair, some_edges(pair, 0.8)) for pair in pairs]

    def run(by_block: dict[str, list[ss.Intervention]]) -> Tensor:
        z = prompt.z
        for pair, circuit in zip(pairs, circuits, strict=True):
            on_edges, on_down = factors(pair, 9, by_block.get(str(pair.block), []))
            z = hooked.circuit_latents(pair, prompt, circuit.kept, on_edges, z) * on_down
        return hooked.spliced_logits(pairs[1], prompt, z)

    journey = ss.Journey(pairs, TOKENS)
    by_block: dict[str, list[ss.Intervention]] = {}
    for block in blocks:
        z, acts = journey.latents(block)
        up, down = (a.sum(0).argsort(descending=True)[:3].tolist() for a in (z, acts))
        by_block[block] = [one.model_copy(update={"block": block}) for one in several(up, down)]
    found = journey.intervene([one for some in by_block.values() for one in some], circuits, position=6, n=32)
    before, after = run({}), run(by_block)
    assert found.kl == pytest.approx(float(kl(before[6], after[6])), rel=2e-3, abs=1e-5)
    for row in found.next_tokens:
        assert row.p == pytest.approx(float(before[6].softmax(-1)[row.token]), abs=1e-4)
        assert row.p_after == pytest.approx(float(after[6].softmax(-1)[row.token]), abs=1e-4)


def test_the_order_of_interventions_does_not_matter_and_factor_one_changes_nothing():
    pair = tiny_pair("transformer_block.0")
    journey = ss.Journey(pair, TOKENS)
    interventions = several(*(a.sum(0).argsort(descending=True)[:3].tolist() for a in journey.latents()))
    one, other = (journey.intervene(order, n=32) for order in (interventions, interventions[::-1]))
    assert one.kl == pytest.approx(other.kl, rel=1e-4)
    nothing = journey.intervene([each.model_copy(update={"factor": 1.0}) for each in interventions])
    assert nothing.kl == pytest.approx(0, abs=1e-7)
    assert set(nothing.reached) == {0}


@pytest.mark.parametrize("block", ["ff_block.0", "transformer_block.0"])
def test_removing_an_edge_or_an_upstream_latent_everywhere_is_a_circuit_without_it(block: str):
    pair = tiny_pair(block)
    journey, full = ss.Journey(pair, TOKENS), ss.Circuit.full(pair)
    i, j = (int(acts.sum(0).argmax()) for acts in journey.latents())
    for one, cut in (
        (ss.Intervention(up=i, down=j), full.without(edges=[(i, j)])),
        (ss.Intervention(up=i), full.without(up=[i])),
    ):
        found = journey.intervene([one], n=32)
        assert found.kl_mean > 1e-4
        torch.testing.assert_close(
            torch.tensor([row.p_after for row in sorted(found.next_tokens, key=lambda row: row.token)]),
            cut.logits(TOKENS)[0, -1].softmax(-1),
            atol=1e-5,
            rtol=1e-4,
        )


def test_a_list_of_interventions_is_written_as_json_and_replayed_on_another_prompt():
    pair = tiny_pair("ff_block.0")
    journey, other = ss.Journey(pair, TOKENS), ss.Journey(pair, OTHER)
    up, down = (a.sum(0).argsort(descending=True)[:3].tolist() for a in journey.latents())
    change = journey.intervene(several(up, down))
    written = change.model_dump_json()
    read_again = ss.interventions_from(json.loads(written)["interventions"])
    assert read_again == change.interventions
    assert ss.interventions_from(json.dumps(json.loads(written)["interventions"])) == change.interventions
    assert journey.intervene(read_again) == change
    replayed = other.intervene(read_again)
    assert replayed.tokens == tuple(OTHER[0].tolist())
    assert replayed.kl != change.kl


def test_interventions_that_do_nothing_on_a_prompt_are_told():
    pair = tiny_pair("ff_block.0")
    journey = ss.Journey(pair, TOKENS)
    z, acts = journey.latents()
    live, dead = int(z.sum(0).argmax()), int(z.sum(0).argmin())
    assert float(z[:, dead].max()) == 0
    j = int(acts.sum(0).argmax())
    interventions = [
        ss.Intervention(up=live),
        ss.Intervention(up=dead),
        ss.Intervention(up=live, down=j, positions=(0, 1, 2)),
        ss.Intervention(down=j),
    ]
    expected = (int((z[:, live] > 0).sum()), 0, int((z[:3, live] > 0).sum()), int((acts[:, j] > 0).sum()))
    assert journey.intervene(interventions).reached == expected
    without = ss.Circuit.full(pair).without(edges=[(live, j)])
    assert journey.intervene([ss.Intervention(up=live, down=j)], without).reached == (0,)


def test_what_a_pair_or_a_prompt_does_not_have_is_refused():
    pair = tiny_pair("ff_block.0")  # 24 x 20
    journey = ss.Journey(pair, TOKENS)
    for wrong, message in (
        (ss.Intervention(up=24), "upstream latent 24: the SAE at that end has 24"),
        (ss.Intervention(down=20), "downstream latent 20"),
        (ss.Intervention(up=0, positions=(9,)), "position 9: the prompt has 9 tokens"),
        (ss.Intervention(up=0, block="ff_block.1"), "block ff_block.1: expected one of ff_block.0"),
    ):
        with pytest.raises(UserError, match=message):
            journey.intervene([wrong])
    with pytest.raises(UserError, match="not those of the journey's pairs"):
        journey.intervene([], ss.Circuit.full(tiny_pair("ff_block.0")))
    for data, message in (
        ([{"factor": 0}], "names no latent"),
        ([{"up": 1, "positions": []}], "positions is empty"),
        ([{"up": -1}], "up"),
        ([{"up": 1, "factor": float("nan")}], "factor"),
        ([{"up": 1, "scale": 2}], "scale"),
        ("[", "interventions"),
    ):
        with pytest.raises(UserError, match=message):
            ss.interventions_from(data)
