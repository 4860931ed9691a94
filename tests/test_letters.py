"""`python -m benchmarks.letters`: the table of absorption of first letters, from the records of a run."""

import numpy as np
import pytest
from benchmarks.letters import HEADER, interval, rows

from scalar_sae.records.label_results import LabelProbe, ParentAbsorption, SaeAbsorption, SaeProbes
from scalar_sae.records.results import Results
from scalar_sae.records.sae_results import SaeFidelity
from scalar_sae.training.config import TrainConfig, read_preset, validated

SITE = "resid_post.6"
FRACTIONS = {"topk-0": (0.2, 0.4), "topk-1": (0.4, 0.6), "atm-0": (0.1, 0.1), "atm-1": (0.1, 0.3)}
"""Of the letters a and b, by SAE; no linear probe finds the letter c."""


def parent(letter: str, fraction: float | None) -> ParentAbsorption:
    full = None if fraction is None else fraction / 2
    return ParentAbsorption(parent=letter, child=None, probe_f1=0.7, fraction=fraction, full=full, main=[0], n=10)


def absorption(name: str, thresholds: str, parents: list[ParentAbsorption]) -> SaeAbsorption:
    return SaeAbsorption(
        method=name, site=SITE, task="first letters", thresholds=thresholds, share=0.4, cosine=0.1, most=3,
        fraction=None, full=None, parents=parents, n_rows=40,
    )  # fmt: skip


def records() -> Results:
    found = Results()
    best = {"a": 0.6, "b": 0.8, "c": 0.5}
    labels = [LabelProbe(label=letter, n=20, dense=0.9, sparse={1: accuracy}) for letter, accuracy in best.items()]
    for number, (name, fractions) in enumerate(FRACTIONS.items()):
        parents = [parent("a", fractions[0]), parent("b", fractions[1]), parent("c", None)]
        found.absorption.append(absorption(name, "SAEBench code", parents))
        found.absorption.append(
            absorption(name, "SAEBench paper", [parent("a", 0.8), parent("b", 1.0), parent("c", None)])
        )
        found.probes.append(
            SaeProbes(method=name, site=SITE, task="first letters", labels=labels, tpp=None, scr=[], n_rows=40)
        )
        found.saes.append(
            SaeFidelity.model_construct(method=name, site=SITE, l0=30.0 + number, fvu=0.1, ce_increase=0.2, dead=0.5)
        )
    return found


def test_a_row_holds_means_over_seeds_and_letters_and_the_difference_from_atm_letter_by_letter():
    topk, atm = (dict(zip(HEADER, cells, strict=True)) for cells in rows(records()))
    assert (topk["SAEs"], topk["L0"], topk["dead"], topk["best latent"]) == ("topk", "30.5", "50%", "0.70")
    assert (topk["fraction, code"], topk["fraction, paper"], topk["full"]) == ("0.400", "0.900", "0.200")
    assert (atm["L0"], atm["fraction, code"], atm["code, minus ATM"]) == ("32.5", "0.150", "")
    assert topk["code, minus ATM"] == "+0.250 [+0.200, +0.300]"  # 0.3 - 0.1 and 0.5 - 0.2
    assert topk["paper, minus ATM"] == "+0.000 [+0.000, +0.000]"


def test_the_interval_of_a_mean_is_two_standard_errors_wide_on_either_side():
    differences = np.random.default_rng(1).normal(0.1, 1, 400)
    mean, low, high = (float(part.strip("[],")) for part in interval(differences).split())
    assert mean == pytest.approx(differences.mean(), abs=1e-3)
    assert (high - low) / 2 == pytest.approx(1.96 * differences.std() / 20, rel=0.05)


def test_the_preset_gives_every_method_the_same_site_and_width_and_the_l0_of_its_name():
    saes = read_preset("benchmarks/letters.yaml")["train"]["saes"]
    assert validated(TrainConfig, read_preset("benchmarks/letters.yaml")["train"], "train").steps == 1280
    assert {(*sae["sites"], sae["expansion"]) for sae in saes} == {("resid_post.6", 4)}
    wanted = {sae["name"]: sae.get("k") or sae["sparsity"]["target_l0"] for sae in saes}
    assert all(l0 == (64 if "64" in name else 32) for name, l0 in wanted.items())
