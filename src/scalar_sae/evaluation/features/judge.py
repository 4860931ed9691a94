"""Automated interpretability (arXiv 2410.13928): can a language model tell where a latent fires, from its own
explanation?

    judge = endpoint("http://127.0.0.1:8000/v1", "some-model")    # see judges.py for the judges that can be asked
    judge_features(folder, judge, 100)                            # one line per latent in folder/judged.jsonl

The judge sees the strongest examples, with the tokens where the latent fires between << and >>, and explains what they
have in common. Then two tests use the explanation alone:

    detection   which of these texts does the latent fire in?                in some of them it never does
    fuzzing     in which of these texts are the right tokens marked?         every other one has other tokens marked

Scores are balanced accuracies, so guessing scores 0.5 whatever the class sizes. No text is both shown and tested. Every
line names its judge, so another judge is asked anew and its answers are kept beside the first judge's.
"""

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict

from scalar_sae import jsonl
from scalar_sae.console import Bar
from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.judged import Judged, read_judged
from scalar_sae.evaluation.features.judges import Ask, Judge
from scalar_sae.evaluation.features.tables import as_numpy, read_counted, read_examples
from scalar_sae.io import check_writable
from scalar_sae.lm.special import FIRST, First
from scalar_sae.locks import held

SHOWN = 5
"""Number of examples shown to the judge."""
FEWEST = 4
"""Minimum number of texts of each kind for a latent to be tested."""

Example = dict[str, Any]
"""A row of the table of contexts (tables.py): `kind`, `prompt`, `position`, `start`, `tokens`, `acts`."""


class Said(BaseModel):
    """One answer: a line of `.judging.jsonl`, about a latent that is not finished, or of a file of `kept`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str
    """SHA-256 of the judge, the latent and the question."""
    answer: str


EXPLAIN = """Some texts, in which a feature is active at the tokens between << and >>:

{texts}

In one sentence: what do the marked tokens have in common? Answer with the sentence alone."""
DETECT = """A feature of texts: {explanation}

{texts}

In which of these {n} texts is the feature active? Answer with {n} numbers alone, separated by commas: 1 for yes, 0 for
no, in the order of the texts."""
FUZZ = """A feature of texts: {explanation}

In each text some tokens are marked by << and >>.

{texts}

In which of these {n} texts are the marked tokens those where the feature is active? Answer with {n} numbers alone,
separated by commas: 1 for yes, 0 for no, in the order of the texts."""


def judge_features(folder: Path, judge: Judge, n_latents: int, seed: int = 0) -> Path:
    """Judge a random sample of the testable latents. Latents that this judge has finished are skipped.

    Every answer is saved before the next question, so none is paid for twice. Two processes never ask at the same time.

    Raises:
        UserError: there are no feature tables, they have too few examples, the folder cannot be written, another
            process is judging its latents, or the judge does not answer.
    """
    table, vocabulary = read_examples(folder)
    special = read_counted(folder).special
    with held(
        folder, "judged.jsonl", remedy="wait until it ends; its answers are kept and will not be asked for again"
    ):
        return _judge(folder, judge, n_latents, seed, table, vocabulary, special)


def _judge(
    folder: Path,
    judge: Judge,
    n_latents: int,
    seed: int,
    table: pa.Table,
    vocabulary: dict[int, str],
    special: Collection[int | First],
) -> Path:
    out = folder / "judged.jsonl"
    questions = hashlib.sha256(json.dumps([SHOWN, EXPLAIN, DETECT, FUZZ]).encode()).hexdigest()[:12]
    who: dict[str, str | int | None] = {"model": judge.model, "url": judge.url, "questions": questions, "seed": seed}
    done = {row.latent for row in read_judged(folder) if row.judge == who}
    candidates = _askable(table)
    if not len(candidates):
        raise UserError(
            f"{folder}: no latent has {FEWEST} texts where it fires and {FEWEST} where it does not; read more"
        )
    chosen = np.random.default_rng(seed).permutation(candidates)[:n_latents].tolist()
    jsonl.check_appendable(out)
    begun = folder / ".judging.jsonl"
    said = {line.question: line.answer for line in jsonl.read(begun, Said)}
    with Bar("judge", len(chosen)) as bar:
        for latent in chosen:
            if latent not in done:
                rows = table.filter(pc.field("latent") == latent).to_pylist()
                ask = _remembering(judge.ask, said, begun, [who, latent])
                record = judged(rows, vocabulary, ask, np.random.default_rng([seed, latent]), special)
                jsonl.append(out, Judged(latent=latent, judge=who, **record))
            bar.step()
    begun.unlink(missing_ok=True)
    return out


def kept(judge: Judge, path: Path) -> Judge:
    """A judge whose answers are kept in a file, so that none is paid for twice.

    Raises:
        UserError: the file is damaged, or cannot be written.
    """
    check_writable(path, "run")
    said = {line.question: line.answer for line in jsonl.read(path, Said)}
    return judge._replace(ask=_remembering(judge.ask, said, path, [judge.model, judge.url]))


def _remembering(ask: Ask, said: dict[str, str], path: Path, about: list[Any]) -> Ask:
    """Wrap a judge so that its answers are saved in a file, and answers in `said` are not asked for again."""

    def remembering(question: str) -> str:
        key = hashlib.sha256(json.dumps([about, question]).encode()).hexdigest()
        if key not in said:
            said[key] = ask(question)
            jsonl.append(path, Said(question=key, answer=said[key]))
        return said[key]

    return remembering


def _askable(table: pa.Table) -> Int[np.ndarray, " n"]:
    """The latents with enough texts of each kind from prompts that are not among the shown examples."""
    latent, prompt = (as_numpy(table[name]).astype(np.int64) for name in ("latent", "prompt"))
    kind = np.array(table["kind"].to_pylist())
    place = latent * (prompt.max(initial=0) + 1) + prompt
    top = np.flatnonzero(kind == "top")
    top = top[latent[top].argsort(kind="stable")]
    rank = np.arange(len(top)) - np.searchsorted(latent[top], latent[top])
    left = ~np.isin(place, place[top[rank < SHOWN]])
    n = latent.max(initial=0) + 1
    random, silent = (np.bincount(latent[left & (kind == name)], minlength=n) for name in ("random", "silent"))
    return np.flatnonzero((random >= FEWEST) & (silent >= FEWEST))


def judged(
    rows: list[Example],
    vocabulary: dict[int, str],
    ask: Ask,
    rng: np.random.Generator,
    special: Collection[int | First] = (),
) -> dict[str, Any]:
    """Explanation and both scores of one latent, from its examples. A score is null with too few examples or no valid
    answer.
    """
    record: dict[str, Any] = {"explanation": None, "detection": None, "fuzzing": None}
    of_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("top", "random", "silent")}
    shown = of_kind["top"][:SHOWN]
    seen = {row["prompt"] for row in shown}
    active, silent = ([row for row in of_kind[kind] if row["prompt"] not in seen] for kind in ("random", "silent"))
    if len(active) < FEWEST or len(silent) < FEWEST:
        return record
    texts = [_marked(row, vocabulary, _live(row)) for row in shown]
    record["explanation"] = explanation = ask(EXPLAIN.format(texts=_numbered(texts))).strip()
    plain = [(_marked(row, vocabulary, set()), row["kind"] == "random") for row in active + silent]
    record["detection"] = _score(ask, DETECT, explanation, plain, rng)
    fuzzed = [
        (_marked(row, vocabulary, _live(row) if right else _others(row, rng, special)), right)
        for right, some in ((True, active[::2]), (False, active[1::2]))
        for row in some
    ]
    record["fuzzing"] = _score(ask, FUZZ, explanation, fuzzed, rng)
    return record


def _score(
    ask: Ask, question: str, explanation: str, texts: list[tuple[str, bool]], rng: np.random.Generator
) -> float | None:
    """Balanced accuracy of the answers; None if there is not one answer per text."""
    texts = [texts[i] for i in rng.permutation(len(texts))]
    answer = ask(question.format(explanation=explanation, texts=_numbered([text for text, _ in texts]), n=len(texts)))
    said = [found == "1" for found in re.findall(r"\b[01]\b", answer)]
    if len(said) != len(texts):
        return None
    right = [
        [yes == is_so for yes, (_, is_so) in zip(said, texts, strict=True) if is_so is kind] for kind in (True, False)
    ]
    return float(np.mean([np.mean(some) for some in right]))


def _live(row: dict[str, Any]) -> set[int]:
    """The tokens of an example where the latent fires."""
    return {i for i, act in enumerate(row["acts"]) if act > 0}


def _others(row: dict[str, Any], rng: np.random.Generator, special: Collection[int | First]) -> set[int]:
    """Ordinary tokens where the latent does not fire, as many as it fires on if there are enough."""
    live = _live(row)
    begin = -row["start"] if FIRST in special else None
    rest = [i for i, token in enumerate(row["tokens"]) if i not in live and i != begin and token not in special]
    return set(rng.permutation(rest)[: len(live)].tolist())


def _marked(row: dict[str, Any], vocabulary: dict[int, str], places: set[int]) -> str:
    """The text of an example, with << and >> around some tokens (around runs of them)."""
    parts: list[str] = []
    for i, token in enumerate(row["tokens"]):
        before = "<<" if i in places and i - 1 not in places else ""
        after = ">>" if i in places and i + 1 not in places else ""
        parts.append(f"{before}{vocabulary[token]}{after}")
    return "".join(parts)


def _numbered(texts: list[str]) -> str:
    return "\n\n".join(f"Text {i}: {text}" for i, text in enumerate(texts, start=1))
