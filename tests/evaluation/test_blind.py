"""Blind comparison: pairs of equal density, answers that survive, the summary by hand, the page under keys."""

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from scalar_sae.activations.cache import fingerprint
from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.blind import Answers, FeaturePair, Pairs, draw, prepare, summary
from scalar_sae.evaluation.run import prepare_blind
from scalar_sae.io import write_json
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.toy import toy_gpt
from scalar_sae.report.blind import Comparison, serve
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import SaeCard, save_sae
from scalar_sae.sites import Site
from scalar_sae.tokenizer import byte_pairs
from tests.helpers import random_sae, running, tiny_lm
from tests.test_study import scalar

TOKENS = torch.randint(0, 32, (20, 16), generator=torch.Generator().manual_seed(0))
NAMES = {"a": "runs/one", "b": "runs/two"}


def comparison(
    out: Path, n_pairs: int = 4, tokens: Tensor = TOKENS, lm: LanguageModel | None = None, b: SAE | None = None
) -> Pairs:
    saes = {"a": random_sae(16, 24, 4, 0), "b": b or random_sae(16, 30, 4, 1)}
    return prepare(out, lm or tiny_lm(), Site("resid_mid", 1), saes, NAMES, tokens, n_pairs)


def answered(out: Path, pairs: list[FeaturePair], raters: dict[str, list[str]]) -> None:
    write_json(out / "pairs.json", Pairs(names=NAMES, pairs=pairs).model_dump())
    for name, choices in raters.items():
        answers = Answers(out, name, len(pairs))
        for pair, choice in enumerate(choices):
            answers.add(pair, choice, 1.0)


def test_pairs_have_about_the_same_density_and_use_no_latent_twice():
    rng = np.random.default_rng(0)
    a, b = (10.0 ** rng.uniform(-5, -1, size=n) for n in (300, 400))
    a[:50] = 0
    pairs = draw(a, b, 100, seed=0)
    assert len({pair.a for pair in pairs}) == len({pair.b for pair in pairs}) == 100
    assert all(a[pair.a] > 0 for pair in pairs)
    matched = np.mean([abs(np.log10(a[pair.a] / b[pair.b])) for pair in pairs])
    assert matched < 0.1
    assert 25 < sum(pair.left == "a" for pair in pairs) < 75
    assert pairs == draw(a, b, 100, seed=0)
    with pytest.raises(UserError, match="251 pairs wanted; 250 and 400 latents"):
        draw(a, b, 251, seed=0)


def test_the_question_names_nobody(tmp_path: Path):
    comparison(tmp_path)
    question = Comparison(tmp_path, "ann").question()
    assert set(question) == {"number", "done", "total", "answer", "left", "right"}
    for side in ("left", "right"):
        assert all(set(example) == {"kind", "tokens"} for example in question[side])
        assert max(act for example in question[side] for _, act in example["tokens"]) == 1


def test_tokens_are_shown_as_the_models_own_text(tmp_path: Path):
    text = "the cat sat on the mat, as cats do " * 60
    tokenizer = byte_pairs([text], 300)
    config = GPT2Config(vocab_size=300, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    lm = LanguageModel(GPT2LMHeadModel(config), "words", tokenizer)
    tokens = tokenizer.encode(text)[0].long()[:320].view(20, 16)
    saes = {"a": random_sae(16, 24, 4, 0), "b": random_sae(16, 24, 4, 1)}
    prepare(tmp_path, lm, Site("resid_mid", 1), saes, NAMES, tokens, 2)
    question = Comparison(tmp_path, "ann").question()
    shown = ["".join(piece for piece, _ in example["tokens"]) for example in question["left"] + question["right"]]
    assert all(some in text for some in shown)
    assert any(" cat sat" in some for some in shown)


def test_answers_survive_and_go_on(tmp_path: Path):
    pairs = comparison(tmp_path)
    asked = Comparison(tmp_path, "ann")
    for choice in ("left", "neither"):
        asked.answer({"pair": asked.question()["number"], "choice": choice})
    with (tmp_path / "answers" / "ann.jsonl").open("a") as file:
        file.write('{"pair": 2, "cho')  # the machine went down while writing
    again = Comparison(tmp_path, "ann")
    assert again.question()["number"] == 2
    assert Comparison(tmp_path, "bob").question()["number"] == 0
    assert comparison(tmp_path) == pairs
    for change in ({"tokens": TOKENS[:9]}, {"pairs": 3}, {"lm": tiny_lm(1)}, {"b": random_sae(16, 30, 4, 2)}):
        with pytest.raises(UserError, match=rf"holds other tables \({next(iter(change))}[^:]*: .* here, .* asked\)"):
            comparison(tmp_path, change.get("pairs", 4), **{k: v for k, v in change.items() if k != "pairs"})
    again.answer({"pair": 2, "choice": "right"})
    assert Comparison(tmp_path, "ann").answers.choices == {0: "left", 1: "neither", 2: "right"}
    assert again.question(1)["answer"] == "neither"
    again.answer({"pair": 1, "choice": "left", "before": "neither"})
    assert Comparison(tmp_path, "ann").answers.choices == {0: "left", 1: "left", 2: "right"}
    assert again.question()["number"] == 3


def test_summary_by_hand(tmp_path: Path):
    pairs = [FeaturePair(a=i, b=i, left="a" if i % 2 else "b") for i in range(4)]
    answered(
        tmp_path, pairs, {"ann": ["left", "left", "neither", "right"], "bob": ["left", "right", "neither", "left"]}
    )
    found = summary(tmp_path)
    assert found.counts == {"ann": {"a": 1, "b": 2, "neither": 1}, "bob": {"a": 1, "b": 2, "neither": 1}}
    assert found.share_b == pytest.approx(4 / 6)
    # alike at pairs 0 and 2; by chance 1/4 * 1/4 + 1/2 * 1/2 + 1/4 * 1/4 = 3/8
    assert found.agreement == {"ann, bob": (4, 0.5, pytest.approx((0.5 - 3 / 8) / (1 - 3 / 8)))}


def test_the_interval_covers_no_preference_when_there_is_none(tmp_path: Path):
    rng = np.random.default_rng(0)
    pairs = [FeaturePair(a=i, b=i, left="a") for i in range(200)]
    answered(tmp_path, pairs, {"ann": ["left" if coin else "right" for coin in rng.integers(2, size=200)]})
    low, high = summary(tmp_path).interval
    assert low < 0.5 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 200**0.5, rel=0.2)


def test_few_decided_answers(tmp_path: Path):
    """Wilson's interval where all agree (its closed form for n of n); no draw without an answer; a and b alike."""
    pairs = [FeaturePair(a=i, b=i, left="a") for i in range(12)]
    said = {
        "agree": ["right"] * 3 + ["neither"] * 9,
        "few": ["left", "right", "right"] + ["neither"] * 9,
        "none": ["neither"] * 12,
    }
    found: dict[str, Any] = {}
    for name, answers in said.items():
        mirrored = [{"left": "right", "right": "left"}.get(one, one) for one in answers]
        for swapped, some in ((False, answers), (True, mirrored)):
            answered(tmp_path / f"{name}{swapped}", pairs, {"ann": some})
        found[name], other = (summary(tmp_path / f"{name}{swapped}").interval for swapped in (False, True))
        assert (found[name] is None) == (other is None)
        if other:
            assert found[name] == pytest.approx((1 - other[1], 1 - other[0]))
    z = 1.959964
    assert found["agree"] == pytest.approx((3 / (3 + z * z), 1))
    assert found["few"] == pytest.approx((0, 1))
    assert found["none"] is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the same model, and SAEs without one: of its width, and of another."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    for run in ("one", "two"):
        LanguageModel(toy_gpt(), "toy").hf.save_pretrained(folder / run / "lm")
    for number, (run, d_model) in enumerate((("one", 64), ("two", 64), ("bare", 64), ("narrow", 8))):
        sae = random_sae(d_model, 48, 6, number)
        save_sae(sae, SaeCard.of(sae, "topk", "topk", Site("resid_mid", 0), {}), folder / run / "saes" / "topk" / "x")
    (folder / "text.txt").write_text("def f(x1):\n    return [x1 for Y in (2, 33)]\n" * 60)
    return folder


def test_the_model_is_that_of_a_run_above(runs: Path, tmp_path: Path):
    def sae(run: str) -> Path:
        return runs / run / "saes" / "topk" / "x"

    prepare_blind(tmp_path / "out", sae("bare"), sae("two"), None, str(runs / "text.txt"), 2, 16)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["lm"] == fingerprint(LanguageModel.load(runs / "two" / "lm"))
    for a, b, complaint in (
        (sae("bare"), sae("bare"), "name the one that they read with --lm"),
        (sae("one"), sae("narrow"), "narrow/saes/topk/x: reads 8 dimensions"),
    ):
        with pytest.raises(UserError, match=complaint):
            prepare_blind(tmp_path / "other", a, b, None, str(runs / "text.txt"), 2, 16)


def test_bad_input(tmp_path: Path):
    for arguments, complaint in (
        (["--summary"], "pairs.json: no comparison here; start one with scalar blind"),
        ([], "needs the folders of two SAEs"),
        ([tmp_path, tmp_path], "no SAE here"),
    ):
        done = scalar("blind", "--out", tmp_path / "none", *arguments, check=False)
        assert done.returncode == 2
        assert complaint in done.stderr
    comparison(tmp_path)
    with pytest.raises(UserError, match="no answers yet"):
        summary(tmp_path)
    with pytest.raises(UserError, match="letters, digits"):
        Answers(tmp_path, "../ann", 4)
    with pytest.raises(UserError, match="expected a pair below 4"):
        Comparison(tmp_path, "ann").answer({"pair": 4, "choice": "left"})


def test_the_server_refuses_what_is_no_answer(tmp_path: Path):
    comparison(tmp_path)
    with running(serve(Comparison(tmp_path, "ann"), 0)) as server:
        wrong = [("answer", body) for body in (b"not json", b"[]", b'{"pair": 0, "choice": "both"}')]
        for path, body in (*wrong, ("question/4", None)):
            request = urllib.request.Request(server.url + path, body, {"Content-Type": "application/json"})
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request)
            assert refused.value.code == 400
            refused.value.close()
        with pytest.raises(UserError, match="choose another"):
            serve(Comparison(tmp_path, "ann"), server.port)
    assert list((tmp_path / "answers").iterdir()) == []


@pytest.mark.browser
def test_the_page_under_keys(tmp_path: Path, browser: Any):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    comparison(tmp_path)
    with running(serve(Comparison(tmp_path, "ann"), 0)) as server:
        browser.get(server.url)

        def shows(pair: str) -> None:
            WebDriverWait(browser, 10).until(
                lambda b: b.find_element(By.TAG_NAME, "body").get_attribute("data-pair") == pair
            )

        shows("0")
        assert len(browser.find_elements(By.CSS_SELECTOR, "#left pre")) >= 10
        assert "runs/" not in browser.page_source
        browser.set_window_size(900, 400)
        for modifier in (Keys.ALT, Keys.CONTROL, Keys.META):  # Alt and left is the browser's own way back
            ActionChains(browser).key_down(modifier).send_keys("n").key_up(modifier).perform()
        ActionChains(browser).send_keys(Keys.ARROW_DOWN).perform()
        seen = [0]
        while seen[-1] == 0 or seen[-1] != seen[-2]:  # until the page rests further down
            time.sleep(0.1)
            seen.append(browser.execute_script("return scrollY"))
        shows("0")
        for number, key in enumerate((Keys.ARROW_LEFT, "n")):
            ActionChains(browser).send_keys(key).perform()
            shows(str(number + 1))
            assert browser.execute_script("return scrollY") == 0
        browser.refresh()
        shows("2")
        assert browser.find_element(By.ID, "progress").text == "2 of 4"
        browser.find_element(By.CSS_SELECTOR, "[data-choice=right]").click()
        shows("3")
        ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
        shows("null")
        assert browser.find_element(By.ID, "end").is_displayed()
        for pair in ("3", "2"):
            ActionChains(browser).send_keys(Keys.BACKSPACE).perform()
            shows(pair)
        assert browser.find_element(By.ID, "progress").text == "4 of 4; your answer was: right"
        ActionChains(browser).send_keys(Keys.ARROW_LEFT).perform()
        shows("null")
    assert list(Answers(tmp_path, "ann", 4).choices.values()) == ["left", "neither", "left", "right"]
    done = scalar("blind", "--out", tmp_path, "--summary")
    assert json.loads(done.stdout)["counts"]["ann"]["neither"] == 1
