"""`python -m benchmarks.gpu` in small on a CPU: every section runs to its end, and one that fails stops no other."""

import contextlib
import json
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from benchmarks.gpu.__main__ import SECTIONS, main
from benchmarks.gpu.section import Where, written

ROOT = Path(__file__).parents[1]


@pytest.fixture
def _precision_of_products():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_precision_of_products")
@pytest.mark.parametrize("name", sorted(set(SECTIONS) - {"tests", "smollm2"}))
def test_a_section_finds_something_on_a_cpu(name: str, tmp_path: Path):
    into = tmp_path / "found.json"
    written(SECTIONS[name], Where("cpu", True, tmp_path, None, 100.0), into)
    found = json.loads(into.read_text())
    times = [value for what, value in found.items() if what.endswith(("(s)", "(ms)"))]
    assert times or name == "precision"
    assert all(value > 0 for value in times)
    if name in ("ff_block", "transformer_block"):
        assert found["largest difference from it"] < 1e-4
    if name == "precision":
        assert found["ff_block.1, TF32, log_area in float32's interval"]  # a CPU has no TF32: the same numbers


def gpu(out: Path, *arguments: str) -> tuple[int | str | None, dict]:
    """The command, in this process; each section runs in a process of its own."""
    with (
        mock.patch.object(sys, "argv", ["gpu", "--small", "--out", str(out), *arguments]),
        contextlib.chdir(ROOT),
        pytest.raises(SystemExit) as end,
    ):
        main()
    return end.value.code, json.loads((out / "gpu.json").read_text())["sections"]


def test_a_section_that_fails_is_noted_and_the_others_go_on(tmp_path: Path):
    """The rehearsal of `smollm2` is a run of the command line, which computes on a device of its own choice."""
    code, sections = gpu(tmp_path, "--device", "nowhere", "--only", "ff_block,steps")
    assert code == 1
    for name in ("ff_block", "steps"):
        assert sections[name]["state"] == "failed"
        assert "nowhere" in " ".join(sections[name]["error"])


def test_smollm2_is_rehearsed_from_preset_to_report_and_done_sections_are_kept(tmp_path: Path):
    (tmp_path / "gpu.json").write_text(
        '{"sections": {"wide": {"state": "done", "seconds": 1.0, "found": {"edges": 7}}}}'
    )
    code, sections = gpu(tmp_path, "--device", "cpu", "--only", "smollm2")
    assert code == 0, sections
    assert sections["wide"]["found"] == {"edges": 7}
    found = sections["smollm2"]["found"]
    assert found["report (s)"] >= found["SAEs measured (s)"] >= found["SAEs trained (s)"] > 0
    assert (tmp_path / "smollm2" / "run" / "report.html").is_file()
    assert {"ff_block.1, topk, edges@90", "transformer_block.1, batch_topk, edges@90"} <= set(found)
