"""Blind comparison of two SAEs' features (SCALAR §4.5): raters say which of two features is easier to interpret.

    prepare(out, lm, site, {"a": sae, "b": sae}, tokens)     pairs matched by density, sides drawn at random
    answers = Answers(out, "rater", len(pairs.pairs))        every answer is saved at once
    summary(out)                                             preference with an interval, agreement of raters

The folder `out` holds settings.json, a/ and b/ (feature tables), pairs.json (which latents, and which side is which;
not shown to raters) and answers/<rater>.jsonl, one line per answer.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from torch import Tensor

from scalar_sae import jsonl
from scalar_sae.activations.cache import fingerprint
from scalar_sae.digests import digest_of_sae
from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.features import read_features
from scalar_sae.evaluation.features.tables import read_examples, read_table
from scalar_sae.io import claim, write_json
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import Rule
from scalar_sae.locks import held
from scalar_sae.readers import read_json
from scalar_sae.records.sae_results import TextRead
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring.intervals import tail
from scalar_sae.scoring.record import rules
from scalar_sae.sites import Site

Choice = Literal["left", "right", "neither"]
LONGEST_NAME = 64
"""Maximum length of a rater's name."""
CHOICES: tuple[Choice, ...] = ("left", "right", "neither")
EXAMPLES = 10
"""Number of examples of each kind (strongest and random) shown for each feature."""


class FeaturePair(BaseModel):
    """Two latents of similar density, and which of them is shown on the left."""

    model_config = ConfigDict(extra="forbid", strict=True)

    a: NonNegativeInt
    b: NonNegativeInt
    left: Literal["a", "b"]


class Pairs(BaseModel):
    """The content of `pairs.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    names: dict[Literal["a", "b"], str]
    """Paths of the two SAEs."""
    text: TextRead | None = None
    """The text from which the features' examples are taken."""
    pairs: list[FeaturePair] = Field(min_length=1)

    @classmethod
    def read(cls, out: Path) -> "Pairs":
        """Read the pairs of a comparison.

        Raises:
            UserError: there is none, or it is damaged.
        """
        return read_json(out / "pairs.json", cls, f"no comparison here; start one with scalar blind A B --out {out}")


def prepare(
    out: Path,
    lm: LanguageModel,
    site: Site,
    saes: Mapping[Literal["a", "b"], SAE],
    names: dict[Literal["a", "b"], str],
    tokens: Int[Tensor, "prompt token"],
    n_pairs: int,
    seed: int = 0,
    special: Rule = "skip",
    text: TextRead | None = None,
) -> Pairs:
    """Read both SAEs' features and draw pairs. Returns the existing pairs if they were drawn with the same settings.

    Raises:
        UserError: the folder holds another comparison, or too few latents fire often enough.
    """
    settings: dict[str, Any] = {side: [digest_of_sae(sae), *rules(sae)] for side, sae in saes.items()}
    settings |= {"lm": fingerprint(lm), "tokens": hashlib.sha256(tokens.numpy().tobytes()).hexdigest()}
    settings |= {"special": list(lm.special_ids(special))}
    with held(out, remedy="wait until it has drawn the pairs, or choose another --out"):
        claim(out, settings | {"site": str(site), "pairs": n_pairs, "seed": seed})
        if os.path.lexists(out / "pairs.json"):
            return Pairs.read(out)
        for side, sae in saes.items():
            read_features(lm, site, sae, tokens, out / side, EXAMPLES, seed=seed, special=special)
        density = {side: _density(out / side) for side in saes}
        pairs = Pairs(names=names, text=text, pairs=draw(density["a"], density["b"], n_pairs, seed))
        write_json(out / "pairs.json", pairs.model_dump())
        return pairs


def _density(folder: Path) -> Float[np.ndarray, " n"]:
    """Firing rates; 0 for latents with fewer than EXAMPLES examples."""
    latents = read_table(folder, "latents")
    times = np.stack(latents["octaves"].to_pylist()).sum(1)
    return np.where(times >= EXAMPLES, latents["density"].to_numpy(), 0)


def draw(a: Float[np.ndarray, " n_a"], b: Float[np.ndarray, " n_b"], n_pairs: int, seed: int) -> list[FeaturePair]:
    """Pairs of latents of similar density: a random sample of a's latents, each with a partner from b. No latent is
    used twice.

    Raises:
        UserError: fewer than n_pairs latents fire.
    """
    rng = np.random.default_rng(seed)
    live = [np.flatnonzero(side > 0) for side in (a, b)]
    if min(len(some) for some in live) < n_pairs:
        raise UserError(
            f"{n_pairs} pairs wanted; {len(live[0])} and {len(live[1])} latents fire on {EXAMPLES} tokens or more: "
            "give more --prompts, or fewer --pairs"
        )
    chosen = rng.permutation(live[0])[:n_pairs]
    distance = np.abs(np.log(a[chosen])[:, None] - np.log(b[live[1]])[None])
    rows, columns = linear_sum_assignment(distance)
    sides = rng.integers(2, size=n_pairs)
    found = [
        FeaturePair(a=int(chosen[row]), b=int(live[1][column]), left="b" if side else "a")
        for row, column, side in zip(rows, columns, sides, strict=True)
    ]
    return [found[i] for i in rng.permutation(n_pairs)]


def check_rater(name: str) -> None:
    """Raise a UserError if a rater's name is not valid."""
    if not 0 < len(name) <= LONGEST_NAME or not all(c.isalnum() or c in "-_" for c in name):
        raise UserError(f"--rater {name!r}: up to {LONGEST_NAME} letters, digits, - and _ only")


@dataclass(frozen=True)
class Examples:
    """The examples of one SAE's latents that raters see."""

    rows: dict[int, list[dict[str, Any]]]
    vocabulary: dict[int, str]

    @classmethod
    def read(cls, folder: Path, latents: Iterable[int]) -> "Examples":
        """Read the examples of some latents from an SAE's tables.

        Raises:
            UserError: the tables are damaged, or lack examples of one of the latents.
        """
        contexts, vocabulary = read_examples(folder)
        rows: dict[int, list[dict[str, Any]]] = {latent: [] for latent in latents}
        for row in contexts.filter(pc.field("kind").isin(["top", "random"])).to_pylist():
            if row["latent"] in rows:
                rows[row["latent"]].append(row)
        for latent, some in rows.items():
            if max((act for row in some for act in row["acts"]), default=0) <= 0:
                raise UserError(
                    f"{folder}: shows latent {latent} firing nowhere, and it is one of the pairs: these files are not "
                    "of one comparison; start another with another --out"
                )
        return cls(rows, vocabulary)

    def of(self, latent: int) -> list[dict[str, Any]]:
        """Each example with its kind, and its tokens with their activation as a share of the largest one shown."""
        mine = self.rows[latent]
        most = max(max(row["acts"]) for row in mine)
        return [{"kind": row["kind"], "tokens": self._shown(row, most)} for row in mine]

    def _shown(self, row: dict[str, Any], most: float) -> list[tuple[str, float]]:
        shares = [round(max(0.0, act) / most, 3) for act in row["acts"]]
        return [(self.vocabulary[token], share) for token, share in zip(row["tokens"], shares, strict=True)]


class Answer(BaseModel):
    """One line of `answers/<rater>.jsonl`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pair: NonNegativeInt
    choice: Choice
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Seconds between question and answer."""


class Answers:
    """One rater's answers. Each is saved before the next question."""

    def __init__(self, out: Path, rater: str, n_pairs: int) -> None:
        """Load the answers given before.

        Raises:
            UserError: the rater's name is not valid, or the file is damaged or cannot be written.
        """
        check_rater(rater)
        self._path = out / "answers" / f"{rater}.jsonl"
        self._n_pairs = n_pairs
        jsonl.check_appendable(self._path)

    @property
    def choices(self) -> dict[int, Choice]:
        """The saved answers, read afresh because other windows and processes may have added some."""
        return read_answers(self._path, self._n_pairs)

    def add(self, pair: int, choice: Choice, seconds: float) -> None:
        """Save an answer. A second answer to the same pair replaces the first."""
        jsonl.append(self._path, Answer(pair=pair, choice=choice, seconds=round(seconds, 2)))


def read_answers(path: Path, n_pairs: int) -> dict[int, Choice]:
    """The last answer to each pair.

    Raises:
        UserError: the file is damaged, or belongs to another comparison.
    """
    answers = jsonl.read(path, Answer)
    for answer in answers:
        if answer.pair >= n_pairs:
            raise UserError(
                f"{path}: answers pair {answer.pair}, the comparison has {n_pairs}: it is of another one; move it away"
            )
    return {answer.pair: answer.choice for answer in answers}


class Summary(BaseModel):
    """The raters' preferences."""

    names: dict[Literal["a", "b"], str]
    text: TextRead | None
    """The text from which the features' examples were taken."""
    counts: dict[str, dict[str, int]]
    """By rater: number of answers for a, for b and for neither."""
    share_b: float | None
    """Share of decided answers that are for b, over all raters; 0.5 means no preference."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval over pairs, so that several raters of one pair count as one draw. If all decided answers
    agree, Wilson's interval over the decided pairs, because a bootstrap would have no width. Null without decided
    answers."""
    agreement: dict[str, tuple[int, float, float | None]]
    """By two raters: pairs that both rated, share of equal answers, and Cohen's kappa (None if chance agreement is
    certain).
    """


def summary(out: Path, seed: int = 0) -> Summary:
    """Preferences and agreement of all raters so far.

    Raises:
        UserError: there is no comparison, or there are no answers yet.
    """
    pairs = Pairs.read(out)
    files = sorted((out / "answers").glob("*.jsonl"))
    raters = {path.stem: _by_sae(read_answers(path, len(pairs.pairs)), pairs.pairs) for path in files}
    if not any(raters.values()):
        raise UserError(f"{out}: no answers yet")
    votes = np.zeros((len(pairs.pairs), 2))
    for answers in raters.values():
        for pair, choice in answers.items():
            if choice != "neither":
                votes[pair, int(choice == "b")] += 1
    seen = votes[[any(pair in answers for answers in raters.values()) for pair in range(len(pairs.pairs))]]
    decided = votes.sum()
    return Summary(
        names=pairs.names,
        text=pairs.text,
        counts={
            name: {choice: list(answers.values()).count(choice) for choice in ("a", "b", "neither")}
            for name, answers in raters.items()
        },
        share_b=float(votes[:, 1].sum() / decided) if decided else None,
        interval=_interval(seen, seed) if decided else None,
        agreement={f"{one}, {two}": _agreement(raters[one], raters[two]) for one, two in combinations(raters, 2)},
    )


def _interval(votes: Float[np.ndarray, "pair 2"], seed: int) -> tuple[float, float]:
    """Interval of b's share of the votes for a and b. At least one pair must have votes."""
    for_a, for_b = (votes > 0).sum(0)
    if not for_a or not for_b:
        wilson = binomtest(int(for_b), int(for_a + for_b)).proportion_ci(method="wilson")
        return float(wilson.low), float(wilson.high)
    draws = votes[np.random.default_rng(seed).integers(len(votes), size=(1000, len(votes)))].sum(1)
    draws = draws[draws.sum(1) > 0]  # the share is undefined without a decided answer
    share = tail(max(2, len(votes)))
    low, high = np.quantile(draws[:, 1] / draws.sum(1), [share, 1 - share])
    return float(low), float(high)


def _by_sae(answers: dict[int, Choice], pairs: list[FeaturePair]) -> dict[int, str]:
    """Convert answers from sides to `a`, `b` or `neither`."""
    other = {"a": "b", "b": "a"}
    found: dict[int, str] = {}
    for pair, choice in answers.items():
        left = pairs[pair].left
        found[pair] = choice if choice == "neither" else left if choice == "left" else other[left]
    return found


def _agreement(one: dict[int, str], two: dict[int, str]) -> tuple[int, float, float | None]:
    """Number of common pairs, share of equal answers, and Cohen's kappa."""
    common = sorted(one.keys() & two.keys())
    if not common:
        return 0, float("nan"), None
    alike = sum(one[pair] == two[pair] for pair in common) / len(common)
    shares = [
        [[who[pair] for pair in common].count(c) / len(common) for c in ("a", "b", "neither")] for who in (one, two)
    ]
    chance = sum(p * q for p, q in zip(*shares, strict=True))
    return len(common), alike, (alike - chance) / (1 - chance) if chance < 1 else None
