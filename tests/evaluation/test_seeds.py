"""`scalar measure` and agreement of seeds: records, pages, and bad input."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.evaluation.run import measure_run, spread_prompts
from scalar_sae.evaluation.seeds.seeds import densities, seed_agreement
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.toy import shipped, toy_gpt
from scalar_sae.records.results import Results
from scalar_sae.report.page import render
from scalar_sae.saes.activation import ReLU
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import SaeCard, save_sae
from scalar_sae.sites import Site
from tests.helpers import random_sae, tiny_lm
from tests.test_study import scalar

SITE = Site("resid_mid", 1)
TOKENS = torch.randint(0, 32, (6, 12), generator=torch.Generator().manual_seed(0))


def order_of(sae: SAE, seed: int) -> Tensor:
    return torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(seed))


def shuffled(sae: SAE, seed: int) -> SAE:
    order = order_of(sae, seed)
    return replace(sae, W_enc=sae.W_enc[:, order], b_enc=sae.b_enc[order], W_dec=sae.W_dec[order])


def test_the_same_sae_in_another_order_is_the_same():
    sae = random_sae(16, 24, 4, 0)
    runs = {f"run{i}": {"topk": {SITE: shuffled(sae, i)}} for i in range(3)}
    (found,) = seed_agreement(runs, tiny_lm(), TOKENS)
    fires = densities(tiny_lm(), SITE, [sae], TOKENS)[0] > 0
    alive = int(fires.sum())
    assert (found.pw_mcc, found.rescaled, found.shared) == pytest.approx((1, 1, 1))
    assert found.appearances == [0, 0, 3 * alive]
    assert len(found.pairs) == 3
    for i, times in enumerate(found.in_others):
        assert times == [2 if yes else None for yes in fires[order_of(sae, i)].tolist()]
    assert sum(b.n for b in found.pairs[0].by_frequency) == found.pairs[0].n_a == alive
    assert found.n_tokens == TOKENS.numel()


def test_other_random_saes_score_the_null():
    runs = {f"run{i}": {"topk": {SITE: random_sae(16, 32, 4, i)}} for i in range(4)}
    (found,) = seed_agreement(runs)
    assert found.pw_mcc == pytest.approx(found.null, abs=0.05)
    assert abs(found.rescaled) < 0.1
    assert found.shared < 0.2
    assert found.n_tokens is None
    assert sum(found.appearances) == 4 * 32
    assert [sum(run.count(n) for run in found.in_others) for n in range(4)] == found.appearances


def test_two_names_of_one_place_are_compared():
    sae = random_sae(16, 24, 4, 0)
    runs = {"a": {"topk": {Site("resid_post", 0): sae}}, "b": {"topk": {Site("resid_pre", 1): sae}}}
    assert seed_agreement(runs)[0].pw_mcc == pytest.approx(1)


def test_bad_input():
    one = {"topk": {SITE: random_sae(16, 24, 4, 0)}}
    with pytest.raises(UserError, match="two seeds, there is one run"):
        seed_agreement({"a": one})
    with pytest.raises(UserError, match="no method and site in common"):
        seed_agreement({"a": one, "b": {"gated": one["topk"]}})
    other = {"topk": {SITE: random_sae(8, 24, 4, 0)}}
    for lm, has in ((None, "a has 16"), (tiny_lm(), "tiny has 16")):
        with pytest.raises(UserError, match=f"b topk resid_mid.1: reads 8 dimensions, {has}"):
            seed_agreement({"a": one, "b": other}, lm, TOKENS)
    dead = replace(one["topk"][SITE], b_enc=torch.full((24,), -100.0), activation=ReLU())
    with pytest.raises(UserError, match=r"b topk resid_mid.1: no latent fires on the 72 tokens"):
        seed_agreement({"a": one, "b": {"topk": {SITE: dead}}}, tiny_lm(), TOKENS)
    broken = replace(dead, W_dec=torch.full((24, 16), torch.nan))
    with pytest.raises(UserError, match=r"a, b: topk resid_mid.1: the second dictionary holds values"):
        seed_agreement({"a": one, "b": {"topk": {SITE: broken}}})


def test_special_tokens_do_not_count():
    sae, lm = random_sae(16, 24, 4, 0), tiny_lm()
    tokens = torch.cat([torch.full((6, 1), 3), TOKENS.where(TOKENS != 3, 4)], 1)
    acts = sae.encode(lm.activations(tokens, [SITE])[SITE])[:, 1:]
    expected = (acts > 0).flatten(0, 1).float().mean(0)
    torch.testing.assert_close(densities(lm, SITE, [sae], tokens, (3,), batch=4)[0], expected)
    runs = {name: {"topk": {SITE: sae}} for name in ("a", "b")}
    assert seed_agreement(runs, lm, tokens, special=(3,))[0].n_tokens == 6 * 12


def test_no_score_sees_special_tokens(run: Path, tmp_path: Path):
    """A model whose tokenizer says which token begins a text is measured without it; the shipped ones have none."""
    for name in shipped():
        assert LanguageModel.load(name).special_tokens == ()
    lm = LanguageModel.load(run / "0" / "lm")
    lm.hf.config.eos_token_id = ord("e")  # a letter, whatever the configuration says
    lm.hf.save_pretrained(tmp_path / "lm")
    text = tmp_path / "text.txt"
    text.write_text("some letters, and e among them\n" * 40)
    options = ("--lm", tmp_path / "lm", "--tokens", text, "--prompts", 4, "--context", 16)
    tokens, _ = spread_prompts(str(text), lm, [run / "1"], 16, 4)
    n = int((tokens != ord("e")).sum())
    assert n < 64
    for rule, counted in (("skip", 64), ("count", 64), (ord("e"), n)):
        said = scalar("measure", run / "1", "--against", run / "0", *options, "--special", rule).stderr
        results = Results.read(run / "1" / "results.json")
        records = (*results.saes, *results.spliced, *results.seeds)
        assert {(one.n_tokens, one.n_special) for one in records} == {(counted, 64 - counted)}
        assert said.count("hold special tokens") == (counted < 64)


def test_what_was_measured_is_kept_when_something_later_fails(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = shutil.copytree(run / "0", tmp_path / "run")
    monkeypatch.setattr("scalar_sae.evaluation.run.seed_agreement", mock.Mock(side_effect=UserError("no")))
    with pytest.raises(UserError, match="no"):
        measure_run(folder, [run / "1"], text="python-stdlib", prompts=2, context=16)
    assert len(Results.read(folder / "results.json").saes) == 2


@pytest.mark.parametrize("context", [16, 128])
def test_the_number_of_prompts_it_asks_for_is_enough(run: Path, tmp_path: Path, context: int):
    folder = shutil.copytree(run / "0", tmp_path / "run")
    arguments = ("measure", folder, "--tokens", "python-stdlib", "--context", context, "--prompts")
    asked = re.search(r"--prompts (\S+)\)", scalar(*arguments, 2).stderr)
    assert asked
    with mock.patch("scalar_sae.evaluation.run.fidelity", side_effect=UserError("far enough")):
        said = scalar(*arguments, asked[1], check=False).stderr
        assert "may look dead" in scalar(*arguments, int(asked[1]) - 1, check=False).stderr
    assert "far enough" in said
    assert "may look dead" not in said


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with a model and SAEs at two sites, the second run's permuted."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    LanguageModel(toy_gpt(), "toy").hf.save_pretrained(folder / "0" / "lm")
    for seed in (0, 1):
        for number, site in enumerate((Site("resid_mid", 0), Site("resid_post", 0))):
            sae = shuffled(random_sae(64, 96, 4, number), seed)
            card = SaeCard.of(sae, "topk", "topk", site, {})
            save_sae(sae, card, folder / str(seed) / "saes" / "topk" / str(site))
    narrow, site = random_sae(8, 96, 4, 0), Site("resid_mid", 0)
    save_sae(narrow, SaeCard.of(narrow, "topk", "topk", site, {}), folder / "narrow" / "saes" / "topk" / str(site))
    return folder


def test_the_command(run: Path):
    options = ("--tokens", "python-stdlib", "--prompts", 4, "--context", 16)
    done = scalar("measure", run / "0", "--against", run / "1", *options)
    assert "PW-MCC" in done.stdout
    assert "all 2" in done.stdout
    assert "64 tokens: latents that fire on fewer than 4.7e-02 of them may look dead" in done.stderr
    assert "--prompts 1875)" in done.stderr
    results = Results.read(run / "0" / "results.json")
    assert [sae.n_tokens for sae in results.saes] == [64, 64]
    assert [seeds.pw_mcc for seeds in results.seeds] == pytest.approx([1, 1])
    page = render(results, {}, "run")
    for section in ("spliced", "density", "seeds"):
        assert f'<section id="{section}">' in page
    scalar("report", run / "0")


PYTHON = ("--tokens", "python-stdlib")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["{run}/1"], "holds no language model"),
        (["{run}/0", "--against", "{run}/2"], "no such file or folder"),
        (["{run}/0"], "the files do not say which text the SAEs were trained on; name one with --tokens"),
        (["{run}/0", *PYTHON, "--prompts", "100000000"], "prompts of 128 tokens wanted, only"),
        (["{run}/0", *PYTHON, "--threshold", "2", "--against", "{run}/1", "--prompts", "2"], "--threshold '2'"),
        (["{run}/0", *PYTHON, "--against", "{run}/narrow", "--prompts", "2"], "topk resid_mid.0: reads 8 dimensions"),
    ],
)
def test_the_command_used_wrongly(run: Path, arguments: list[str], complaint: str):
    done = scalar("measure", *(argument.format(run=run) for argument in arguments), check=False)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("scalar: ")
