"""The prompts on which an edge matters, against circuits with and without it."""

import numpy as np
import pytest
import torch

import scalar_sae as ss
from scalar_sae.errors import UserError
from scalar_sae.explore.plain import QUANTILES
from scalar_sae.scoring.pair import read
from tests.helpers import tiny_pair

TOKENS = torch.randint(32, (4, 6), generator=torch.Generator().manual_seed(0))


def test_prompts_of_an_edge_are_in_the_order_of_what_its_removal_does():
    pair = tiny_pair("transformer_block.0")
    z, acts = ss.Journey(pair, TOKENS[:1]).latents()
    i, j = int(z.sum(0).argmax()), int(acts.sum(0).argmax())
    full = ss.Circuit.full(pair)
    p, q = (circuit.logits(TOKENS).log_softmax(-1) for circuit in (full, full.without(edges=[(i, j)])))
    kl = (p.exp() * (p - q)).sum(-1).mean(1)
    shares: list[float] = []
    found = ss.edge_examples(pair, i, j, TOKENS, n=3, on_progress=shares.append)
    order = kl.argsort(descending=True)
    assert [row.prompt for row in found.examples] == order[:3].tolist()
    assert [row.kl for row in found.examples] == pytest.approx(kl[order[:3]].tolist(), rel=1e-3, abs=1e-6)
    assert found.kl == pytest.approx(float(kl.mean()), rel=1e-3)
    assert found.quantiles == pytest.approx(np.quantile(kl.numpy(), QUANTILES).tolist(), rel=1e-3, abs=1e-6)
    assert (found.n_prompts, shares[-1]) == (4, 1)
    reached = 0
    for number, prompt in enumerate(read(pair, TOKENS)):
        change = full.latents(prompt)[:, j] - full.without(edges=[(i, j)]).latents(prompt)[:, j]
        reached += bool(change.abs().max() > 1e-5)
        for row in found.examples:
            if row.prompt == number:
                assert row.effect == pytest.approx(float(change[row.position]), abs=1e-5)
                assert abs(row.effect) == pytest.approx(float(change.abs().max()), abs=1e-5)
    assert found.n_reached == reached > 0


def test_an_edge_that_reaches_no_prompt_says_so_and_one_that_does_not_exist_is_refused():
    pair = tiny_pair("ff_block.0")
    z = ss.Journey(pair, TOKENS[:1]).latents()[0]
    found = ss.edge_examples(pair, int(z.sum(0).argmin()), 0, TOKENS[:1])
    assert (found.n_reached, found.kl, found.quantiles[-1]) == (0, 0, 0)
    with pytest.raises(UserError, match="downstream latent 20"):
        ss.edge_examples(pair, 0, 20, TOKENS)


def test_prompts_without_the_upstream_latent_are_not_reached():
    pair = tiny_pair("ff_block.0", n_up=64, k=2)
    tokens = torch.randint(32, (20, 3), generator=torch.Generator().manual_seed(1))
    z = torch.stack([prompt.z for prompt in read(pair, tokens)])
    i = int(((z > 0).any(1).float().mean(0) - 0.5).abs().argmin())
    j = int(torch.stack([ss.Journey(pair, row[None]).latents()[1] for row in tokens]).sum((0, 1)).argmax())
    found = ss.edge_examples(pair, i, j, tokens)
    assert 0 < found.n_reached <= int((z[..., i] > 0).any(1).sum()) < len(tokens)
