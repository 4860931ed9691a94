"""`--json` and `--quiet`: one document on stdout, or no word on stderr, whatever the verb."""

import json
from pathlib import Path
from typing import Any

import pytest

from scalar_sae import console
from scalar_sae.evaluation.features.blind import Answers, FeaturePair, Pairs
from scalar_sae.records.results import Record
from scalar_sae.training import presets
from tests.evaluation.test_judge import server
from tests.test_study import scalar

SCORED = ("--prompts", "2", "--rank-prompts", "1", "--context", "16", "--edges", "1,16")
READ = ("--prompts", "64", "--context", "16")


def letters(question: str) -> dict[str, Any]:
    """What a judge says, in the words of OpenAI's protocol."""
    return {"choices": [{"message": {"content": "letters"}}]}


def arguments(verb: str, run: Path, tmp_path: Path, preset: Path, text: Path) -> list[str | Path]:
    """A small job for each verb."""
    on = ("--tokens", text)
    lm = (
        "--set",
        "steps=1",
        "--set",
        "d_model=8",
        "--set",
        "n_layers=1",
        "--set",
        "batch_size=2",
        "--set",
        f"corpus={text}",
    )
    words: dict[str, tuple[str | Path, ...]] = {
        "quickstart": ("--preset", preset, "--out", run),
        "train": (preset, "--out", run),
        "train-lm": ("--out", tmp_path / "lm", *lm),
        "report": (run,),
        "score": ("--saes", run, "--block", "ff_block.0", *SCORED, *on),
        "circuit": ("--saes", run, "--sites", "resid_pre.0,resid_mid.0,resid_post.0", *SCORED, *on),
        "compare": (run,),
        "measure": (run, *READ, *on),
        "features": (run, *READ, "--edges", "none", "--method", "topk", *on),
        "judge": (run / "features" / "topk" / "resid_post.0", "--latents", "1"),
        "blind": ("--out", run, "--summary"),
        "ls": (run,),
        "export": (run, "--out", tmp_path / "exported"),
        "pull": (str(run), "--out", tmp_path / "pulled"),
    }
    return [verb, *words[verb]]


VERBS = {
    "quickstart": {"report", "records", "cautions"},
    "train": {"saes"},
    "train-lm": {"folder", "record"},
    "report": {"report"},
    "score": {"records", "cautions"},
    "circuit": {"records", "cautions"},
    "compare": {"score", "base", "ratios", "left_out", "cautions"},
    "measure": {"results", "saes", "spliced", "seeds", "duplicates", "absorption", "probes"},
    "features": {"results", "pages", "reading"},
    "judge": {"results", "answers", "pages", "reading"},
    "blind": {"names", "text", "counts", "share_b", "interval", "agreement"},
    "ls": {"saes", "notes", "language_model", "n_records"},
    "export": {"folder", "saes"},
    "pull": {"folder", "saes"},
}


@pytest.mark.parametrize("verb", VERBS)
def test_one_json_document_or_a_quiet_result(
    verb: str, run: Path, tmp_path: Path, preset: Path, text: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(console, "INTERVAL", 0.001)  # progress at every opportunity
    console.say_once.cache_clear()
    words = arguments(verb, run, tmp_path, preset, text)
    if verb == "blind":
        pairs = Pairs(names={"a": "one", "b": "other"}, pairs=[FeaturePair(a=0, b=1, left="a")])
        (run / "pairs.json").write_text(pairs.model_dump_json())
        Answers(run, "ann", 1).add(0, "right", 1.0)
    with server(letters) as (url, _):
        if verb == "judge":
            words += ["--url", url, "--model", "m"]
        done = scalar(*words, "--json")
        found = json.loads(done.stdout)
        assert set(found) == VERBS[verb]
        assert done.stdout.count("\n") == 1
        if verb in ("train-lm", "export", "pull"):
            words[words.index("--out") + 1] = tmp_path / "again"
        quiet = scalar(*words, "--quiet")
    assert quiet.stderr == ""
    assert len(quiet.stdout) > 10


def test_json_holds_the_records(run: Path, tmp_path: Path, text: Path):
    where = ("--saes", run, "--block", "ff_block.0", *SCORED, "--tokens", text, "--out", tmp_path / "out.json")
    found = json.loads(scalar("score", *where, "--json").stdout)
    kept = json.loads((tmp_path / "out.json").read_text())
    assert found["records"] == kept["records"]
    assert Record.model_validate(found["records"][0]).block == "ff_block.0"


def test_a_mistake_under_json_is_a_line_on_stderr(run: Path):
    done = scalar("ls", run / "none", "--json", check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_what_is_not_finite_is_null_in_json(run: Path):
    content = json.loads((run / "results.json").read_text())
    for record in content["records"]:  # nothing reaches 90 %
        record["edges_at"] |= {"90": None}
        record["prompts"]["kl_circuit"] = [[1.0 for _ in row] for row in record["prompts"]["kl_circuit"]]
    (run / "results.json").write_text(json.dumps(content))
    ratios = json.loads(scalar("compare", run, "--json").stdout)["ratios"]
    assert [ratio["value"] for ratio in ratios] == [None] * len(ratios)


def test_h_is_help_and_the_help_of_train_names_every_preset():
    said = scalar("train", "-h").stdout
    assert said == scalar("train", "--help").stdout
    assert all(f"{name}" in said for name in presets.names())
    assert "--install-completion" in scalar("-h").stdout
