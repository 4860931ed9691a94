"""Can a language model tell where a latent fires, once it has put its examples into words? (arXiv 2410.13928)

    judge = endpoint("http://127.0.0.1:8000/v1", "some-model")    # any OpenAI-compatible server; or local("a-folder")
    judge_features(folder, judge, 100)                            # a line a latent in folder/judged.jsonl

The judge is shown strongest examples, the tokens where the latent fires between << and >>, and says what they have in
common. Then, with that sentence alone,

    detection   which of these texts does the latent fire in?                in some of them it never does
    fuzzing     in which of these texts are the right tokens marked?         every other one has other tokens marked

Scores are balanced accuracies, so that guessing is 0.5 whatever there is more of. No text is both shown and asked
about. Every line says who judged, so that another judge is asked anew and its answers lie beside the first one's.
"""

import hashlib
import json
import os
import re
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from scalar_sae.console import Bar
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.measures.features import read_vocabulary
from scalar_sae.tokenizer import Pretrained

Ask = Callable[[str], str]
"""From a question to the judge's answer."""


class Judge(NamedTuple):
    """Who is asked."""

    ask: Ask
    model: str
    url: str | None = None
    """Its server; None for a model in this process."""


SHOWN = 5
"""Examples that the judge explains."""
FEWEST = 4
"""Texts of either kind that a latent needs to be asked about."""
SECONDS = 120.0
"""How long an answer may take, and how long a busy server may ask to wait."""
BUSY = (429, 503)
TRIES = 6

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


def endpoint(url: str, model: str) -> Judge:
    """A judge behind an OpenAI-compatible address (`.../v1`); the key is taken from OPENAI_API_KEY if that is set.

    A server that is too busy (429, 503) is asked again, TRIES times in all.
    """
    url = url.rstrip("/")
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"

    def ask(question: str) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
        request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
        try:
            said = _reply(request)["choices"][0]["message"]["content"]
            if not isinstance(said, str):
                raise ValueError("an empty message")
            return said
        except (OSError, HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{url}: no answer from {model} ({error}); the same command goes on from here") from error

    return Judge(ask, model, url)


def _reply(request: urllib.request.Request) -> Any:
    """The server's JSON, after as many waits as it takes."""
    attempt = 0
    while True:
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as reply:
                return json.load(reply)
        except HTTPError as error:
            attempt += 1
            if error.code not in BUSY or attempt == TRIES:
                raise
            with error:
                wait = _wait(error.headers["Retry-After"], 2.0 ** (attempt - 1))
            if wait > SECONDS:
                raise OSError(f"{error}; it asks to wait {wait:,.0f} s") from error
            time.sleep(wait)


def _wait(asked: str | None, otherwise: float) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date (RFC 9110, section 10.2.3)."""
    if asked is None:
        return otherwise
    if asked.strip().isdecimal():
        return float(asked)
    try:
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return otherwise


def local(source: str) -> Judge:
    """A judge of `transformers`, in this process.

    Raises:
        UserError: no such model, or one without a tokenizer of words.
    """
    lm = LanguageModel.load(source)
    if not isinstance(lm.tokenizer, Pretrained):
        raise UserError(f"{source}: a model of characters cannot judge")
    inner = lm.tokenizer.inner

    def ask(question: str) -> str:
        if inner.chat_template:
            turns = [{"role": "user", "content": question}]
            question = inner.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        given = inner(question, return_tensors="pt", add_special_tokens=not inner.chat_template)
        length = given.input_ids.shape[1]
        said = lm.hf.generate(**given, max_new_tokens=100, do_sample=False, pad_token_id=0)
        return inner.decode(said[0, length:], skip_special_tokens=True)

    return Judge(ask, source)


def judge_features(folder: Path, judge: Judge, n_latents: int, seed: int = 0) -> Path:
    """Judge a random sample of the latents that can be asked about; those this judge has answered for are left out.

    Raises:
        UserError: there are no feature tables, too few examples in them, or the judge does not answer.
    """
    if not (folder / "contexts.parquet").is_file():
        raise UserError(f"{folder}: no feature tables here; make them with scalar features")
    table = pq.read_table(folder / "contexts.parquet")
    out, vocabulary = folder / "judged.jsonl", read_vocabulary(folder)
    questions = hashlib.sha256(json.dumps([SHOWN, EXPLAIN, DETECT, FUZZ]).encode()).hexdigest()[:12]
    who = {"model": judge.model, "url": judge.url, "questions": questions, "seed": seed}
    done = {row["latent"] for row in read_judged(folder) if row.get("judge") == who}
    candidates = _askable(table)
    if not len(candidates):
        raise UserError(
            f"{folder}: no latent has {FEWEST} texts where it fires and {FEWEST} where it does not; read more"
        )
    chosen = np.random.default_rng(seed).permutation(candidates)[:n_latents].tolist()
    with Bar("judge", len(chosen)) as bar:
        for latent in chosen:
            if latent not in done:
                rows = table.filter(pc.field("latent") == latent).to_pylist()
                record = judged(rows, vocabulary, judge.ask, np.random.default_rng([seed, latent]))
                with out.open("a", encoding="utf-8") as file:
                    file.write("\n" + json.dumps({"latent": latent, **record, "judge": who}) + "\n")
            bar.step()
    return out


def _askable(table: pa.Table) -> Int[np.ndarray, " n"]:
    """The latents with enough texts of either kind, of prompts that are not among the examples shown of them."""
    latent, prompt = (table[name].to_numpy().astype(np.int64) for name in ("latent", "prompt"))
    kind = np.array(table["kind"].to_pylist())
    place = latent * (prompt.max(initial=0) + 1) + prompt
    top = np.flatnonzero(kind == "top")
    top = top[latent[top].argsort(kind="stable")]
    rank = np.arange(len(top)) - np.searchsorted(latent[top], latent[top])
    left = ~np.isin(place, place[top[rank < SHOWN]])
    n = latent.max(initial=0) + 1
    random, silent = (np.bincount(latent[left & (kind == name)], minlength=n) for name in ("random", "silent"))
    return np.flatnonzero((random >= FEWEST) & (silent >= FEWEST))


def read_judged(folder: Path) -> list[dict[str, Any]]:
    """What judges said so far; a line that was cut off is left out."""
    found: list[dict[str, Any]] = []
    path = folder / "judged.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def judged(
    rows: list[dict[str, Any]], vocabulary: dict[int, str], ask: Ask, rng: np.random.Generator
) -> dict[str, Any]:
    """Explanation and both scores of one latent, from its examples; null where there are too few, or no answer."""
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
        (_marked(row, vocabulary, _live(row) if right else _others(row, rng)), right)
        for right, some in ((True, active[::2]), (False, active[1::2]))
        for row in some
    ]
    record["fuzzing"] = _score(ask, FUZZ, explanation, fuzzed, rng)
    return record


def _score(
    ask: Ask, question: str, explanation: str, texts: list[tuple[str, bool]], rng: np.random.Generator
) -> float | None:
    """Balanced accuracy of the answers; None if they are not one a text."""
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


def _others(row: dict[str, Any], rng: np.random.Generator) -> set[int]:
    """As many tokens where it does not, or as many as there are."""
    live = _live(row)
    rest = [i for i in range(len(row["acts"])) if i not in live]
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
