"""Feature tables against a direct reading of all activations; rules, logits and edges against slow ones; the page."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.sparse import csr_array

from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.edges import strongest_edges
from scalar_sae.evaluation.features.features import AFTER, BEFORE, OCTAVES, read_features
from scalar_sae.evaluation.features.interpretability import reading
from scalar_sae.evaluation.features.logits import TOKENS as LINEARISED
from scalar_sae.evaluation.features.logits import final_jacobian, logit_effects
from scalar_sae.evaluation.features.rules import rule_scores
from scalar_sae.evaluation.features.tables import read_counted
from scalar_sae.report.features import write_page
from scalar_sae.scoring.memory import LABEL_BYTES, PLACE_BYTES, PROCESS, SUM_BYTES, WORKSPACE
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.rankings.base import summed
from scalar_sae.scoring.rankings.registry import rank
from scalar_sae.sites import Block, Site
from tests.helpers import random_sae, tiny_lm
from tests.test_study import scalar

SITE = Site("resid_mid", 1)
TOKENS = torch.randint(0, 32, (9, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], list[dict], np.ndarray]:
    out = tmp_path_factory.mktemp("features") / "sae"
    lm, sae = tiny_lm(), random_sae(16, 24, 4, 0)
    read_features(lm, SITE, sae, TOKENS, out, n_examples=5, batch=2)
    acts = sae.encode(lm.activations(TOKENS, [SITE])[SITE]).numpy()
    latents, contexts = (pq.read_table(out / f"{name}.parquet").to_pylist() for name in ("latents", "contexts"))
    return latents, contexts, acts


def test_a_row_a_latent(tables: tuple[list[dict], list[dict], np.ndarray]):
    latents, _, acts = tables
    assert [row["latent"] for row in latents] == list(range(24))
    for row in latents:
        mine = acts[..., row["latent"]]
        live = mine[mine > 0]
        assert row["density"] == pytest.approx(len(live) / TOKENS.numel())
        assert row["maximum"] == pytest.approx(mine.max(), rel=1e-5)
        assert row["mean"] == pytest.approx(live.mean() if len(live) else 0, rel=1e-4)
        assert sum(row["octaves"]) == len(live)
        peak = OCTAVES[int(np.flatnonzero(row["octaves"])[-1])] if len(live) else None
        assert peak is None or 2.0**peak <= live.max() * 1.00001 < 2.0 ** (peak + 1) * 1.0001


def test_examples_are_the_strongest_and_a_sample(tables: tuple[list[dict], list[dict], np.ndarray]):
    _, contexts, acts = tables
    for latent in range(24):
        mine = acts[..., latent]
        for kind in ("top", "random"):
            rows = [row for row in contexts if row["latent"] == latent and row["kind"] == kind]
            values = [mine[row["prompt"], row["position"]] for row in rows]
            assert len({(row["prompt"], row["position"]) for row in rows}) == len(rows) == min(5, (mine > 0).sum())
            assert all(value > 0 for value in values)
            if kind == "top":
                assert values == pytest.approx(sorted(mine[mine > 0].tolist(), reverse=True)[:5], rel=1e-5)


def test_every_band_that_a_latent_reaches_has_one_example(tables: tuple[list[dict], list[dict], np.ndarray]):
    latents, contexts, acts = tables
    for row in latents:
        mine = [some for some in contexts if some["latent"] == row["latent"] and some["kind"] == "band"]
        values = [acts[some["prompt"], some["position"], row["latent"]] for some in mine]
        reached = [2.0**octave for octave, n in zip(OCTAVES, row["octaves"], strict=True) if n]
        assert len(values) == len(reached)
        assert all(low <= value < 2 * low for low, value in zip(reached, values, strict=True))
    assert max(len([n for n in row["octaves"] if n]) for row in latents) > 2


def test_special_tokens_are_context_and_nothing_else(tmp_path: Path):
    lm, sae = tiny_lm(), random_sae(16, 24, 4, 0)
    tokens = torch.cat([torch.full((9, 1), 3), TOKENS[:, 1:].where(TOKENS[:, 1:] != 3, 4)], 1)
    read_features(lm, SITE, sae, tokens, tmp_path / "sae", n_examples=200, special=(3,))
    latents, contexts = (
        pq.read_table(tmp_path / "sae" / f"{name}.parquet").to_pylist() for name in ("latents", "contexts")
    )
    fired = sae.encode(lm.activations(tokens, [SITE])[SITE])[:, 1:] > 0
    assert [row["density"] for row in latents] == pytest.approx(fired.flatten(0, 1).float().mean(0).tolist())
    assert min(row["position"] for row in contexts) == 1
    assert all(row["acts"][0] == 0 for row in contexts if row["start"] == 0)
    assert sum(row["kind"] == "random" for row in contexts) == fired.sum()
    assert read_counted(tmp_path / "sae").special == (3,)
    assert (reading(tmp_path / "sae").n_tokens, reading(tmp_path / "sae").n_special) == (9 * 15, 9)
    with pytest.raises(UserError, match=r"every token is special \(ids 3\)"):
        read_features(lm, SITE, sae, torch.full((2, 8), 3), tmp_path / "none", special=(3,))


def test_rules_are_not_tried_on_special_tokens():
    tokens = torch.tensor([[0, 1, 2, 1], [0, 1, 1, 2], [0, 2, 1, 2], [0, 2, 2, 1]])
    fired = tokens == 1
    fired[1, 2] = False
    found = rule_scores(tokens, csr_array(fired.reshape(-1, 1).numpy()), special=[0])
    assert found.accuracy[0, 0] == pytest.approx((1 + 3 / 4) / 2)  # both 1s found; of the four others one is wrong


def test_each_example_has_its_window(tables: tuple[list[dict], list[dict], np.ndarray]):
    _, contexts, acts = tables
    assert contexts
    for row in contexts:
        first, last = max(0, row["position"] - BEFORE), min(16, row["position"] + AFTER + 1)
        assert row["start"] == first
        assert row["tokens"] == TOKENS[row["prompt"], first:last].tolist()
        assert row["acts"] == pytest.approx(acts[row["prompt"], first:last, row["latent"]].tolist(), abs=1e-5)


def test_silent_examples_are_silent(tables: tuple[list[dict], list[dict], np.ndarray]):
    _, contexts, _ = tables
    silent = [row for row in contexts if row["kind"] == "silent"]
    assert silent
    assert all(max(row["acts"]) <= 0 for row in silent)


def slow_rule(tokens: np.ndarray, fired: np.ndarray, n: int) -> tuple[float, float]:
    """F1 and balanced accuracy of the rule of n tokens for one latent, by counting."""

    def context(prompt: int, place: int, length: int) -> tuple[int, ...]:
        padded = [-1] * length + tokens[prompt].tolist()
        return tuple(padded[place + 1 : place + length + 1])

    counts: dict[int, tuple[Counter, Counter]] = {length: (Counter(), Counter()) for length in range(1, n + 1)}
    for prompt in range(0, len(tokens), 2):
        for place in range(tokens.shape[1]):
            for length, (seen, yes) in counts.items():
                seen[context(prompt, place, length)] += 1
                yes[context(prompt, place, length)] += int(fired[prompt, place])
    said = np.zeros_like(fired[1::2])
    for row, prompt in enumerate(range(1, len(tokens), 2)):
        for place in range(tokens.shape[1]):
            for length in range(n, 0, -1):
                seen, yes = (counter[context(prompt, place, length)] for counter in counts[length])
                if seen:
                    said[row, place] = 2 * yes >= seen
                    break
    truth = fired[1::2]
    both = (said & truth).sum()
    accuracy = (both / truth.sum() + (~said & ~truth).sum() / (~truth).sum()) / 2
    return 2 * both / (said.sum() + truth.sum()), accuracy


def test_rules_against_counting():
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 6, (12, 16), generator=g)
    ids = tokens.numpy()
    fired = np.stack([ids == 2, np.roll(ids, 1, 1) + ids == 5, torch.rand(12, 16, generator=g).numpy() < 0.3,
                      (ids == 1) | (ids == 4), np.zeros_like(ids, dtype=bool)], -1)  # fmt: skip
    fired[:, 0, 1] = False
    found = rule_scores(tokens, csr_array(fired.reshape(-1, 5)))
    for latent in range(4):
        for number in range(3):
            f1, accuracy = slow_rule(ids, fired[..., latent], number + 1)
            assert found.f1[latent, number] == pytest.approx(f1, abs=1e-6)
            assert found.accuracy[latent, number] == pytest.approx(accuracy, abs=1e-6)
    assert found.f1[0].tolist() == [1, 1, 1]
    assert found.f1[1, 1] > found.f1[1, 0] + 0.3
    assert found.tokens[0] == [2]
    assert sorted(found.tokens[3]) == [1, 4]
    assert np.isnan(found.f1[4]).all()
    assert found.tokens[4] == []


def test_logit_effects_are_finite_differences_of_the_model():
    lm, sae = tiny_lm(), random_sae(16, 24, 4, 0)
    found = logit_effects(lm, SITE, sae, TOKENS, n=3)
    last = Site("resid_post", 1)
    x = lm.activations(TOKENS[:LINEARISED], [last])[last][:, -1:].double()
    lm.hf.double()
    step = 1e-4 * sae.W_dec.double()
    for latent in range(24):
        change = lm.logits_from(last, x + step[latent]) - lm.logits_from(last, x - step[latent])
        effect = (change / 2e-4).mean((0, 1))
        effect = effect - effect.mean()
        best, worst = effect.topk(3), (-effect).topk(3)
        assert found["promoted"][latent].tolist() == best.indices.tolist()
        assert found["promoted_by"][latent].tolist() == pytest.approx(best.values.tolist(), rel=1e-3)
        assert found["suppressed"][latent].tolist() == worst.indices.tolist()
        assert found["suppressed_by"][latent].tolist() == pytest.approx((-worst.values).tolist(), rel=1e-3)
    assert len(logit_effects(lm, Site("mlp_in", 0), sae, TOKENS)["promoted"][0]) == 0


def test_the_final_norm_is_linearised_at_text():
    """Prompts that end with a special token count at the last token before it."""
    lm, tokens = tiny_lm(), TOKENS.where(TOKENS != 3, 4)
    ended = torch.cat([tokens[:, :9], torch.full((len(tokens), 2), 3)], 1)
    ended[0] = 3
    found = final_jacobian(lm, ended, (3,))
    torch.testing.assert_close(found, final_jacobian(lm, tokens[1:, :9]))


@pytest.mark.parametrize("width", [1, 4, 10])
def test_edges_are_the_strongest_of_a_ranking_whatever_fits_the_memory(width: int, monkeypatch: pytest.MonkeyPatch):
    lm = tiny_lm()
    saes = {Site("resid_mid", 0): random_sae(16, 12, 4, 0), Site("resid_post", 0): random_sae(16, 10, 4, 1)}
    up, down = saes
    widths: list[int] = []

    def watched(*arguments: Any) -> Iterator[Any]:
        for columns, some in summed(*arguments):
            widths.append(some.shape[1])
            yield columns, some

    monkeypatch.setattr("scalar_sae.evaluation.features.edges.summed", watched)
    pair = Pair(lm, Block(up, down), *saes.values())
    held = PROCESS + WORKSPACE + 4 * sum(p.numel() for p in lm.parameters()) + 4 * 2 * 16 * (12 + 10)
    held += TOKENS.shape[1] * (PLACE_BYTES * 10 + LABEL_BYTES * lm.d_vocab)
    tables = strongest_edges(lm, saes, TOKENS[:2], n=3, memory=(held + SUM_BYTES * 12 * width + 1) / 1e9)
    assert max(widths) == width
    assert sum(widths) == 10
    with pytest.raises(UserError, match="12 x 10 latents need"):
        strongest_edges(lm, saes, TOKENS[:2], n=3, memory=held / 1e9)
    scores = rank(pair, TOKENS[:2], "leave_one_out", 0)
    for site, side, other, matrix in ((up, "down", down, scores), (down, "up", up, scores.T)):
        rows = tables[site].to_pylist()
        assert {(row["side"], row["site"]) for row in rows} == {(side, str(other))}
        for latent, mine in enumerate(matrix):
            best = mine.topk(3)
            expected = [(i, v) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True) if v > 0]
            there = [(row["other"], row["score"]) for row in rows if row["latent"] == latent]
            assert [v for _, v in there] == pytest.approx([v for _, v in expected], rel=1e-4)
            assert all(matrix[latent, i].item() == pytest.approx(v, rel=1e-4) for i, v in there)


def test_the_command_goes_on_where_it_stopped(features_run: Path):
    folder = features_run / "features" / "topk" / "resid_mid.0"
    tables = {"latents.parquet", "contexts.parquet", "vocabulary.parquet", "edges.parquet"}
    assert tables | {"page"} <= {path.name for path in folder.iterdir()}
    before = (folder / "contexts.parquet").stat().st_mtime_ns
    again = ("features", features_run, "--tokens", features_run / "text.txt", "--prompts", 24, "--context", 32,
             "--edge-prompts", 1)  # fmt: skip
    assert scalar(*again, "--device", "cpu").stdout.count("index.html") == 2
    assert (folder / "contexts.parquet").stat().st_mtime_ns == before
    for wrong, complaint in (
        (("--method", "topp"), "did you mean 'topk'"), (("--device", "gpu9"), "gpu9"),
        (("--edges", "leave_one_outs"), "did you mean 'leave_one_out'"),
        (
            ("--prompts", 20, "--edges", "ig"),
            "features/topk: holds other tables (edges: leave_one_out here, ig asked; prompts: 24 here, 20 asked; ",
        ),
    ):  # fmt: skip
        done = scalar(*again, *wrong, check=False)
        assert done.returncode == 2
        assert complaint in done.stderr
    with pytest.raises(UserError, match="no feature tables here"):
        write_page(features_run, "run")


@pytest.mark.browser
def test_the_page_in_a_browser(features_run: Path, browser: Any):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select
    from selenium.webdriver.support.wait import WebDriverWait

    folder = features_run / "features" / "topk" / "resid_mid.0"
    density = pq.read_table(folder / "latents.parquet")["density"].to_pylist()
    busiest = max(range(130), key=lambda latent: density[latent])
    browser.get((folder / "page" / "index.html").as_uri())

    def shows(latent: int) -> None:
        WebDriverWait(browser, 20).until(
            lambda b: b.find_element(By.TAG_NAME, "body").get_attribute("data-latent") == str(latent)
        )

    shows(0)
    assert browser.title.startswith("topk resid_mid.0, on text.txt (768 tokens; whether")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#list tr")) == 130
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    shows(1)
    Select(browser.find_element(By.ID, "order")).select_by_value("density")
    shows(busiest)
    bands = sum(n > 0 for n in pq.read_table(folder / "latents.parquet")["octaves"].to_pylist()[busiest])
    assert len(browser.find_elements(By.CSS_SELECTOR, "#latent pre")) == 20 + bands
    assert len(browser.find_elements(By.CSS_SELECTOR, "#latent pre .at")) == 20 + bands
    ActionChains(browser).key_down(Keys.ALT).send_keys(Keys.ARROW_DOWN).key_up(Keys.ALT).perform()
    ActionChains(browser).key_down(Keys.CONTROL).send_keys(Keys.ARROW_RIGHT).key_up(Keys.CONTROL).perform()
    shows(busiest)
    assert "balanced accuracy" in browser.find_element(By.CSS_SELECTOR, ".rule").text
    edge = browser.find_element(By.CSS_SELECTOR, "#latent a")
    assert edge.text.startswith("resid_post.0 ")
    other = int(edge.text.split()[1])
    edge.click()
    WebDriverWait(browser, 20).until(lambda b: b.title.startswith("topk resid_post.0,"))
    shows(other)
