"""What a judge says of edges and groups: what it is shown, and how its words are tested, against removals by hand."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import scalar_sae as ss
from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.judge import kept
from scalar_sae.evaluation.features.judges import Judge
from scalar_sae.explore.explanations import explain_edge, explain_features
from scalar_sae.scoring.pair import read
from tests.helpers import tiny_lm, tiny_pair

N_TOKEN = 16


class Case(NamedTuple):
    pair: ss.Pair
    edge: tuple[int, int]
    shown: Tensor
    tested: Tensor
    effect: dict[str, list[bool]]
    """For each prompt where the edge's removal changes the downstream latent."""


@pytest.fixture(scope="module")
def case() -> Case:
    pair = replace(tiny_pair("ff_block.0", n_up=64, k=2), lm=tiny_lm(d_vocab=128, context=N_TOKEN))
    tokens = torch.randint(97, 123, (40, N_TOKEN), generator=torch.Generator().manual_seed(0))
    full, prompts = ss.Circuit.full(pair), list(read(pair, tokens))
    acts = torch.stack([full.latents(one) for one in prompts])

    def removed(edge: tuple[int, int]) -> Tensor:
        cut = full.without(edges=[edge])
        return torch.stack([(full.latents(one) - cut.latents(one))[:, edge[1]] for one in prompts])

    often = torch.stack([one.z for one in prompts]).gt(0).any(1).float().mean(0)  # share of the prompts
    edge = int((often - 0.5).abs().argmin()), int((acts > 0).flatten(0, 1).sum(0).argmax())
    changed = removed(edge).abs() > 1e-5
    words = pair.lm.tokenizer
    effect = {words.decode(row.tolist()): changed[i].tolist() for i, row in enumerate(tokens)}
    assert changed[:20].any(1).sum() > 5
    assert not changed[20:].any(1).all()
    return Case(pair, edge, tokens[:20], tokens[20:], effect)


def texts(question: str) -> list[str]:
    return re.findall(r"^Text \d+: (.*)$", question, re.MULTILINE)


def plain(text: str) -> str:
    return text.replace("<<", "").replace(">>", "")


def marks(text: str) -> list[bool]:
    """Which letters of a text stand between << and >>."""
    return [len(part) > 1 for part in re.findall(r"<<.*?>>|.", text) for _ in part.strip("<>")]


def judge_by(active: Callable[[str], list[bool]], asked: list[str]) -> Judge:
    """A judge who knows where something is active, and answers accordingly."""

    def ask(question: str) -> str:
        asked.append(question)
        if "In one sentence" in question:
            return " what it does\n"
        assert "A feature of texts: what it does\n" in question
        said: list[bool] = []
        for text in texts(question):
            there = active(plain(text))
            said.append(marks(text) == there if "are marked" in question else any(there))
        return ", ".join(str(int(one)) for one in said)

    return Judge(ask, "knowing")


def part(case: Case, text: str) -> list[bool]:
    """Where the edge acts in a piece of one of the prompts."""
    whole = next(one for one in case.effect if text in one)
    return case.effect[whole][whole.find(text) :][: len(text)]


def test_an_edge_is_explained_on_one_text_and_tested_on_another(case: Case):
    asked: list[str] = []
    shares: list[float] = []
    found = explain_edge(
        case.pair, *case.edge, judge_by(lambda text: part(case, text), asked), case.shown, case.tested,
        on_progress=shares.append,
    )  # fmt: skip
    assert (found.explanation, found.detection, found.fuzzing) == ("what it does", 1.0, 1.0)
    assert found.judge == "knowing"
    assert shares == sorted(shares)
    first, *others = ([plain(text) for text in texts(q)] for q in asked)
    decode = case.pair.lm.tokenizer.decode
    shown, tested = ([decode(row.tolist()) for row in some] for some in (case.shown, case.tested))
    assert all(any(text in whole for whole in shown) for text in first)
    assert all(any(text in whole for whole in tested) for some in others for text in some)
    for text in texts(asked[0]):  # the marked tokens are those where the removal changes something
        assert marks(text) == part(case, plain(text))


def test_a_judge_who_guesses_scores_one_half_and_one_who_is_wrong_nothing(case: Case):
    guess = Judge(lambda question: ", ".join("1" for _ in texts(question)) or "x", "guessing")
    found = explain_edge(case.pair, *case.edge, guess, case.shown, case.tested)
    assert (found.detection, found.fuzzing) == (0.5, 0.5)
    knowing = judge_by(lambda text: part(case, text), [])
    flip = str.maketrans("01", "10")
    wrong = Judge(lambda q: knowing.ask(q).translate(flip), "wrong")
    found = explain_edge(case.pair, *case.edge, wrong, case.shown, case.tested)
    assert (found.detection, found.fuzzing) == (0.0, 0.0)


def test_a_group_is_active_where_one_of_its_features_is(case: Case):
    i = case.edge[0]
    z = torch.stack([one.z[:, [i, i + 1]] for one in read(case.pair, torch.cat([case.shown, case.tested]))])
    rows = torch.cat([case.shown, case.tested])
    whole = {case.pair.lm.tokenizer.decode(row.tolist()): (z[n] > 0).any(1).tolist() for n, row in enumerate(rows)}
    asked: list[str] = []

    def active(text: str) -> list[bool]:
        full = next(one for one in whole if text in one)
        return whole[full][full.find(text) :][: len(text)]

    found = explain_features(case.pair, judge_by(active, asked), case.shown, case.tested, up=[i, i + 1])
    assert (found.explanation, found.detection, found.fuzzing) == ("what it does", 1.0, 1.0)


def test_too_few_examples_and_latents_that_are_not_there_are_said(case: Case, tmp_path: Path):
    def never(question: str) -> str:
        raise AssertionError

    dead = int(torch.stack([one.z for one in read(case.pair, case.shown)]).flatten(0, 1).sum(0).argmin())
    found = explain_edge(case.pair, dead, 0, Judge(never, "m"), case.shown[:2], case.tested[:1])
    assert (found.explanation, found.detection, found.fuzzing) == (None, None, None)
    with pytest.raises(UserError, match="latent 64"):
        explain_edge(case.pair, 64, 0, Judge(never, "m"), case.shown, case.tested)
    with pytest.raises(UserError, match="no features"):
        explain_features(case.pair, Judge(never, "m"), case.shown, case.tested)


def test_answers_that_are_kept_are_not_asked_for_again(case: Case, tmp_path: Path):
    asked: list[str] = []
    path = tmp_path / "answers.jsonl"
    for _ in range(2):
        judge = kept(judge_by(lambda text: part(case, text), asked), path)
        found = explain_edge(case.pair, *case.edge, judge, case.shown, case.tested)
        assert found.detection == 1.0
        assert len(asked) == 3
