"""Comparisons against ratios worked out by hand, on curves that are made up."""

import numpy as np
import pytest

from scalar_sae.benchmark import scores
from scalar_sae.benchmark.compare import at_matched_fidelity, ratios
from scalar_sae.errors import UserError
from scalar_sae.results import Curves, Floor, PromptCurves, Record

COUNTS = np.unique(np.floor(2.0 ** (np.arange(81) / 8)).astype(int) * (np.arange(81) > 0))


def record(block: str, method: str, edges_90: float, n_edges: int = 1000, floor: float = 0.1, seed: int = 0) -> Record:
    """Recovery that is a straight line in log n up to 100 % at `edges_90 / 0.9` decades, noisy over 8 prompts."""
    noise = 1 + 0.2 * np.random.default_rng(1).random(8)
    slope = 0.9 / np.log(edges_90)
    recovered = np.clip(slope * np.log(np.maximum(COUNTS, 1)), 0, 1)
    kl = 2.0 * (1 - recovered)[:, None] * noise
    curves = Curves(kl, kl, kl, kl, floor_kl=floor * noise, floor_ce=floor * noise)
    found = scores.every_score(COUNTS, curves, 1000, n_edges, np.arange(8)[None])
    q = ("50", "90", "99")
    return Record(
        block=block, method=method, ranking="ablation", seed=seed, n_up=10, n_down=n_edges // 10, n_edges=n_edges,
        n_live_edges=1000, edges=COUNTS.tolist(), kl_model=[0.0], kl_circuit=[0.0], live_edges=[0.0], l0_down=[0.0],
        absolute=float(found["absolute"][0]), relative=float(found["relative"][0]), pure=0.0,
        edges_at=dict.fromkeys(q, 1.0), live_edges_at=dict.fromkeys(q, 1.0), dip=dict.fromkeys(q, 0.0), log_area=0.0,
        floor=Floor(kl=floor, ce_increase=floor), ci={}, prompts=PromptCurves.of(curves), versions={}, seconds=1.0,
        config={"prompts": 8, "context": 4}, data={"fingerprint": "f", "scored_on": "s"},
    )  # fmt: skip


def test_ratios_and_their_geometric_mean():
    edges = {"ff_block.0": (20, 40), "ff_block.1": (50, 25)}
    methods = ("topk", "other")
    found = ratios(
        [record(block, m, e) for block, both in edges.items() for m, e in zip(methods, both, strict=True)], "topk"
    )
    by_block = {ratio.block: ratio for ratio in found}
    assert by_block["ff_block.0"].value == pytest.approx(2, rel=0.05)
    assert by_block["ff_block.1"].value == pytest.approx(0.5, rel=0.05)
    product = by_block["ff_block.0"].value * by_block["ff_block.1"].value
    assert by_block["all ff_block"].value == pytest.approx(product**0.5)
    assert all(ratio.paired for ratio in found)


def test_a_method_against_a_copy_of_itself_is_exactly_1_when_prompts_are_paired():
    (ratio,) = ratios([record("ff_block.0", "topk", 30), record("ff_block.0", "copy", 30)], "topk")
    assert ratio.value == pytest.approx(1, abs=1e-12)
    assert ratio.interval == pytest.approx((1, 1), abs=1e-12)


def test_the_relative_score_of_a_wider_copy_is_the_do_nothing_value():
    (ratio,) = ratios([record("ff_block.0", "topk", 30), record("ff_block.0", "wide", 30, 2000)], "topk", "relative")
    assert ratio.value == pytest.approx(0.5)
    assert ratio.do_nothing == 0.5
    (ratio,) = ratios([record("ff_block.0", "topk", 30), record("ff_block.0", "wide", 30, 2000)], "topk", "absolute")
    assert ratio.do_nothing is None


def test_other_prompts_are_not_paired():
    (ratio,) = ratios([record("ff_block.0", "topk", 30), record("ff_block.0", "b", 30, seed=1)], "topk")
    assert not ratio.paired


def test_matched_fidelity_interpolates_along_the_family():
    family = [record("ff_block.0", f"new-k{k}", edges, floor=floor) for k, edges, floor in
              ((5, 20, 0.3), (10, 40, 0.2), (20, 90, 0.05))]  # fmt: skip
    (ratio,) = at_matched_fidelity([record("ff_block.0", "topk", 30, floor=0.25), *family], "topk")
    assert ratio.method == "new"
    assert ratio.value == pytest.approx((20 * 40) ** 0.5 / 30, rel=0.06)
    with pytest.raises(UserError, match="no family"):
        at_matched_fidelity([record("ff_block.0", "topk", 30, floor=0.5), *family], "topk")


def test_a_score_that_is_never_reached_has_no_finite_ratio():
    lost = record("ff_block.0", "lost", 30)
    flat = [[1.0] * len(row) for row in lost.prompts.kl_circuit]
    lost = lost.model_copy(update={"prompts": lost.prompts.model_copy(update={"kl_circuit": flat})})
    (ratio,) = ratios([record("ff_block.0", "topk", 30), lost], "topk")
    assert ratio.value == float("inf")
    assert ratio.interval is None


def test_what_cannot_be_compared_is_named():
    one = record("ff_block.0", "topk", 30)
    with pytest.raises(UserError, match=r"unknown baseline 'topc'.*did you mean 'topk'"):
        ratios([one], "topc")
    with pytest.raises(UserError, match="unknown score 'edges'"):
        ratios([one, record("ff_block.0", "b", 30)], "topk", "edges")
    with pytest.raises(UserError, match="several records of one block and method"):
        ratios([one, one], "topk")
