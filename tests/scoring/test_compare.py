"""Comparisons against ratios worked out by hand, on curves that are made up."""

import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from scipy import stats

from scalar_sae.cli.tables import print_records
from scalar_sae.errors import UserError
from scalar_sae.records.results import Curves, Floor, PromptCurves, Record, Results, Rise
from scalar_sae.scoring import metrics
from scalar_sae.scoring.compare import method_scores, ratios
from scalar_sae.scoring.intervals import ends, resamples, widen
from scalar_sae.scoring.matched import at_matched_fidelity
from scalar_sae.scoring.resampled import error_of_reseeding, mean_over_blocks
from tests.test_study import scalar

FAITHFUL: dict[str, Any] = {
    name: dict.fromkeys(("50", "80", "90"), 1.0) for name in ("faithful_at", "faithful_from", "faithful_live_at")
} | {"unfaithful_area": 0.5}
COUNTS = np.unique(np.floor(2.0 ** (np.arange(81) / 8)).astype(int) * (np.arange(81) > 0))


def record(block: str, method: str, edges_90: float, n_edges: int = 1000, floor: float = 0.1, seed: int = 0) -> Record:
    """Recovery that is a straight line in log n up to 100 % at `edges_90 / 0.9` decades, noisy over 24 prompts. The
    mean costs half of what no edges cost, so faithfulness is 80 % where recovery is 90 %.
    """
    noise = 1 + 0.2 * np.random.default_rng(1).random(24)
    slope = 0.9 / np.log(edges_90)
    recovered = np.clip(slope * np.log(np.maximum(COUNTS, 1)), 0, 1)
    kl = 2.0 * (1 - recovered)[:, None] * noise
    curves = Curves(
        kl,
        kl,
        kl,
        kl,
        floor_kl=floor * noise,
        floor_ce=floor * noise,
        kl_mean=noise,
        n_tokens=np.full(24, 4.0),
        n_targets=np.full(24, 3.0),
    )
    found = metrics.every_score(COUNTS, curves, 1000, n_edges, np.arange(24)[None])
    q = ("50", "90", "99")
    ci: dict[str, Any] = dict.fromkeys(found, None) | dict.fromkeys(
        ("kl_model", "kl_circuit", "recovery", "faithfulness"), [(0.0, 1.0)] * len(COUNTS)
    )
    mean = kl.mean(1).tolist()
    return Record(
        block=block, method=method, ranking="leave_one_out", seed=seed, n_up=10, n_down=n_edges // 10, n_edges=n_edges,
        n_live_edges=1000, n_tokens=96, edges=COUNTS.tolist(), kl_model=mean, kl_circuit=mean, live_edges=mean,
        l0_down=mean,
        absolute=float(found["absolute"].value[0]), relative=float(found["relative"].value[0]), pure=0.0,
        edges_at=dict.fromkeys(q, 1.0), live_edges_at=dict.fromkeys(q, 1.0), dip=dict.fromkeys(q, 0.0), log_area=0.0,
        lowest_recovery=0.0, largest_rise=Rise(mean=0.0, most=0.0),
        floor=Floor(kl=floor, ce_increase=floor), kl_mean=float(noise.mean()), **FAITHFUL, ci=ci,
        prompts=PromptCurves.of(curves), versions={}, seconds=1.0,
        config={"prompts": 24, "context": 4, "edges": "full", "rank_prompts": 2},
        data={"corpus": "c", "fingerprint": "f", "ranked_on": "r", "scored_on": "s"},
    )  # fmt: skip


def test_ratios_and_their_geometric_mean():
    edges = {"ff_block.0": (20, 40), "ff_block.1": (50, 25)}
    methods = ("topk", "other")
    found = ratios(
        [record(block, m, e) for block, both in edges.items() for m, e in zip(methods, both, strict=True)], "topk"
    ).rows
    by_block = {ratio.block: ratio for ratio in found}
    assert by_block["ff_block.0"].value == pytest.approx(2, rel=0.05)
    assert by_block["ff_block.1"].value == pytest.approx(0.5, rel=0.05)
    product = by_block["ff_block.0"].value * by_block["ff_block.1"].value
    assert by_block["all ff_block"].value == pytest.approx(product**0.5)
    assert all(ratio.paired for ratio in found)


def test_a_method_against_a_copy_of_itself_is_exactly_1_and_known_to_a_step_of_the_grid():
    records = [record("ff_block.0", "topk", 30), record("ff_block.0", "copy", 30)]
    (ratio,) = ratios(records, "topk").rows
    assert ratio.value == pytest.approx(1, abs=1e-12)
    before, after = step_at(30)
    assert (before, after) == (29, 32)
    assert ratio.interval == pytest.approx((before / after, after / before))
    (ratio,) = ratios(records, "topk", "floor.kl").rows
    assert ratio.interval == pytest.approx((1, 1), abs=1e-12), "prompts are paired, and a floor has no grid"


def step_at(edges_90: float) -> tuple[int, int]:
    """The counts between which the made-up recovery crosses 90 %."""
    return int(COUNTS[edges_90 > COUNTS].max()), int(COUNTS[edges_90 <= COUNTS].min())


def test_a_ratio_has_the_grid_error_of_both_and_over_blocks_of_all():
    edges = {"ff_block.0": (21, 44), "ff_block.1": (50, 30)}
    methods = ("topk", "other")
    found = ratios(
        [record(block, m, e) for block, both in edges.items() for m, e in zip(methods, both, strict=True)], "topk"
    ).rows
    ends = []
    for block, (base, mine) in edges.items():
        (ratio,) = (one for one in found if one.block == block)
        ends.append((step_at(mine)[0] / step_at(base)[1], step_at(mine)[1] / step_at(base)[0]))
        assert ratio.interval == pytest.approx(ends[-1])
    assert found[-1].interval == pytest.approx(tuple((a * b) ** 0.5 for a, b in zip(*ends, strict=True)))


def test_matched_fidelity_has_the_grid_error_too():
    """Half way in floor between two members: the geometric mean of their ends."""
    family = [
        record("ff_block.0", f"new-k{k}", edges, floor=floor) for k, edges, floor in ((5, 21, 0.3), (10, 44, 0.2))
    ]
    (ratio,) = at_matched_fidelity([record("ff_block.0", "topk", 30, floor=0.25), *family], "topk").rows
    low, high = ((step_at(21)[i] * step_at(44)[i]) ** 0.5 / step_at(30)[1 - i] for i in (0, 1))
    assert ratio.interval == pytest.approx((low, high), rel=1e-6)


def test_the_relative_score_of_a_wider_copy_is_the_do_nothing_value():
    (ratio,) = ratios(
        [record("ff_block.0", "topk", 30), record("ff_block.0", "wide", 30, 2000)], "topk", "relative"
    ).rows
    assert ratio.value == pytest.approx(0.5)
    assert ratio.do_nothing == pytest.approx(0.5)
    (ratio,) = ratios(
        [record("ff_block.0", "topk", 30), record("ff_block.0", "wide", 30, 2000)], "topk", "absolute"
    ).rows
    assert ratio.do_nothing is None


def test_other_prompts_are_not_paired():
    (ratio,) = ratios([record("ff_block.0", "topk", 30), record("ff_block.0", "b", 30, seed=1)], "topk").rows
    assert not ratio.paired


def test_matched_fidelity_interpolates_along_the_family():
    family = [record("ff_block.0", f"new-k{k}", edges, floor=floor) for k, edges, floor in
              ((5, 20, 0.3), (10, 40, 0.2), (20, 90, 0.05))]  # fmt: skip
    (ratio,) = at_matched_fidelity([record("ff_block.0", "topk", 30, floor=0.25), *family], "topk").rows
    assert ratio.method == "new"
    assert ratio.value == pytest.approx((20 * 40) ** 0.5 / 30, rel=0.06)
    with pytest.raises(UserError, match="no family"):
        at_matched_fidelity([record("ff_block.0", "topk", 30, floor=0.5), *family], "topk")


def test_over_blocks_a_matched_family_has_its_geometric_mean_and_do_nothing_value():
    records = [record(f"ff_block.{i}", "topk", edges, floor=0.2) for i, edges in enumerate((30, 50))]
    records += [record(f"ff_block.{i}", f"new-k{k}", edges, n_edges, floor) for i, n_edges in enumerate((2000, 4000))
                for k, edges, floor in ((5, 20, 0.3), (10, 80, 0.1))]  # fmt: skip
    found = {ratio.block: ratio for ratio in at_matched_fidelity(records, "topk").rows}
    assert list(found) == ["ff_block.0", "ff_block.1", "all ff_block"]
    product = found["ff_block.0"].value * found["ff_block.1"].value
    assert found["all ff_block"].value == pytest.approx(product**0.5)
    assert found["all ff_block"].value == pytest.approx((20 * 80) ** 0.5 / (30 * 50) ** 0.5, rel=0.06)
    assert found["all ff_block"].do_nothing is None
    relative = [ratio.do_nothing for ratio in at_matched_fidelity(records, "topk", "relative").rows]
    assert relative == pytest.approx([1 / 2, 1 / 4, 8**-0.5])


def seeds(method: str, *edges: float) -> list[Record]:
    return [record("ff_block.0", method, e).model_copy(update={"hashes": {"up": f"{e}"}}) for e in edges]


def test_several_files_of_one_method_are_seeds():
    """Every prompt has the same recovery, so the interval is the grid's, widened by Student's t over the seeds."""
    found = ratios([*seeds("topk", 30), *seeds("new", 21, 30, 44)], "topk").rows
    logs = np.log([found_edges(e) / found_edges(30) for e in (21, 30, 44)])
    error = stats.t.ppf(0.975, 2) * logs.std(ddof=1) / 3**0.5
    least, most = (np.log([step_at(e)[end] / step_at(30)[1 - end] for e in (21, 30, 44)]).mean() for end in (0, 1))
    assert found[0].value == pytest.approx(np.exp(logs.mean()))
    by_hand = (logs.mean() - np.hypot(logs.mean() - least, error), logs.mean() + np.hypot(most - logs.mean(), error))
    assert found[0].interval == pytest.approx(tuple(np.exp(by_hand)))
    (ratio,) = ratios([*seeds("topk", 25, 30, 40), *seeds("new", 25, 30, 40)], "topk").rows
    assert ratio.value == pytest.approx(1)


def test_the_error_over_seeds_of_a_ratio_over_blocks_is_that_of_welch():
    """Against scipy's t-test of two samples with unequal variances, at one block; with two blocks it is averaged."""
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=4), 3 * generator.normal(size=3)
    parts = np.array([[a.var(ddof=1) / 4, 3.0], [b.var(ddof=1) / 3, 2.0]])
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert error_of_reseeding(parts) == pytest.approx((high - low) / 2)
    twice = mean_over_blocks([parts, parts])
    assert twice[:, 0].sum() == pytest.approx(parts[:, 0].sum() / 2)
    assert error_of_reseeding(twice) < error_of_reseeding(parts)


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_intervals_over_seeds_and_prompts_hold_what_they_promise(n_seeds: int):
    """Seeds and prompts as noisy as each other, as two recipes of TopK are with twenty prompts."""
    generator, held, n_trials = np.random.default_rng(n_seeds), 0, 400
    for _ in range(n_trials):
        effects = generator.normal(0, 0.3, (n_seeds, 1)) + generator.normal(0, 1.3, (1, 20))
        draws = resamples(20, int(generator.integers(2**31)), 400)
        means = effects.mean(0)[draws].mean(1)
        parts = np.array([[effects.mean(1).var(ddof=1) / n_seeds, n_seeds - 1.0]])
        low, high = widen(ends(means, means, 20), float(effects.mean()), error_of_reseeding(parts))
        held += low <= 0 <= high
    assert 0.93 <= held / n_trials <= 0.995


def found_edges(edges_90: float) -> float:
    """Where the made-up recovery crosses 90 %, between two counts in a straight line of log n."""
    recovered = np.clip(0.9 / np.log(edges_90) * np.log(np.maximum(COUNTS, 1)), 0, 1)
    return float(np.exp(np.interp(0.9, recovered, np.log(np.maximum(COUNTS, 1)))))


def lost(method: str) -> Record:
    """Recovers nothing."""
    one = record("ff_block.0", method, 30)
    flat = [[1.0] * len(row) for row in one.prompts.kl_circuit]
    return one.model_copy(update={"prompts": one.prompts.model_copy(update={"kl_circuit": flat, "kl_model": flat})})


def family(block: str, floors: dict[int, float]) -> list[Record]:
    return [record(block, f"new-k{k}", 10 + 3 * k, floor=floor) for k, floor in floors.items()]


def test_the_score_of_a_method_is_the_geometric_mean_over_seeds_and_blocks():
    records = [record("ff_block.0", "topk", 20), record("ff_block.1", "topk", 80), record("resid_pre.0", "topk", 30)]
    rows = {row.block: row for row in method_scores(records, "edges_at.90")}
    assert set(rows) == {"ff_block.0", "ff_block.1", "all ff_block", "resid_pre.0"}
    assert rows["ff_block.0"].value == pytest.approx(found_edges(20))
    assert rows["all ff_block"].value == pytest.approx((found_edges(20) * found_edges(80)) ** 0.5)
    assert rows["ff_block.0"].interval == pytest.approx(step_at(20)), "every prompt has the same recovery"
    [of_seeds] = method_scores(seeds("topk", 20, 80), "edges_at.90")
    assert (of_seeds.value, of_seeds.n_seeds) == (pytest.approx((found_edges(20) * found_edges(80)) ** 0.5), 2)
    assert of_seeds.interval is not None
    low, high = of_seeds.interval
    assert low is not None
    assert low < step_at(20)[0], "two seeds say little"
    assert high is None, "more than all edges"


def test_a_score_that_one_seed_never_reaches_is_never():
    [of_seeds] = method_scores(seeds("topk", 20, 1e9), "edges_at.90")
    assert of_seeds.value is None
    assert of_seeds.interval is None or of_seeds.interval[1] is None


def test_a_block_whose_family_does_not_reach_the_floor_is_named_once():
    records = [record(f"ff_block.{n}", "topk", 30, floor=0.2) for n in range(4)]
    records += family("ff_block.0", {5: 0.3, 10: 0.1}) + family("ff_block.1", {5: 0.5, 10: 0.4})
    records += [*family("ff_block.2", {5: 0.3}), record("ff_block.0", "other", 30), *family("resid_pre.0", {5: 0.3})]
    found = at_matched_fidelity(records, "topk")
    assert [(row.block, row.n_blocks) for row in found.rows] == [("ff_block.0", 1)]
    one, two, three, *rest = sorted(found.left_out)
    assert one.startswith("ff_block.1 of new: floors of 0.4")
    assert two.startswith("ff_block.1 of topk: other has no record there")
    assert three.startswith("ff_block.2 of new: floors of 0.3")
    assert " alone nats do not enclose that of topk, 0.2" in three
    assert rest[-1].startswith("resid_pre.0 of new-k5: topk has no record there")


def test_blocks_without_a_partner_are_named_and_counted():
    records = [record(f"ff_block.{n}", "topk", 30) for n in (0, 1, 2)]
    records += [record(f"ff_block.{n}", "b", 30) for n in (1, 2, 3)]
    found = ratios([*records, record("resid_pre.0", "topk", 30)], "topk")
    assert [(row.block, row.n_blocks) for row in found.rows] == [
        ("ff_block.1", 1),
        ("ff_block.2", 1),
        ("all ff_block", 2),
    ]
    assert found.left_out == ["ff_block.3 of b: topk has no record there", "ff_block.0 of topk: b has no record there"]


def test_resamples_outside_a_family_leave_both_ends_open():
    """Floors that vary from prompt to prompt where the baseline's does not."""
    up = np.arange(24.0) + 1
    near = [with_floors(record("ff_block.0", f"new-k{k}", 30), floors) for k, floors in ((5, up), (10, 1.05 * up))]
    target = with_floors(record("ff_block.0", "topk", 30), np.full(24, 12.8))
    (ratio,) = at_matched_fidelity([target, *near], "topk").rows
    assert np.isfinite(ratio.value)
    assert ratio.interval is None
    wide = [with_floors(one, floors) for one, floors in zip(near, (np.full(24, 1.0), np.full(24, 99.0)), strict=True)]
    (ratio,) = at_matched_fidelity([target, *wide], "topk").rows
    assert ratio.interval is not None


def with_floors(one: Record, floors: np.ndarray) -> Record:
    return one.model_copy(update={"prompts": one.prompts.model_copy(update={"floor_kl": floors.tolist()})})


def test_an_end_beyond_which_resamples_never_reach_the_score_is_open():
    """A third of the prompts recover nothing: in some resamples they are more than half."""
    mine, base = record("ff_block.0", "b", 30), record("ff_block.0", "topk", 30)
    rows = [[2.0 if n % 3 == 0 else kl for n, kl in enumerate(row)] for row in mine.prompts.kl_circuit]
    partly = mine.model_copy(update={"prompts": mine.prompts.model_copy(update={"kl_circuit": rows})})
    (ratio,) = ratios([base, partly], "topk", "edges_at.50").rows
    assert ratio.interval is not None
    low, high = ratio.interval
    assert low is not None
    assert low >= 1
    assert high is None
    (turned,) = ratios(
        [base.model_copy(update={"method": "b"}), partly.model_copy(update={"method": "topk"})], "topk", "edges_at.50"
    ).rows
    assert turned.interval is not None
    assert turned.interval[0] is None
    assert turned.interval[1] == pytest.approx(1 / low)


def test_few_prompts_give_no_interval_and_no_score_at_99():
    short = [few(record("ff_block.0", method, 30), 19) for method in ("topk", "b")]
    (ratio,) = ratios(short, "topk").rows
    assert ratio.interval is None
    assert ratio.few_prompts
    with pytest.raises(
        UserError, match=r"edges_at.99 of ff_block.0 topk: 19 prompts are not enough prompts, it needs 50"
    ):
        ratios(short, "topk", "edges_at.99")


def few(one: Record, n: int) -> Record:
    """The record of its first n prompts."""
    fields = {name: getattr(one.prompts, name) for name in PromptCurves.model_fields}
    cut = {name: [row[:n] for row in rows] if isinstance(rows[0], list) else rows[:n] for name, rows in fields.items()}
    return one.model_copy(update={"prompts": PromptCurves(**cut)})


def test_a_score_that_is_never_reached_has_no_finite_ratio():
    (ratio,) = ratios([record("ff_block.0", "topk", 30), lost("lost")], "topk").rows
    assert ratio.value == float("inf")
    assert ratio.interval is None
    assert not ratio.base_never
    (ratio,) = ratios([lost("topk"), record("ff_block.0", "b", 30)], "topk").rows
    assert ratio.base_never
    assert ratio.interval is None


def test_the_command_says_who_never_gets_there_and_what_there_is(tmp_path: Path):
    path = tmp_path / "results.json"
    Results(records=[lost("topk"), record("ff_block.0", "b", 30)]).write(path)
    assert "baseline never" in scalar("compare", path, "--ranking", "leave_one_out").stdout
    done = scalar("compare", path, "--ranking", "expectd", check=False)
    assert "no records of the ranking 'expectd'; there are leave_one_out" in done.stderr


def test_the_table_of_records_shows_published_scores_and_deep_dips(capsys: pytest.CaptureFixture[str]):
    records = [record("ff_block.0", "topk", 30), record("ff_block.0", "wide", 30, 2000)]
    records[0] = records[0].model_copy(update={"dip": {"50": 0.0, "90": 0.2, "99": 0.0}})
    records = [one.model_copy(update={"ci": {"edges_at.90": None, "faithful_at.80": (3.0, 5.0)}}) for one in records]
    with mock.patch.dict(os.environ, {"COLUMNS": "200"}):
        print_records(records)
        plain = capsys.readouterr().out
        print_records([one.model_copy(update={"config": {"conventions": "published"}}) for one in records])
    assert plain.count("dip") == 1
    assert "dip 0.20" in plain
    assert plain.count("[3, 5]") == 2
    assert plain.index("faithful@80") < plain.index("edges@90")
    assert "pure" not in plain
    topk, wide = (line.split() for line in capsys.readouterr().out.splitlines() if "ff_block" in line)
    assert float(wide[-2]) == pytest.approx(0.5)
    assert float(topk[-2]) == pytest.approx(1)
    assert float(wide[-4]) == pytest.approx(records[1].relative, rel=1e-3)


def test_what_cannot_be_compared_is_named():
    one = record("ff_block.0", "topk", 30)
    with pytest.raises(UserError, match=r"unknown baseline 'topc'.*did you mean 'topk'"):
        ratios([one], "topc")
    with pytest.raises(UserError, match="unknown score 'edges'"):
        ratios([one, record("ff_block.0", "b", 30)], "topk", "edges")
    with pytest.raises(UserError, match="several records of one block and method"):
        ratios([one, one], "topk")
    with pytest.raises(UserError, match=r"floor.ce_increase of ff_block.0 b is -0.\d+: there are ratios of positive"):
        ratios([one, record("ff_block.0", "b", 30, floor=-0.1)], "topk", "floor.ce_increase")
    elsewhere = one.model_copy(update={"hashes": {"lm": "another", "up": "another"}})
    with pytest.raises(UserError, match="not SAEs of several seeds on one model"):
        ratios([one, elsewhere, record("ff_block.0", "b", 30)], "topk")
    with pytest.raises(UserError, match=r"no block in common with topk: it has ff_block.0, the others have ff_block.1"):
        ratios([one, record("ff_block.1", "b", 30)], "topk")
    for setting, mine, other in (("conventions", "exact", "published"), ("ablation", "zero", "mean")):
        records = [
            record("ff_block.0", method, 30).model_copy(update={"config": {setting: value}})
            for method, value in (("topk", mine), ("b", other))
        ]
        for comparison in (ratios, at_matched_fidelity):
            with pytest.raises(UserError, match=f"records with {setting} {mine} and {other} do not compare"):
                comparison(records, "topk")
