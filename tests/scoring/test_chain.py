"""Whole-model circuits against a plain loop over the pairs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.scoring import chain
from scalar_sae.scoring.circuit import score_circuit
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.pair import read
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.resume import Partial
from scalar_sae.scoring.texts import Texts
from scalar_sae.sites import Site
from tests.helpers import random_sae, tiny_lm
from tests.reference import scorer

SITES = [Site("resid_pre", 0), Site("resid_mid", 0), Site("resid_post", 1)]
TOKENS = torch.arange(20).view(2, 10)
COUNTS = np.array([0, 30, 200, 480])


def setup() -> tuple[list, list[torch.Tensor]]:
    saes = {
        site: random_sae(16, width, 4, seed) for seed, (site, width) in enumerate(zip(SITES, (24, 20, 24), strict=True))
    }
    pairs = chain.chain(tiny_lm(), saes, SITES)
    g = torch.Generator().manual_seed(0)
    return pairs, [torch.rand(pair.up.d_sae, pair.down.d_sae, generator=g) for pair in pairs]


def test_a_chain_is_its_pairs_one_after_the_other():
    pairs, scores = setup()
    keep_index = chain.same_budget(scores, COUNTS, 0)
    assert all(torch.equal(one, keep_indices(s, COUNTS, 0)) for one, s in zip(keep_index, scores, strict=True))
    curves = chain.curves(pairs, keep_index, len(COUNTS), TOKENS, Partial(None, {}))
    for number, prompt in enumerate(read(pairs[0], TOKENS)):
        model = pairs[0].lm.logits(prompt.tokens).log_softmax(-1)
        for index in range(len(COUNTS)):
            z = prompt.z
            for pair, one in zip(pairs, keep_index, strict=True):
                fed = chain.replace(prompt, z=z)
                z = pair.down.activation.select(scorer.pre_acts(pair, fed, one <= index))
            x_hat = pairs[-1].down.decode(z).unsqueeze(0)
            log_probs = pairs[-1].lm.logits_from(SITES[-1], x_hat).log_softmax(-1)
            kl = (model.exp() * (model - log_probs)).sum(-1).mean()
            assert curves.kl_model[index, number] == pytest.approx(kl.item(), rel=1e-3, abs=1e-5)
    np.testing.assert_allclose(curves.kl_circuit[-1], 0, atol=1e-5)
    assert (curves.kl_circuit[0] > 0.01).all()


def test_one_order_keeps_as_many_edges_as_it_says():
    _, scores = setup()
    counts = np.array([0, 7, 500, 960])
    keep_index = chain.one_order(scores, counts, 0)
    for index, count in enumerate(counts):
        assert sum(int((one <= index).sum()) for one in keep_index) == count


def test_sites_that_make_no_chain_are_named():
    with pytest.raises(UserError, match="at least two pairs"):
        chain.chain(tiny_lm(), {}, SITES[:2])
    with pytest.raises(UserError, match=r"mlp_in.0: a whole-model circuit runs along the residual stream"):
        chain.chain(tiny_lm(), {}, [*SITES, Site("mlp_in", 0)])
    with pytest.raises(UserError, match=r"no SAE at resid_mid.0"):
        chain.chain(tiny_lm(), {SITES[0]: random_sae(16, 8, 2, 0)}, SITES)


def test_a_circuit_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scalar_sae.scoring.rankings.unfinished.WORTH", 0.0)
    pairs, _ = setup()
    saes = {pair.block.up: pair.up for pair in pairs} | {pairs[-1].block.down: pairs[-1].down}
    texts = Texts(TOKENS + 3, TOKENS, {})
    config = ScoreConfig(ranking="leave_one_out_with_prior", rank_prompts=2, prompts=2, context=10, edges="0,30,200")
    arguments = (pairs[0].lm, saes, SITES, texts, config)
    whole = score_circuit(*arguments)
    shares: list[float] = []

    def done(share: float) -> None:
        shares.append(share)
        if sum(shares) > 4.5:  # two prompts to rank each of two pairs on, then one of two to score
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_circuit(*arguments, on_progress=done, partial=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.rglob("*.safetensors"))) == 2
    assert len((folder / "prompts.0.jsonl").read_text().split()) > 0
    monkeypatch.setattr("scalar_sae.scoring.rankings.base._sum", None)  # nothing is ranked again
    again = score_circuit(*arguments, partial=tmp_path)
    assert again.model_dump(exclude={"seconds"}) == whole.model_dump(exclude={"seconds"})
