"""What a user reads under a table of scores that mean little: here two prompts and SAEs after two steps."""

import json
from pathlib import Path

from scalar_sae.records.results import Results
from scalar_sae.saes.trained import Trained
from tests.cli.test_verbs import SCORED
from tests.test_study import scalar

CAUTIONS = (
    "Only 2 prompts were scored: not enough prompts for 95 % intervals, which need 20.",
    "The SAEs were trained for 2 steps: below 1,000 a score says little about the method.",
)


def test_score_compare_and_report_say_each_caution_once(run: Path, text: Path, tmp_path: Path):
    where = ("--saes", run, "--block", "ff_block.0", *SCORED, "--tokens", text)
    scored = scalar("score", *where, "--out", tmp_path / "out.json").stdout
    compared = scalar("compare", run).stdout
    scalar("report", run)
    page = (run / "report.html").read_text()
    for shown in (scored, compared, page):
        for said in CAUTIONS:
            assert shown.count(said) == 1
            assert f"{said} (all rows)" in shown
        assert "8.0 tokens a latent: below 100 a score says little about the method. (topk)" in shown
        assert "4.0 tokens a latent: below 100 a score says little about the method. (wide)" in shown
    documents = [json.loads(scalar(*verb, "--json").stdout) for verb in (("score", *where), ("compare", run))]
    for found in documents:
        assert {f"{said} (all rows)" for said in CAUTIONS} <= set(found["cautions"])
    for record in Results.read(tmp_path / "out.json").records:
        latents = 64 if record.method == "topk" else 128
        assert record.trained == dict.fromkeys(("up", "down"), Trained(steps=2, tokens=512, latents=latents))


def test_a_circuit_says_it_of_each_of_its_sites(run: Path, text: Path):
    sites = ("resid_pre.0", "resid_mid.0", "resid_post.0")
    where = ("--saes", run, "--method", "topk", "--sites", ",".join(sites), *SCORED, "--tokens", text)
    found = json.loads(scalar("circuit", *where, "--json").stdout)
    assert set(found["records"][0]["trained"]) == set(sites)
    assert set(CAUTIONS) <= set(found["cautions"])


def test_nothing_is_said_of_the_training_of_other_peoples_saes(run: Path, text: Path, tmp_path: Path):
    scalar("export", run / "saes" / "topk", "--out", tmp_path / "theirs", "--format", "saelens")
    where = ("--saes", tmp_path / "theirs", "--lm", run / "lm", "--block", "ff_block.0", *SCORED, "--tokens", text)
    shown = scalar("score", *where).stdout
    assert CAUTIONS[0] in shown
    assert "trained for" not in shown
    assert "tokens a latent" not in shown
