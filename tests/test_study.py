"""The whole line as a user runs it: the command, its files, and every way to get it wrong."""

import contextlib
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jsonschema
import pytest
import yaml

from scalar_sae import study
from scalar_sae.cli import main
from scalar_sae.errors import UserError
from scalar_sae.explore.run import load_run
from scalar_sae.explorer.app import Explorer
from scalar_sae.explorer.files import Kept
from scalar_sae.explorer.subject import Subject
from scalar_sae.io import write_text
from scalar_sae.records.results import Results
from scalar_sae.scoring import score as benchmark
from scalar_sae.scoring.curve import measure
from scalar_sae.scoring.rankings.registry import DEFAULT
from scalar_sae.study import StudyConfig, open_run
from tests.forks import Forks

DOCS = Path(__file__).resolve().parents[1] / "docs"

SMALL = {
    "train": {
        "tokens": 1024,
        "batch_tokens": 256,
        "buffer_tokens": 1024,
        "warmup_steps": 1,
        "validations": 0,
        "saes": [
            {"method": "topk", "sites": ["ff_blocks", "residual_stream"], "expansion": 1},
            {"method": "staircase", "name": "staircase-pair", "along": "ff_blocks", "expansion": 1},
            {"method": "staircase", "along": "residual_stream", "expansion": 1},
        ],
    },
    "score": {
        "rankings": {"leave_one_out_with_prior": 1, "published": 1},
        "prompts": 2,
        "context": 16,
        "edges": "0,1,16,256,4096",
    },
}


RAW = "saes=[{method: topk, sites: [mlp_raw.0]}]"
"""A site without a block that the toy model lacks."""
TOPK_ALONE = "train.saes=[{method: topk, sites: [ff_blocks, residual_stream], expansion: 1}]"


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def scalar(*arguments: str | Path, check: bool = True) -> Done:
    """The command line, in this process (a new one takes seconds to import torch)."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["scalar", *map(str, arguments)]),
        mock.patch.dict(os.environ, {"COLUMNS": "300", "TERM": "dumb"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    assert not check or code == 0, err.getvalue()
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preset") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, preset: Path) -> Path:
    out = tmp_path_factory.mktemp("study") / "run"
    scalar("quickstart", "--preset", preset, "--out", out)
    return out


def test_everything_is_there(run: Path):
    names = {path.name for path in run.iterdir()}
    assert names == {"config.yaml", "events.jsonl", "lm", "saes", "results.json", "report.html", "explorer"}
    assert {path.name for path in (run / "saes").iterdir()} == {"topk", "staircase-pair", "staircase"}
    assert len(list((run / "saes").rglob("sae.json"))) == 9 + 8 + 5
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["tokens"] == 1024
    kinds = {json.loads(line)["kind"] for line in (run / "events.jsonl").read_text().splitlines()}
    assert kinds == {"start", "train", "score"}


def test_its_page_need_not_wait_for_the_model(run: Path):
    loaded = threading.Event()

    def load() -> Subject:
        assert loaded.wait(60)
        return Subject.of_run(load_run(run))

    explorer = Explorer(load, Kept(run))
    about = explorer.answer("run", {})
    first = {"pair": about["pairs"][0]["key"], "ranking": about["pairs"][0]["rankings"][0]}
    edges = explorer.answer("map", first)["edges"]
    loaded.set()
    assert len(about["pairs"]) == len(explorer.subject.result().pairs)
    assert edges == explorer.answer("map", first)["edges"]
    assert edges


def test_every_block_method_and_ranking_has_a_record(run: Path):
    results = Results.read(run / "results.json")
    keys = {record.key for record in results.records}
    assert keys == {
        (f"{kind}.{layer}", method, ranking, None)
        for kind, method in (
            ("ff_block", "topk"),
            ("ff_block", "staircase-pair"),
            ("transformer_block", "topk"),
            ("transformer_block", "staircase"),
        )
        for layer in range(4)
        for ranking in ("leave_one_out_with_prior", "published")
    } | {
        ("ff_block.0", "topk", "leave_one_out_with_prior", "padded"),
        ("ff_block.0", "staircase-pair", "leave_one_out_with_prior", "padded"),
        ("transformer_block.0", "staircase", "leave_one_out_with_prior", "padded"),
    }
    for record in results.records:
        assert record.edges == sorted({0, 1, 16, 256, 4096, min(2**18, record.n_edges), record.n_edges})
        assert record.data["corpus"] == "python-stdlib"
        assert record.relative == pytest.approx(record.absolute / record.n_edges)
    assert len(results.saes) == 22
    assert {len(sae.l0_per_chunk) for sae in results.saes if sae.method == "staircase"} == {1, 2, 3, 4, 5}


def test_results_follow_the_documented_schema(run: Path):
    schema = json.loads((DOCS / "results.schema.json").read_text())
    assert schema == Results.model_json_schema(), "docs/results.schema.json is old: python docs/make_schema.py"
    content = json.loads((run / "results.json").read_text())
    jsonschema.validate(content, schema)
    content["records"][0]["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)


def test_the_same_command_again_does_nothing_new(run: Path, preset: Path):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name in ("sae.json", "results.json")}
    scalar("quickstart", "--preset", preset, "--out", run)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_run_whose_text_is_gone_is_refused_with_the_file_that_names_it(run: Path, tmp_path: Path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["train"]["corpus"] = str(tmp_path / "gone.txt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = scalar("train", "--resume", "--out", tmp_path, check=False)
    assert done.returncode == 2
    assert f"{tmp_path / 'config.yaml'}: train.corpus: unknown corpus" in done.stderr


def test_records_of_other_weights_are_not_taken_for_the_runs_own(run: Path, preset: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    path = out / "results.json"
    content = json.loads(path.read_text())
    content["records"][0]["hashes"]["up"] = "0" * 16
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    done = scalar("quickstart", "--preset", preset, "--out", out, check=False)
    assert done.returncode == 2
    assert "was made with other SAEs or another language model" in done.stderr
    assert path.read_bytes() == before


def test_a_run_goes_on_as_its_own_config_says(run: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    scalar("train", "--resume", "--out", tmp_path / "run")
    for path in (run / "saes").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "run" / path.relative_to(run)).read_bytes()


def test_a_directory_with_another_run_is_refused(run: Path, preset: Path, tmp_path: Path):
    done = scalar("quickstart", "--preset", preset, "--out", run, "--set", "seed=7", check=False)
    assert done.returncode == 2
    assert "already holds another run (train.seed: 0 here, 7 asked)" in done.stderr
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(UserError, match="is not a run directory"):
        open_run(tmp_path, StudyConfig.from_preset(str(preset)), {})


KILLED = """
import os, signal
from tests import typed; typed.install()  # types are checked, as here: sums are rounded alike
from scalar_sae.cli import main
from scalar_sae.scoring import score
measure, measured = score.measure, []
def until_the_third_prompt(*arguments):
    if len(measured) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    measured.append(arguments)
    return measure(*arguments)
score.measure = until_the_third_prompt
main()
"""


def test_a_study_killed_while_scoring_goes_on(preset: Path, tmp_path: Path):
    """Killed between the first prompt and the second of its second record."""
    saes = "saes=[{method: topk, sites: [resid_mid.0, resid_post.0, resid_mid.1, resid_post.1], expansion: 1}]"
    few = [word for one in (saes, "score.rankings={published: 1}", "score.controls=[]") for word in ("--set", one)]
    command = ["quickstart", "--preset", str(preset), *few, "--out"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *command, str(tmp_path / "killed")], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    some = Results.read(tmp_path / "killed" / "results.json").records
    assert len(some) == 1
    for name in ("killed", "whole"):
        scalar(*command, tmp_path / name)
    mine, theirs = (Results.read(tmp_path / name / "results.json").records for name in ("killed", "whole"))
    scores = [[(r.key, r.absolute, r.edges_at, r.log_area, r.ci) for r in records] for records in (mine, theirs)]
    assert len(scores[0]) == 3
    assert scores[0] == scores[1]
    assert mine[:1] == some


def test_a_record_that_another_worker_began_goes_on(run: Path, preset: Path, tmp_path: Path):
    """Begun beside one that comes before it, as a second worker does; then one process does the rest."""
    out = tmp_path / "run"
    shutil.copytree(run, out)
    atomic_write = Results.read(out / "results.json")
    some = atomic_write.model_copy(update={"records": atomic_write.records[:-2]})
    some.write(out / "results.json")
    swept: list[int] = []

    def counted(*arguments: Any) -> Any:
        swept.append(1)
        if stop_at == len(swept):
            raise KeyboardInterrupt
        return measure(*arguments)

    stop_at, jobs = 2, study._jobs
    with mock.patch.object(benchmark, "measure", counted):
        with mock.patch.object(study, "_jobs", lambda *a: jobs(*a)[::-1]):
            assert scalar("quickstart", "--preset", preset, "--out", out, check=False).returncode == 130
        stop_at = 0
        swept.clear()
        scalar("quickstart", "--preset", preset, "--out", out)
    assert len(swept) == 3, "both prompts of one record, and the second of the other"
    without = {"seconds", "config"}  # its model lies elsewhere
    for mine, theirs in zip(Results.read(out / "results.json").records, atomic_write.records, strict=True):
        assert mine.model_dump(exclude=without) == theirs.model_dump(exclude=without)
    assert not (out / "partial").exists()


def test_one_pair_can_be_scored_by_itself(run: Path, tmp_path: Path):
    out = tmp_path / "scores.json"
    done = scalar(
        "score", "--lm", run / "lm", "--saes", run, "--block", "ff_block.0", "--tokens", "python-stdlib",
        "--prompts", "2", "--rank-prompts", "1", "--context", "16", "--edges", "0,1,16,256,4096",
        "--method", "topk", "--out", out,
    )  # fmt: skip
    assert "ff_block.0" in done.stdout
    (mine,) = Results.read(out).records
    theirs = next(
        r
        for r in Results.read(run / "results.json").records
        if r.key == ("ff_block.0", "topk", "leave_one_out_with_prior", None)
    )
    assert mine.kl_circuit == pytest.approx(theirs.kl_circuit, rel=1e-5)


def test_the_five_lines_of_the_readme_give_the_same_score(run: Path):
    readme = (DOCS.parent / "README.md").read_text()
    code = readme.split("```python")[1].split("```")[0]
    code = code.replace("runs/quickstart", str(run)).replace("prompts=50", "rank_prompts=1, prompts=2, context=16")
    names: dict = {}
    exec(code, names)
    theirs = next(
        r
        for r in Results.read(run / "results.json").records
        if r.key == ("ff_block.0", "topk", "leave_one_out_with_prior", None)
    )
    assert names["record"].floor.kl == pytest.approx(theirs.floor.kl, rel=1e-4)


def test_a_saved_ranking_can_be_handed_in(run: Path, tmp_path: Path):
    import numpy as np

    common = ["score", "--lm", run / "lm", "--saes", run / "saes" / "topk", "--block", "ff_block.0", "--context", "16",
              "--prompts", "1", "--rank-prompts", "1", "--edges", "0,1,4096"]  # fmt: skip
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).random((64, 64)))
    assert "mine.npy" in scalar(*common, "--ranking", tmp_path / "mine.npy").stdout.replace("\n", "")
    np.save(tmp_path / "wrong.npy", np.zeros((64, 63)))
    done = scalar(*common, "--ranking", tmp_path / "wrong.npy", check=False)
    assert done.returncode == 2
    assert "shape (64, 63), the pair needs (64, 64)" in done.stderr


def test_controls_do_not_stand_in_the_way_of_a_comparison(run: Path):
    done = scalar("compare", run, "--base", "topk")
    assert done.stdout.count("staircase ") >= 4


def test_ls_says_what_is_there(run: Path):
    listing = scalar("ls", run).stdout
    assert "staircase-pair" in listing
    assert "records: 35" in listing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--block", "ff_blok.0"], "unknown block 'ff_blok.0'.*did you mean 'ff_block.N'"),
        (["--block", "ff_block.9"], r"resid_mid.9: .* has 4 layers \(0-3\)"),
        (["--block", "ff_layer.0"], "no SAE at mlp_in.0"),
        (["--tokens", "python-stdlob"], "unknown corpus.*did you mean 'python-stdlib'"),
        (["--method", "topc"], "unknown method 'topc'.*did you mean 'topk'"),
        (["--ranking", "leave_one_uot"], "unknown ranking 'leave_one_uot'.*did you mean 'leave_one_out'"),
        (["--edges", "1,2,99999999"], "the pair has 4096 possible edges"),
        (["--edges", "ful"], "did you mean 'full'"),
        (["--prompts", "1000000"], "1000000 prompts of 16 tokens to score on, only"),
        (["--lm", "runs/no/lm"], "unknown language model 'runs/no/lm'"),
        (["--saes", "/nowhere"], "/nowhere: no such file or folder"),
        (["--device", "gpu"], "device gpu: "),
        (["--control", "shuffle"], "control: .*'padded' or 'shuffled'"),
    ],
)
def test_a_users_mistake_is_one_clear_line(run: Path, arguments: list[str], message: str):
    import re

    given = {"--lm": str(run / "lm"), "--saes": str(run), "--block": "ff_block.0", "--method": "topk"}
    given |= {"--context": "16", "--prompts": "1", "--rank-prompts": "1"} | {arguments[0]: arguments[1]}
    done = scalar("score", *(part for pair in given.items() for part in pair), check=False)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("scalar: ") == 1


def test_other_mistakes(tmp_path: Path, preset: Path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    for arguments, message in (
        (["quickstart", "--preset", "quick"], "unknown preset 'quick'"),
        (["train", "quickstart", "--out", str(tmp_path / "a"), "--set", "tokns=3"], "did you mean 'tokens'"),
        (["train", "quickstart", "--out", str(tmp_path / "a"), "--set", "tokens"], "expected FIELD=VALUE"),
        (["report", str(tmp_path)], "no results here"),
        (["train", "quickstart", "--out", str(tmp_path / "a"), "--set", "tokens=["], "is not a YAML value"),
        (["train", "quickstart", "--out", str(tmp_path / "a"), "--set", "context=256"], "reads at most 128"),
        (["train-lm", "--out", str(tmp_path)], "holds other files"),
        (["train-lm", "--out", str(tmp_path / "b"), "--data", "x.txt"], "only tiny-shakespeare"),
        (
            ["train-lm", "--recipe", "tiny-shakespeare", "--out", str(tmp_path / "b"), "--data", "x.txt"],
            "cannot be read",
        ),
        (["train", "quickstart", "--out", str(tmp_path / "a"), "--device", "gpu"], "device gpu: "),
        (["train", "quickstart", "--out", str(tmp_path / "a"), "--set", RAW], "so its layers have only"),
        (["train", "--out", str(tmp_path / "a")], "needs a preset, or --resume"),
        (["train", "--resume", "--out", str(tmp_path / "a")], "no run to go on with"),
        (["train", "quickstart", "--resume", "--out", str(tmp_path / "a")], "leave out the preset"),
        (["ls", str(tmp_path / "none")], "no such file or folder"),
        (["train-lm", "--recipe", "shakespeare", "--out", str(tmp_path / "b")], "did you mean 'tiny-shakespeare'"),
    ):
        done = scalar(*arguments, check=False)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "a").exists(), "a mistake in the config does not claim the directory"
    small = {"train": SMALL["train"], "score": {**SMALL["score"], "memory": 0.1}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    done = scalar("quickstart", "--preset", tmp_path / "small.yaml", "--out", tmp_path / "a", check=False)
    assert "memory 0.1 GB: 64 x 64 latents need" in done.stderr
    assert not (tmp_path / "a").exists(), "and neither does a scoring that cannot be done"
    (tmp_path / "short.txt").write_text("short")
    done = scalar("train", preset, "--out", tmp_path / "c", "--set", f"corpus={tmp_path / 'short.txt'}", check=False)
    assert done.returncode == 2
    assert "fewer than one context" in done.stderr
    much = {"train": SMALL["train"], "score": {**SMALL["score"], "prompts": 10_000_000}}
    (tmp_path / "much.yaml").write_text(yaml.safe_dump(much))
    done = scalar("quickstart", "--preset", tmp_path / "much.yaml", "--out", tmp_path / "c", check=False)
    assert "10000000 prompts of 16 tokens to score on, only" in done.stderr
    assert not (tmp_path / "c").exists()
    scalar("train", tmp_path / "much.yaml", "--out", tmp_path / "c")  # what is not scored need not be


def test_text_outside_ascii_is_said_once(run: Path, tmp_path: Path):
    text = tmp_path / "naive.txt"
    text.write_text("naïve text, " * 100, encoding="utf-8")
    done = scalar(
        "score", "--lm", run / "lm", "--saes", run / "saes" / "topk", "--block", "ff_block.0", "--tokens", text,
        "--context", "16", "--prompts", "1", "--rank-prompts", "1", "--edges", "0,1,4096",
    )  # fmt: skip
    assert done.stderr.count("naive.txt: 100 characters outside ASCII became '?'") == 1


def test_help_and_version():
    assert scalar("--version").stdout.startswith("scalar-sae ")
    for verb in ("quickstart", "train-lm", "train", "score", "report", "ls", "export", "push", "pull"):
        assert "Example" in scalar(verb, "--help").stdout


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no file size limits on this system")
def test_a_disk_that_is_really_full_is_one_clear_line(preset: Path, tmp_path: Path, forks: Forks):
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000));"
        "from scalar_sae.cli import main; main()"
    )
    (done,) = forks.ends(code, "train", preset, "--out", tmp_path / "run")
    assert done.code == 2, done.err
    assert "cannot be written" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "run" / "lm").exists()


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "results.json"
    Results().write(path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); free space"):
        Results().write(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_a_kill_while_writing_leaves_no_half_file(tmp_path: Path, forks: Forks):
    code = (
        "import sys, os, signal; from pathlib import Path; from scalar_sae.io import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as t:\n    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "results.json"
    assert [end.code for end in forks.ends(code, path)] == [-signal.SIGKILL]
    assert not path.exists()
    write_text(path, "whole")
    assert path.read_text() == "whole"
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_a_study_scores_the_blocks_that_it_names(preset: Path, tmp_path: Path):
    def scored(*blocks: str) -> set[str]:
        out = tmp_path / "-".join(blocks)
        few = [TOPK_ALONE, "score.rankings={published: 1}", "score.controls=[]"]
        changes = [word for one in (f"score.blocks=[{','.join(blocks)}]", *few) for word in ("--set", one)]
        found = scalar("quickstart", "--preset", preset, "--out", out, *changes, "--json")
        return {record["block"] for record in json.loads(found.stdout)["records"]}

    assert scored("ff_block.2", "transformer_block.1") == {"ff_block.2", "transformer_block.1"}
    assert scored("ff_block") == {f"ff_block.{layer}" for layer in range(4)}
    refused = scalar(
        "quickstart", "--preset", preset, "--out", tmp_path / "x", "--set", "score.blocks=[a]", check=False
    )
    assert (
        "score.blocks: a is no block between two SAEs of this study; there are ff_block, ff_block.0" in refused.stderr
    )
    assert not (tmp_path / "x").exists()


def test_changes_reach_both_sections_of_a_preset():
    config = StudyConfig.from_preset("quickstart", {"tokens": 1024, "train.batch_tokens": 128, "score.prompts": 3})
    assert (config.train.tokens, config.train.batch_tokens, config.score.prompts) == (1024, 128, 3)
    with pytest.raises(UserError, match=r"--set prompts: a field of the scoring; write --set score\.prompts=VALUE"):
        StudyConfig.from_preset("quickstart", {"prompts": 3})
    with pytest.raises(UserError, match=r"unknown score field 'promts'.* did you mean 'prompts'"):
        StudyConfig.from_preset("quickstart", {"score.promts": 3})


def test_too_little_memory_is_said_before_the_text_is_read_with_the_way_to_score_less(preset: Path, tmp_path: Path):
    """The corpus is one that cannot be read."""
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe\x00")
    some = ["--set", "score.memory=0.0001", "--set", f"corpus={tmp_path / 'text.txt'}", "--out", tmp_path / "run"]
    said = scalar("quickstart", "--preset", preset, *some, check=False)
    assert said.returncode == 2
    assert "topk at ff_block.0:" in said.stderr
    assert (
        "this study scores 16 pairs of SAEs in all 4 layers; --set score.blocks=[ff_block.0] scores one" in said.stderr
    )


def test_every_score_is_said_as_it_is_found_and_the_end_names_the_next_command(preset: Path, tmp_path: Path):
    out = tmp_path / "run"
    done = scalar("quickstart", "--preset", preset, "--out", out, "--set", "score.blocks=[ff_block.0]")
    said = [line for line in done.stderr.splitlines() if line.startswith("ff_block.0, ")]
    assert [line.partition(":")[0] for line in said] == [
        f"ff_block.0, topk, {DEFAULT}", "ff_block.0, topk, published", f"ff_block.0, staircase-pair, {DEFAULT}",
        "ff_block.0, staircase-pair, published", f"ff_block.0, staircase-pair, {DEFAULT}, padded",
        f"ff_block.0, topk, {DEFAULT}, padded",
    ]  # fmt: skip
    assert f"Report: {out / 'report.html'}" in done.stdout
    assert f"Next: scalar explore {out} walks" in done.stdout
    assert f"Or: scalar score --saes {out} --block ff_block.0 --method topk --prompts 20" in done.stdout


def test_full_and_another_preset_are_one_too_many(preset: Path, tmp_path: Path):
    said = scalar("quickstart", "--full", "--preset", preset, "--out", tmp_path / "run", check=False)
    assert (said.returncode, "give one of them" in said.stderr) == (2, True)
