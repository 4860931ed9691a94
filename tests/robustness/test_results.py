"""A results file is checked when it is read, and written without losing what others wrote into it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalar_sae.errors import UserError
from scalar_sae.records.checks import check
from scalar_sae.records.results import Results
from scalar_sae.records.sae_results import SaeReading
from tests.scoring.test_compare import record
from tests.test_study import scalar


def whole() -> Results:
    """Two records that compare."""
    return Results(records=[record("ff_block.0", method, 30) for method in ("topk", "other")])


def _cut(value: Any) -> Any:
    return value[:-1]


def _emptied(prompts: Any) -> Any:
    return {name: list[Any]() for name in prompts}


def _cut_in_the_last_row(prompts: Any) -> Any:
    return {**prompts, "kl_model": [*prompts["kl_model"][:-1], list[Any]()]}


DAMAGE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    **{f"{name} is short": (name, _cut) for name in ("kl_model", "kl_circuit", "live_edges", "l0_down")},
    **{f"{name} is empty": (name, lambda _: []) for name in ("edges", "kl_model", "kl_circuit")},
    "no possible edges": ("n_edges", lambda _: 0),
    "no latents": ("n_up", lambda _: 0),
    "a negative seed": ("seed", lambda _: -1),
    "edges fall": ("edges", lambda edges: edges[::-1]),
    "edges begin at 1": ("edges", lambda edges: [1, *edges[1:]]),
    "a quantile is missing": ("edges_at", lambda at: {"90": at["90"]}),
    "a dip is missing": ("dip", lambda _: {}),
    "an interval is missing": ("ci", lambda ci: {key: ci[key] for key in ci if key != "log_area"}),
    "a band is short": ("ci", lambda ci: {**ci, "recovery": ci["recovery"][:-1]}),
    "a band is no list": ("ci", lambda ci: {**ci, "recovery": None}),
    "an interval is a list": ("ci", lambda ci: {**ci, "log_area": ci["recovery"]}),
    "an interval has three ends": ("ci", lambda ci: {**ci, "log_area": [0, 1, 2]}),
    "a prompt is missing": ("prompts", lambda p: {**p, "floor_kl": p["floor_kl"][:-1]}),
    "no prompts": ("prompts", _emptied),
    "a prompt's curve is short": ("prompts", _cut_in_the_last_row),
    "a setting is missing": ("config", lambda _: {}),
    "the text is not named": ("data", lambda _: {}),
    "text for a number": ("pure", lambda _: "0.1"),
    "a list for a number": ("pure", lambda _: [0.1]),
    "null for a number": ("pure", lambda _: None),
    "true for a number": ("n_edges", lambda _: True),
    "another control": ("control", lambda _: "nope"),
}


@pytest.mark.parametrize("verb", ["report", "compare", "ls"])
@pytest.mark.parametrize(("field", "change"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_record_is_refused_by_name(tmp_path: Path, verb: str, field: str, change: Callable[[Any], Any]):
    path = tmp_path / "results.json"
    whole().write(path)
    content = json.loads(path.read_text())
    content["records"][1][field] = change(content["records"][1][field])
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"^[^\n]*results\.json: records\.1\.[^\n]*{field}[^\n]*; restore it"):
        Results.read(path)
    done = scalar(verb, tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"records.1.{field}" in done.stderr
    assert path.read_bytes() == before
    assert not (tmp_path / "report.html").exists()


def test_what_a_record_says_of_its_text_is_checked(tmp_path: Path):
    data = {"source": "a.txt", "prompts": {"ranking": "r", "scoring": "s"}, "seen": "held out"}
    wrong: list[tuple[str, str, Any]] = [("config", "context", value) for value in ("x", None, 0, True, [])]
    wrong += [("data", name, value) for name in ("corpus", "source", "fingerprint") for value in (None, 5, {})]
    wrong += [("data", "seen", value) for value in ("maybe", {}, 5)]
    wrong += [("data", "prompts", value) for value in (None, {}, [], "x", {"scoring": 5})]
    whole().write(tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    content["records"][1]["data"] |= data
    (tmp_path / "whole.json").write_text(json.dumps(content))
    assert Results.read(tmp_path / "whole.json").records[1].data["seen"] == "held out"
    for field, name, value in wrong:
        changed = json.loads(json.dumps(content))
        changed["records"][1][field][name] = value
        (tmp_path / "results.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=rf"^[^\n]*results\.json: records\.1\.{field}\.{name}: [^\n]*; restore it"):
            Results.read(tmp_path / "results.json")


def test_a_whole_file_is_read_back(tmp_path: Path):
    path = tmp_path / "results.json"
    whole().write(path)
    assert Results.read(path).model_dump(exclude={"written_by"}) == whole().model_dump(exclude={"written_by"})
    assert json.loads(path.read_text())["written_by"].startswith("scalar-sae ")


def test_a_later_schema_is_named(tmp_path: Path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"schema_version": 99, "written_by": "scalar-sae 3.0", "news": []}))
    for verb in ("report", "compare"):
        done = scalar(verb, tmp_path, check=False)
        assert done.returncode == 2
        assert "written by scalar-sae 3.0 (schema_version 99), this is scalar-sae" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("version", [2, 1, 0, -1])
def test_an_earlier_schema_is_named_with_what_to_do(tmp_path: Path, version: int):
    path = tmp_path / "results.json"
    whole().write(path)
    content = json.loads(path.read_text()) | {"schema_version": version, "written_by": "scalar-sae 0.0.1"}
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    for verb in ("report", "compare", "ls"):
        done = scalar(verb, tmp_path, check=False)
        assert done.returncode == 2
        assert f"written by scalar-sae 0.0.1 (schema_version {version}), this is scalar-sae" in done.stderr
        assert done.stderr.endswith("; move it away, score and measure again\n")
        assert done.stderr.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("saes", {"density": [1]}),
        ("saes", {"site": "nowhere"}),
        ("saes", {"ce_recovered": {"zero": 1.0}}),
        ("saes", {"d_sae": 0}),
        ("seeds", {"appearances": [0, 0]}),
        ("seeds", {"pairs": []}),
        ("seeds", {"runs": ["a"]}),
        ("probes", {"labels": []}),
        ("duplicates", {"first": "nowhere"}),
        ("spliced", {"kl_recovered": {}}),
    ],
)
def test_other_records_are_checked_too(name: str, content: dict[str, Any]):
    models = {
        "saes": dict(method="m", site="resid_mid.0", d_sae=2, activation="", l0=1, loss=1, fvu=1, fvu_token_mean=1,
                     fvu_residual_variance=1, cosine=1, shrinkage=1, ce_increase=1, kl=1,
                     ce_recovered={"zero": 1, "mean": 1}, kl_recovered={"zero": 1, "mean": 1}, dead=0, rarest=0,
                     density=[0] * 12, dense={"0.01": 0, "0.1": 0, "0.5": 0}, l0_per_chunk=[], n_tokens=1, n_prompts=1,
                     ci={}),
        "spliced": dict(method="m", sites=["resid_mid.0"], ce_increase=1, kl=1, ce_recovered={"zero": 1, "mean": 1},
                        kl_recovered={"zero": 1, "mean": 1}, n_tokens=1, n_prompts=1, ci={}),
        "seeds": dict(method="m", site="resid_mid.0", runs=["a", "b"], pw_mcc=1, null=0, rescaled=1, pairs=[MCC],
                      absolute_pairs=[MCC], threshold=0.7, same_partner=True, shared=1, shared_null=0,
                      appearances=[1, 1], n_tokens=1),
        "duplicates": dict(method="m", first="resid_mid.0", later="resid_mid.1", n=1, threshold=0.9, share=0,
                           mean_nearest=0),
        "probes": dict(method="m", site="resid_mid.0", task="t", tpp=None, scr=[], n_rows=1,
                       labels=[dict(label="l", n=1, dense=1, sparse={1: 1.0})]),
    }  # fmt: skip
    check(Results.model_validate({name: [models[name]]}))
    with pytest.raises(UserError, match=rf"^{name}\.0\.{next(iter(content))}"):
        check(Results.model_validate({name: [models[name] | content]}))


MCC = dict(absolute=False, n_a=1, n_b=1, mcc=1, short=0, null=0, rescaled=1, max_cosine=1, max_cosine_null=0,
           max_cosine_rescaled=1, by_frequency=[])  # fmt: skip


def test_what_another_process_wrote_meanwhile_stays(tmp_path: Path):
    path = tmp_path / "results.json"
    whole().write(path)
    mine = Results.read(path)
    reading = SaeReading(method="topk", site="resid_mid.0", rule_f1={}, judged=[])

    def put_reading(results: Results) -> None:
        results.reading = [reading]

    Results.update(path, put_reading)  # by another process, after this one has read the file
    more = record("ff_block.1", "topk", 30)
    mine.put([more])
    Results.update(path, lambda results: results.put([more]))
    found = Results.read(path)
    assert found.reading == [reading]
    assert [one.block for one in found.records] == ["ff_block.0", "ff_block.0", "ff_block.1"]
    Results.update(path, lambda results: results.put([more]))
    assert Results.read(path).records == found.records, "a record of the same key is replaced"
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


WRITER = """
import sys; from pathlib import Path
from scalar_sae.records.results import Results
from scalar_sae.records.sae_results import SaeReading
for number in range(8):
    reading = SaeReading(method=sys.argv[2], site=f"resid_mid.{number}", rule_f1={}, judged=[])
    Results.update(Path(sys.argv[1]), lambda results: results.reading.append(reading))
"""


def test_no_record_is_lost_between_processes_that_write_at_once(tmp_path: Path):
    path = tmp_path / "results.json"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in ("a", "b", "c")]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    found = {(one.method, one.site) for one in Results.read(path).reading}
    assert found == {(name, f"resid_mid.{number}") for name in "abc" for number in range(8)}


def test_a_damaged_file_is_not_updated(tmp_path: Path):
    path = tmp_path / "results.json"
    path.write_text('{"records": ')
    with pytest.raises(UserError, match="damaged"):
        Results.update(path, lambda results: None)
    assert path.read_text() == '{"records": '
