"""The benchmark from end to end: rank edges on one text, sweep sub-circuits on another, score the curve.

record = score(pair, texts, method="topk", ranking="ablation", config=ScoreConfig())
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scalar_sae.benchmark import scores
from scalar_sae.benchmark.pair import Pair, Text, read
from scalar_sae.benchmark.ranking import RANKINGS, levels
from scalar_sae.benchmark.scores import Counts
from scalar_sae.benchmark.subcircuits import sweep
from scalar_sae.corpora import Corpus, windows
from scalar_sae.errors import UserError, unknown
from scalar_sae.results import Floor, Interval, Record
from scalar_sae.runs import versions

GRIDS = ("published", "full", "coarse")
QUANTILES: tuple[tuple[Literal["50", "90", "99"], float], ...] = (("50", 0.5), ("90", 0.9), ("99", 0.99))
PUBLISHED_EPSILON = 1e-8


class ScoreConfig(BaseModel):
    """How pairs are scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rankings: dict[str, PositiveInt] = Field(default={"ablation": 64, "published": 64}, min_length=1)
    """Orders in which edges are kept, by name or path to a saved score matrix, each with the number of prompts that
    edges are ranked on; none of them is scored."""
    prompts: PositiveInt = 50
    """Prompts that are scored."""
    context: int = Field(default=128, gt=1)
    """Tokens per prompt."""
    edges: str = "full"
    """Edge counts: `full` (factors of sqrt 2 to all edges), `coarse` (factors of 2), `published`, or 1,2,4,..."""
    seed: int = Field(default=0, ge=0)
    """Seed of the choice of prompts, of ties and of the bootstrap."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Two held-out texts without overlap; a ranking uses the first of the ranking prompts, as many as it is given."""

    ranking: Int[Tensor, "n_ranked token"]
    scoring: Int[Tensor, "n_scored token"]
    data: dict[str, Any]


def held_out(corpus: Corpus, config: ScoreConfig) -> Texts:
    """Prompts from the validation part: ranking text from its first half, scoring text from its second.

    Raises:
        UserError: the text has too few windows.
    """
    half = corpus.val.numel() // 2
    parts = {"rank": (corpus.val[:half], max(config.rankings.values())), "score": (corpus.val[half:], config.prompts)}
    chosen: list[Tensor] = []
    for salt, (what, (tokens, wanted)) in enumerate(parts.items()):
        rows = windows(tokens, config.context, f"{corpus.name}, text to {what} on", corpus.bos)
        if rows.shape[0] < wanted:
            raise UserError(
                f"{corpus.name}: {wanted} prompts of {config.context} tokens to {what} on, only {rows.shape[0]} there"
            )
        order = torch.randperm(rows.shape[0], generator=torch.Generator().manual_seed(2 * config.seed + salt))
        chosen.append(rows[order[:wanted]])
    where = {"ranked_on": "first half of the validation part", "scored_on": "second half of the validation part"}
    return Texts(*chosen, data={**corpus.describe(), **where})


def counts_of(grid: str, n_edges: int) -> Counts:
    """The edge counts of a named grid or of a list such as `10,100`.

    Always among them: 0, 1, all edges, and 2^18, where the published area ends.

    Raises:
        UserError: not a grid, a count beyond the pair's edges, or more than 254 counts.
    """
    if grid == "full":
        counts = scores.edge_counts(n_edges)
    elif grid == "coarse":
        counts = scores.edge_counts(n_edges, halvings=1)
    elif grid == "published":
        counts = scores.published_counts(n_edges)
    elif all(part.strip().isdecimal() for part in grid.split(",")):
        counts = np.array([int(part) for part in grid.split(",")])
    else:
        raise unknown("edge grid", grid, [*GRIDS, "a list such as 10,100,1000"])
    if counts.max() > n_edges:
        raise UserError(f"edges {counts.max()}: the pair has {n_edges} possible edges")
    counts = np.unique(np.concatenate([counts, [0, 1, min(scores.PUBLISHED_MOST, n_edges), n_edges]]))
    if len(counts) > 254:
        raise UserError(f"edges: {len(counts)} counts are more than 254; take fewer")
    return counts


@dataclass(frozen=True, eq=False)
class Curves:
    """What the sweep measures, at each edge count for each prompt (means over its positions)."""

    kl_model: Float[np.ndarray, "n_counts prompt"]
    kl_circuit: Float[np.ndarray, "n_counts prompt"]
    live_edges: Float[np.ndarray, "n_counts prompt"]
    l0_down: Float[np.ndarray, "n_counts prompt"]
    floor_kl: Float[np.ndarray, " prompt"]
    floor_ce: Float[np.ndarray, " prompt"]


def kl(
    p: Float[Tensor, "*batch d_vocab"], q: Float[Tensor, "*batch d_vocab"], epsilon: float = 0.0
) -> Float[Tensor, "*batch"]:
    """KL(p || q) in nats from log-probabilities; `epsilon` is added to the probabilities inside the logarithm."""
    if epsilon:
        return (p.exp() * ((p.exp() + epsilon) / (q.exp() + epsilon)).log()).sum(-1)
    return (p.exp() * (p - q)).sum(-1)


@torch.no_grad()
def measure(
    pair: Pair, text: Text, level: UInt8[Tensor, "n_up n_down"], n_counts: int, epsilon: float, done: Callable[[], None]
) -> Curves:
    """Sweep every prompt: KL from the full model and from the full circuit, live edges and L0."""
    columns: list[list[list[float]]] = []
    circuit = pair.log_probs(pair.down.encode(pair.compute(pair.up.decode(text.z))), text)
    for number in range(text.tokens.shape[0]):
        prompt = text.prompt(number)
        rows: list[list[float]] = []
        for sub in sweep(pair, prompt.z[0], level, n_counts):
            log_probs = pair.log_probs(sub.acts.unsqueeze(0), prompt)
            means = (
                kl(prompt.model, log_probs, epsilon).mean(),
                kl(circuit[number : number + 1], log_probs, epsilon).mean(),
                sub.live_edges.float().mean(),
                (sub.acts > 0).sum(-1).float().mean(),
            )
            rows.append([value.item() for value in means])
        columns.append(rows)
        done()
    curves = np.array(columns).transpose(2, 1, 0)
    target = text.tokens[:, 1:].unsqueeze(-1)
    ce = [-log_probs[:, :-1].gather(-1, target).squeeze(-1).mean(-1) for log_probs in (text.model, circuit)]
    floor_kl = kl(text.model, circuit, epsilon).mean(-1).double().numpy()
    return Curves(curves[0], curves[1], curves[2], curves[3], floor_kl, (ce[1] - ce[0]).double().numpy())


def score(
    pair: Pair,
    texts: Texts,
    method: str,
    ranking: str,
    config: ScoreConfig,
    done: Callable[[int], None] = lambda n: None,
) -> Record:
    """Rank, sweep and score one pair.

    Args:
        pair: what is scored.
        texts: ranking and scoring prompts.
        method: the name under which the record is filed.
        ranking: one of the config's: `ablation`, `published`, `random`, or a path to a score matrix [n_up, n_down].
        config: prompts, edge grid, seed.
        done: called with the number of prompts finished, first of ranking, then of scoring.

    Raises:
        UserError: an unknown ranking, a score matrix of the wrong shape, NaN anywhere.
    """
    start = time.perf_counter()
    check_ranking(ranking)
    counts = counts_of(config.edges, pair.n_edges)
    rank_text = read(pair, texts.ranking[: config.rankings[ranking]])
    edge_scores = _rank(pair, rank_text, ranking, lambda: done(1))
    level = levels(edge_scores, counts, config.seed)
    epsilon = PUBLISHED_EPSILON if ranking == "published" else 0.0
    curves = measure(pair, read(pair, texts.scoring), level, len(counts), epsilon, lambda: done(1))
    n_live = _n_live(pair, rank_text)
    values, ci = _scores(counts, curves, n_live, pair.n_edges, config.seed)
    return Record(
        block=str(pair.block),
        method=method,
        ranking=ranking,
        seed=config.seed,
        n_up=pair.up.d_sae,
        n_down=pair.down.d_sae,
        n_edges=pair.n_edges,
        n_live_edges=n_live,
        edges=counts.tolist(),
        kl_model=curves.kl_model.mean(1).tolist(),
        kl_circuit=curves.kl_circuit.mean(1).tolist(),
        live_edges=curves.live_edges.mean(1).tolist(),
        l0_down=curves.l0_down.mean(1).tolist(),
        absolute=values["absolute"],
        relative=values["relative"],
        pure=values["pure"],
        edges_at={q: _finite(values[f"edges_at.{q}"]) for q, _ in QUANTILES},
        live_edges_at={q: _finite(values[f"live_edges_at.{q}"]) for q, _ in QUANTILES},
        dip={q: values[f"dip.{q}"] for q, _ in QUANTILES},
        log_area=values["log_area"],
        floor=Floor(kl=values["floor.kl"], ce_increase=values["floor.ce_increase"]),
        ci=ci,
        config=config.model_dump(exclude={"rankings"}) | {"rank_prompts": config.rankings[ranking], "lm": pair.lm.name},
        versions=versions(),
        data=texts.data,
        seconds=round(time.perf_counter() - start, 2),
    )


def check_ranking(ranking: str) -> None:
    """Raise a UserError if this is neither a ranking's name nor a file that could hold one."""
    path = Path(ranking)
    if ranking not in RANKINGS and (path.suffix not in (".safetensors", ".npy") or not path.is_file()):
        raise unknown("ranking", ranking, [*RANKINGS, "a path to a .safetensors or .npy file"])


def _rank(pair: Pair, text: Text, ranking: str, done: Callable[[], None]) -> Float[Tensor, "n_up n_down"]:
    if ranking in RANKINGS:
        return RANKINGS[ranking](pair, text, done)
    path = Path(ranking)
    matrix = _saved_matrix(path)
    if tuple(matrix.shape) != (pair.up.d_sae, pair.down.d_sae):
        raise UserError(f"{path}: shape {tuple(matrix.shape)}, the pair needs {(pair.up.d_sae, pair.down.d_sae)}")
    for _ in text.z:
        done()
    return matrix.float()


def _saved_matrix(path: Path) -> Tensor:
    """The one matrix of a .npy or .safetensors file."""
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        tensors = load_file(path)
    except (OSError, ValueError, TypeError, EOFError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as a score matrix ({error})") from error
    if len(tensors) != 1:
        raise UserError(f"{path}: expected one tensor, found {len(tensors)}: {', '.join(tensors) or 'none'}")
    return next(iter(tensors.values()))


@torch.no_grad()
def _n_live(pair: Pair, text: Text) -> int:
    """Edges whose two latents are both live somewhere in the text."""
    live_up = (text.z > 0).flatten(0, 1).any(0).sum()
    down = pair.down.encode(pair.compute(pair.up.decode(text.z)))
    return int(live_up * (down > 0).flatten(0, 1).any(0).sum())


def _scores(
    counts: Counts, curves: Curves, n_live: int, n_edges: int, seed: int
) -> tuple[dict[str, float], dict[str, Interval | list[Interval] | None]]:
    """Every score of the mean curves, and its interval over prompts."""

    def all_scores(prompts: Int[np.ndarray, "resample prompt"]) -> dict[str, Float[np.ndarray, " resample"]]:
        kl_model, kl_circuit, live_edges = (
            curve[:, prompts].mean(-1).T for curve in (curves.kl_model, curves.kl_circuit, curves.live_edges)
        )
        recovered = scores.recovery(counts, kl_circuit)
        absolute = scores.area(counts, kl_model)
        found: dict[str, scores.Score] = {
            "absolute": absolute,
            "relative": absolute / n_edges,
            "pure": scores.area(counts, kl_circuit),
        }
        for name, q in QUANTILES:
            found[f"edges_at.{name}"] = scores.edges_at(counts, recovered, q)
            found[f"live_edges_at.{name}"] = scores.value_at(recovered, q, live_edges)
            found[f"dip.{name}"] = scores.dip(recovered, q)
        found["log_area"] = scores.log_area(counts, recovered, n_live)
        found["floor.kl"] = curves.floor_kl[prompts].mean(-1)
        found["floor.ce_increase"] = curves.floor_ce[prompts].mean(-1)
        return {name: np.asarray(value) for name, value in found.items()}

    n_prompts = curves.kl_model.shape[1]
    resampled = all_scores(scores.resamples(n_prompts, seed))
    values = {name: float(value[0]) for name, value in all_scores(np.arange(n_prompts)[None]).items()}
    ci: dict[str, Interval | list[Interval] | None] = {
        name: scores.interval(value) for name, value in resampled.items() if not name.startswith("dip")
    }
    for name, curve in (("kl_model", curves.kl_model), ("kl_circuit", curves.kl_circuit)):
        bands = curve[:, scores.resamples(n_prompts, seed)].mean(-1)
        ci[name] = [scores.interval(band) or (0.0, 0.0) for band in bands]
        if name == "kl_circuit":
            recovered = scores.recovery(counts, bands.T).T
            ci["recovery"] = [scores.interval(band) or (0.0, 0.0) for band in recovered]
    return values, ci


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
