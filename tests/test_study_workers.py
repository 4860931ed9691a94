"""Two workers make the study that one process makes."""

from pathlib import Path

import pytest
import yaml

from scalar_sae.records.results import Results
from tests.forks import Forks
from tests.test_study import scalar

PRESET = {
    "train": {
        "tokens": 1024,
        "batch_tokens": 256,
        "buffer_tokens": 1024,
        "warmup_steps": 1,
        "saes": [{"method": "topk", "sites": ["resid_mid.0", "resid_post.0"], "expansion": 1}],
    },
    "score": {
        "rankings": {"leave_one_out_with_prior": 2, "leave_one_out": 2, "fisher": 2},
        "prompts": 2,
        "context": 16,
        "edges": "0,1,16,256,4096",
        "controls": [],
    },
}


KEYS = [("ff_block.0", "topk", ranking, None) for ranking in sorted(PRESET["score"]["rankings"])]


def test_two_workers_make_what_one_makes(tmp_path: Path, forks: Forks):
    preset = tmp_path / "small.yaml"
    preset.write_text(yaml.safe_dump(PRESET))
    program = "from scalar_sae.cli import main; main()"
    two = ["quickstart", "--preset", preset, "--out", tmp_path / "two"]
    ends = forks.ends(program, *two, n_workers=2)
    assert [(end.code, end.out.count("Report:")) for end in ends] == [(0, 1), (0, 0)], "the first worker alone reports"
    scalar("quickstart", "--preset", preset, "--out", tmp_path / "one")
    names = [{path.name for path in (tmp_path / run).iterdir()} for run in ("one", "two")]
    assert names[0] == names[1] | {"explorer"}
    one, other = (Results.read(tmp_path / run / "results.json") for run in ("one", "two"))
    assert [record.key for record in one.records] == [record.key for record in other.records] == KEYS
    assert one.records[0].absolute == pytest.approx(other.records[0].absolute, rel=1e-2)
    assert [sae.fvu for sae in one.saes] == [pytest.approx(sae.fvu, rel=1e-3) for sae in other.saes]

    (tmp_path / "two" / "results.json").unlink()
    forks.run(program, *two)
    alone = Results.read(tmp_path / "two" / "results.json")
    for shared, by_one in zip(other.records, alone.records, strict=True):  # two records a worker each, one by prompts
        assert shared.model_dump(exclude={"seconds"}) == by_one.model_dump(exclude={"seconds"})
