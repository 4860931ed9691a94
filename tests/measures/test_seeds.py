"""`scalar measure` and agreement of seeds: records, pages, and bad input."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.toy import toy_gpt
from scalar_sae.measures.seeds import densities, seed_agreement
from scalar_sae.report.page import render
from scalar_sae.results import Results
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import SaeCard, save_sae
from scalar_sae.sites import Site
from tests.helpers import random_sae, tiny_lm
from tests.test_study import scalar

SITE = Site("resid_mid", 1)
TOKENS = torch.randint(0, 32, (6, 12), generator=torch.Generator().manual_seed(0))


def shuffled(sae: SAE, seed: int) -> SAE:
    order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(seed))
    return replace(sae, W_enc=sae.W_enc[:, order], b_enc=sae.b_enc[order], W_dec=sae.W_dec[order])


def test_the_same_sae_in_another_order_is_the_same():
    sae = random_sae(16, 24, 4, 0)
    runs = {f"run{i}": {"topk": {SITE: shuffled(sae, i)}} for i in range(3)}
    (found,) = seed_agreement(runs, tiny_lm(), TOKENS)
    alive = int((densities(tiny_lm(), SITE, [sae], TOKENS)[0] > 0).sum())
    assert (found.pw_mcc, found.rescaled, found.shared) == pytest.approx((1, 1, 1))
    assert found.appearances == [0, 0, 3 * alive]
    assert len(found.pairs) == 3
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
    with pytest.raises(UserError, match="width 16 and 8"):
        seed_agreement({"a": one, "b": {"topk": {SITE: random_sae(8, 24, 4, 0)}}})


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
    return folder


def test_the_command(run: Path):
    done = scalar("measure", run / "0", "--against", run / "1", "--prompts", 4, "--context", 16)
    assert "PW-MCC" in done.stdout
    assert "all 2" in done.stdout
    assert "64 tokens: latents that fire on fewer than 4.7e-02 of them may look dead" in done.stderr
    assert "--prompts 1,875" in done.stderr
    results = Results.read(run / "0" / "results.json")
    assert [sae.n_tokens for sae in results.saes] == [64, 64]
    assert [seeds.pw_mcc for seeds in results.seeds] == pytest.approx([1, 1])
    page = render(results, {}, "run")
    for section in ("spliced", "density", "seeds"):
        assert f'<section id="{section}">' in page
    scalar("report", run / "0")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["{run}/1"], "holds no language model"),
        (["{run}/0", "--against", "{run}/2"], "no such folder"),
        (["{run}/0", "--prompts", "100000000"], "prompts of 128 tokens wanted, only"),
        (["{run}/0", "--threshold", "2", "--against", "{run}/1", "--prompts", "2"], "cosines lie between"),
    ],
)
def test_the_command_used_wrongly(run: Path, arguments: list[str], complaint: str):
    done = scalar("measure", *(argument.format(run=run) for argument in arguments), check=False)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("scalar: ")
