"""The table of ranked edges against the dense matrix of the obvious scorer, and its circuits against the curve."""

import numpy as np
import pytest
import torch

import scalar_sae as ss
from scalar_sae.errors import UserError
from scalar_sae.scoring.pair import read
from scalar_sae.scoring.rankings import order
from tests.helpers import tiny_pair
from tests.reference import scorer

LEAVE_ONE_OUT = "leave_one_out"
TOKENS = torch.randint(32, (3, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block", ["ff_block.0", "transformer_block.0"])
def test_the_strongest_edges_are_those_of_the_dense_matrix(block: str):
    pair = tiny_pair(block)
    dense = sum(scorer.leave_one_out(pair, prompt) for prompt in read(pair, TOKENS))
    dense = (dense / TOKENS.numel()).sqrt()
    edges = ss.rank_edges(pair, TOKENS, LEAVE_ONE_OUT)
    rows = edges.top(25)
    strongest = dense.flatten().argsort(descending=True)[:25]
    assert [(row["up"], row["down"]) for row in rows] == [(int(i) // 20, int(i) % 20) for i in strongest]
    weights = [row["weight"] for row in rows]
    np.testing.assert_allclose(weights, dense.flatten()[strongest], rtol=1e-3)
    torch.testing.assert_close(edges.scores, dense, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("chunk", [7, 2**20])
@pytest.mark.parametrize("seed", [0, 5])
def test_the_strongest_edges_are_those_that_a_curve_keeps_first(chunk: int, seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(order, "_CHUNK", chunk)
    scores = torch.randint(-2, 4, (9, 11), generator=torch.Generator().manual_seed(seed)).float()  # most tie
    counts = np.arange(100)
    keep_index = order.keep_indices(scores, counts, seed)
    for n in (0, 1, 10, 98, 99, 200):
        found = order.strongest(scores, n, seed)
        assert [int(keep_index[i, j]) for i, j in found.tolist()] == list(range(1, min(n, 99) + 1))


def test_ranked_edges_know_how_many_there_are():
    edges = ss.rank_edges(tiny_pair("ff_block.0"), TOKENS.to(torch.uint8), LEAVE_ONE_OUT)
    n = int((edges.scores > 0).sum())
    assert repr(edges) == f"RankedEdges(ff_block.0 by {LEAVE_ONE_OUT}: {n} of 480 edges above 0)"
    assert len(edges.top(1000)) == 480
    assert edges.circuit(37).n_edges == 37
    with pytest.raises(UserError, match="481 edges"):
        edges.circuit(481)
    with pytest.raises(UserError, match=f"unknown ranking.*{LEAVE_ONE_OUT}"):
        ss.rank_edges(edges.pair, TOKENS, "nothing")


def test_a_ranking_that_does_not_fit_is_refused_and_its_progress_is_told():
    pair, done = tiny_pair("ff_block.0"), []
    with pytest.raises(UserError, match="memory"):
        ss.rank_edges(pair, TOKENS, memory=1e-6)
    assert done == []
    ss.rank_edges(pair, TOKENS, on_progress=done.append)
    assert sum(done) == pytest.approx(len(TOKENS))
