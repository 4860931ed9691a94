"""What an edge or a group of features does, in the words of a judge, with a test of these words.

    judge = endpoint("http://127.0.0.1:8000/v1", "some-model")
    explain_edge(pair, 17, 40, judge, texts.ranking, texts.scoring)
    explain_features(pair, judge, texts.ranking, texts.scoring, up=[17, 18])

The judge is asked as about a feature (evaluation/features/judge.py). An edge counts as active at a token if its removal
from the full circuit changes the downstream latent's activation there, and as strong as this change. Features count as
active where one of them is, and as strong as the strongest of them, each in units of its own maximum.

The judge explains what it sees in one text. Detection and fuzzing test the explanation on prompts of another text,
which the judge was not shown.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.features import AFTER, BEFORE
from scalar_sae.evaluation.features.judge import SHOWN, Example, judged
from scalar_sae.evaluation.features.judges import Judge
from scalar_sae.explore.examples import without_edge
from scalar_sae.explore.passage import Passage, passages
from scalar_sae.explore.plain import Explained
from scalar_sae.explore.stage import check_latents
from scalar_sae.scoring.pair import Pair

TESTED = 10
"""Texts of each kind, active and not, on which an explanation is tested."""
OnProgress = Callable[[float], object]
Strengths = Float[Tensor, "prompt token"]
Text = Integer[Tensor, "_prompt _token"]


def explain_edge(
    pair: Pair,
    up: int,
    down: int,
    judge: Judge,
    shown: Text,
    tested: Text,
    seed: int = 0,
    on_progress: OnProgress = lambda done: None,
) -> Explained:
    """Have a judge explain when an edge matters, and test the explanation on another text.

    Args:
        pair: the pair.
        up: upstream latent.
        down: downstream latent.
        judge: the judge.
        shown: the text that examples for the judge come from.
        tested: the text that the explanation is tested on.
        seed: seed of the choice of tested examples, and of their order.
        on_progress: called with the share that is done. An exception raised in it stops the work.

    Raises:
        UserError: the pair has no such latent, the model cannot read a text, or the judge does not answer.
    """
    check_latents(pair, [up], [down])

    def strength(passage: Passage) -> Float[Tensor, "token one"]:
        return without_edge(passage.last, up, down)[1].abs().unsqueeze(1)

    return _explained(pair, strength, judge, shown, tested, seed, on_progress)


def explain_features(
    pair: Pair,
    judge: Judge,
    shown: Text,
    tested: Text,
    up: Collection[int] = (),
    down: Collection[int] = (),
    seed: int = 0,
    on_progress: OnProgress = lambda done: None,
) -> Explained:
    """Have a judge explain what some features of a pair have in common, and test the explanation on another text.

    Args:
        pair: the pair.
        judge: the judge.
        shown: the text that examples for the judge come from.
        tested: the text that the explanation is tested on.
        up: upstream latents.
        down: downstream latents, as they are in the full circuit.
        seed: seed of the choice of tested examples, and of their order.
        on_progress: called with the share that is done. An exception raised in it stops the work.

    Raises:
        UserError: no latent is named, the pair has no such latent, the model cannot read a text, or the judge does not
            answer.
    """
    check_latents(pair, up, down)
    if not up and not down:
        raise UserError("no features to explain; name upstream or downstream latents")

    def strength(passage: Passage) -> Float[Tensor, "token feature"]:
        stage = passage.last
        return torch.cat([stage.prompt.z[:, list(up)], stage.full[:, list(down)]], 1)

    return _explained(pair, strength, judge, shown, tested, seed, on_progress)


@torch.no_grad()
def _explained(
    pair: Pair,
    strength: Callable[[Passage], Tensor],
    judge: Judge,
    shown: Text,
    tested: Text,
    seed: int,
    on_progress: OnProgress,
) -> Explained:
    """An explanation of what is active with these strengths, which are read of every prompt."""
    rng, n, done = np.random.default_rng(seed), len(shown) + len(tested), 0

    def read(tokens: Text) -> tuple[Float[Tensor, "prompt token feature"], Bool[Tensor, "prompt token"]]:
        nonlocal done
        found: list[Tensor] = []
        there: list[Tensor] = []
        for passage in passages([pair], tokens):
            found.append(strength(passage).cpu())
            there.append(passage.last.prompt.text.cpu())
            done += 1
            on_progress(0.5 * done / n)
        return torch.stack(found), torch.stack(there)

    of_shown, text_shown = read(shown)
    of_tested, text_tested = read(tested)
    most = of_shown.flatten(0, 1).amax(0)
    scale = torch.where(most > 0, most, 1.0)
    acts, held_out = ((values / scale).amax(-1) for values in (of_shown, of_tested))
    rows = [
        *_strongest(acts * text_shown, shown),
        *_tested(held_out * text_tested, text_tested, tested, len(shown), rng),
    ]
    used = sorted({token for row in rows for token in row["tokens"]})
    asked = 0

    def ask(question: str) -> str:
        nonlocal asked
        on_progress(0.5 + asked / 6)  # three questions
        asked += 1
        return judge.ask(question)

    vocabulary = dict(zip(used, pair.lm.tokenizer.pieces(used), strict=True))
    return Explained(**judged(rows, vocabulary, ask, rng, pair.special), judge=judge.model)


def _strongest(acts: Strengths, tokens: Text) -> Iterator[Example]:
    """The strongest token of each of the prompts with the strongest ones."""
    value, at = acts.max(1)
    for prompt in value.argsort(descending=True, stable=True)[:SHOWN].tolist():
        if value[prompt] > 0:
            yield _example("top", prompt, int(at[prompt]), acts, tokens, prompt)


def _tested(
    acts: Strengths, text: Bool[Tensor, "prompt token"], tokens: Text, first: int, rng: np.random.Generator
) -> Iterator[Example]:
    """A uniform sample of the active tokens, and one of the ordinary tokens around which nothing is active. Prompts are
    numbered from `first`.
    """
    active = acts > 0
    after = torch.nn.functional.pad(active.long().cumsum(1), (1, 0))
    n_token = acts.shape[1]
    position = torch.arange(n_token)
    begin, end = (position - BEFORE).clamp_min(0), (position + AFTER + 1).clamp_max(n_token)
    silent = text & (after[:, end] == after[:, begin])
    for kind, where in (("random", active), ("silent", silent)):
        places: Sequence[list[int]] = where.nonzero().tolist()
        for number in rng.permutation(len(places))[:TESTED].tolist():
            prompt, at = places[number]
            yield _example(kind, prompt, at, acts, tokens, first + prompt)


def _example(kind: str, row: int, at: int, acts: Strengths, tokens: Text, prompt: int) -> Example:
    start, end = max(0, at - BEFORE), min(acts.shape[1], at + AFTER + 1)
    return {
        "kind": kind,
        "prompt": prompt,
        "position": at,
        "start": start,
        "tokens": tokens[row, start:end].tolist(),
        "acts": acts[row, start:end].tolist(),
    }
