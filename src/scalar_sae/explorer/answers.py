"""What a page can ask, and how the engine (scalar_sae/explore) answers. Every answer is plain data for JSON.

A question is a name and a body. To add one, write its body as a class in questions.py with a line in its `QUESTIONS`,
and a function from it to the answer here with a line in `ANSWERS`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scalar_sae._version import __version__
from scalar_sae.errors import UserError
from scalar_sae.explore.circuit import Circuit
from scalar_sae.explore.examples import edge_examples
from scalar_sae.explore.explanations import explain_edge, explain_features
from scalar_sae.explore.groups import group_features
from scalar_sae.explore.journey import Journey
from scalar_sae.explore.measure import measured
from scalar_sae.explore.passage import passages
from scalar_sae.explore.plain import QUANTILES, interventions_from
from scalar_sae.explorer import questions as asked
from scalar_sae.explorer.edges import top_edges
from scalar_sae.explorer.graph import graph
from scalar_sae.explorer.questions import MOST
from scalar_sae.explorer.subject import Subject
from scalar_sae.report.text import token_text, visible
from scalar_sae.scoring.chain import blocks_between, check_decoders
from scalar_sae.scoring.pair import Pair

OnProgress = Callable[[float], object]
"""Called with the share that is done. An exception raised in it stops the work."""
EXAMPLES = 8
"""Prompts of the run's text that a page offers."""
LENGTH = 32
"""Tokens of each of them."""


def about_run(subject: Subject, question: asked.AboutRun, on_progress: OnProgress) -> dict[str, Any]:
    """The pairs, and what a page says about the run."""
    pairs = [
        {
            "key": pair.key,
            "method": visible(pair.method),
            "block": str(pair.block),
            "rankings": pair.rankings,
            "records": bool(pair.records),
            "mixes": pair.block.mixes_tokens,
            "next": [other.key for other in subject.pairs.values() if pair.leads_to(other)],
            "saes": {end: {"site": str(pair.site(end)), "latents": pair.sae(end).d_sae} for end in ("up", "down")},
        }
        for pair in subject.pairs.values()
    ]
    judge = None if subject.judge is None else visible(subject.judge.model)
    about = {"name": visible(subject.name), "lm": visible(_model(subject)), "judge": judge}
    return {**about, "version": __version__, "pairs": pairs}


def examples(subject: Subject, question: asked.Examples, on_progress: OnProgress) -> list[str]:
    """The beginnings of some of the prompts that the record was scored on."""
    record = subject.pair_subject(question.pair).record(question.ranking)
    rows = subject.texts(record).scoring[:EXAMPLES, :LENGTH]
    return [subject.lm.tokenizer.decode(row.tolist()) for row in rows]


def the_map(subject: Subject, question: asked.Map, on_progress: OnProgress) -> dict[str, Any]:
    """The strongest edges, the record's curve, and a few words about each feature."""
    found = subject.pair_subject(question.pair)
    record = found.record(question.ranking)
    config = subject.config(record)
    comparable = record is not None and record.config.get("ablation", config.ablation) == config.ablation
    edges = top_edges(subject, question.pair, question.ranking, on_progress)
    up, down, weight = (edges[name].to_pylist() for name in ("up", "down", "weight"))
    labels = _labels(subject, question.pair, set(up), set(down))
    shape = (found.sae("up").d_sae, found.sae("down").d_sae)
    return {
        "n_up": shape[0],
        "n_down": shape[1],
        "n_edges": shape[0] * shape[1],
        "edges": [list(edge) for edge in zip(up, down, weight, strict=True)],
        "labels": labels,
        "described": all(labels.values()),
        "curve": list(record.curve()) if record is not None and comparable else [],
        "ablation": config.ablation,
    }


def tokens(subject: Subject, question: asked.Tokens, on_progress: OnProgress) -> dict[str, Any]:
    """The tokens of a prompt, as they are shown, and which of them are special."""
    pair, ids = _read(subject, question)
    shown = [token_text(text) for text in subject.lm.tokenizer.pieces(ids[0].tolist())]
    return {"tokens": shown, "special": [int(token) in pair.special for token in ids[0].tolist()]}


def on_prompt(subject: Subject, question: asked.OnPrompt, on_progress: OnProgress) -> dict[str, Any]:
    """How much the pinned edges carry on one prompt."""
    pair, ids = _read(subject, question)
    return _journey(subject, question, pair, ids).measure(circuit(pair, question)).model_dump()


def chain(subject: Subject, question: asked.Chain, on_progress: OnProgress) -> dict[str, Any]:
    """How much the pinned edges of consecutive pairs carry on one prompt. Each pair starts from what the one before it
    leaves.

    Raises:
        UserError: the pairs make no whole-model circuit.
    """
    blocks = [subject.pair_subject(part.pair).block for part in question.parts]
    blocks_between([blocks[0].up, *(block.down for block in blocks)])
    circuits = [circuit(subject.pair(part.pair, part.ranking), part) for part in question.parts]
    pairs = [one.pair for one in circuits]
    check_decoders(pairs)
    journey = Journey(pairs, _tokens(subject, question.text))
    return journey.measure(circuits).model_dump()


def on_held_out(subject: Subject, question: asked.OnHeldOut, on_progress: OnProgress) -> dict[str, Any]:
    """How much the pinned edges carry on the text of the record."""
    record = subject.pair_subject(question.pair).record(question.ranking)
    pair, text = subject.pair(question.pair, question.ranking), subject.texts(record).scoring
    kept, found = circuit(pair, question).kept, []
    for passage in passages([pair], text):
        found.append(passage.readings([kept]))
        on_progress(len(found) / len(text))
    return {**measured(found).model_dump(), "prompts": len(text)}


def step(subject: Subject, question: asked.Step, on_progress: OnProgress) -> dict[str, Any]:
    """The local edges at a token, what its downstream features do to the prediction, and the local curve."""
    pair, ids = _read(subject, question)
    journey, at = _journey(subject, question, pair, ids), question.position
    edges = journey.edges(at, MOST, on_progress=lambda share: on_progress(share / 3))
    outputs = journey.outputs(at, on_progress=lambda share: on_progress((1 + share) / 3))
    curve = journey.curve(at, on_progress=lambda share: on_progress((2 + share) / 3))
    labels = _labels(subject, question.pair, {e.up for e in edges.edges}, {e.down for e in edges.edges})
    return {
        "edges": edges.model_dump(),
        "outputs": _shown(outputs.model_dump(), "predicted"),
        "curve": curve.model_dump(),
        "labels": labels,
    }


def change(subject: Subject, question: asked.Change, on_progress: OnProgress) -> dict[str, Any]:
    """The prediction after a token, before and after interventions."""
    pair, ids = _read(subject, question)
    wanted = interventions_from(question.interventions)
    found = _journey(subject, question, pair, ids).intervene(wanted, position=question.position)
    return _shown(found.model_dump(), "next_tokens")


def edge(subject: Subject, question: asked.Edge, on_progress: OnProgress) -> dict[str, Any]:
    """The prompts of the scored text on which removing an edge changes the prediction most."""
    record = subject.pair_subject(question.pair).record(question.ranking)
    pair, text = subject.pair(question.pair, question.ranking), subject.texts(record).scoring
    found = edge_examples(pair, question.up, question.down, text, n=EXAMPLES, on_progress=on_progress).model_dump()
    for example in found["examples"]:
        ids = text[example["prompt"]].tolist()
        example["text"] = subject.lm.tokenizer.decode(ids)
        example["tokens"] = [token_text(piece) for piece in subject.lm.tokenizer.pieces(ids)]
    return found | {"levels": QUANTILES}


def groups(subject: Subject, question: asked.Groups, on_progress: OnProgress) -> list[dict[str, Any]]:
    """Groups of the features of the strongest edges, by attribution profile."""
    edges = top_edges(subject, question.pair, question.ranking, on_progress).slice(0, question.edges)
    rows = zip(*(edges[name].to_pylist() for name in ("up", "down", "weight")), strict=True)
    return [
        {"members": [f"{group.end[0]}{one}" for one in group.members], "alike": group.alike}
        for group in group_features(rows, question.alike)
    ]


def explain(subject: Subject, question: asked.Explain, on_progress: OnProgress) -> dict[str, Any]:
    """What the judge says of an edge or of a group on the ranking text, tested on the text of the record.

    Raises:
        UserError: there is no judge, or it does not answer.
    """
    if subject.judge is None:
        raise UserError("no judge: start scalar explore with --judge, and it explains edges and groups")
    record = subject.pair_subject(question.pair).record(question.ranking)
    pair, texts = subject.pair(question.pair, question.ranking), subject.texts(record)
    shown, judge = texts.ranking[: subject.config(record).n_rank_prompts], subject.judge
    if question.edge is not None:
        found = explain_edge(pair, *question.edge, judge, shown, texts.scoring, on_progress=on_progress)
    else:
        found = explain_features(pair, judge, shown, texts.scoring, question.up, question.down, on_progress=on_progress)
    said = None if found.explanation is None else visible(found.explanation)
    return {**found.model_dump(), "explanation": said, "judge": visible(found.judge)}


def split(subject: Subject, question: asked.Split, on_progress: OnProgress) -> dict[str, Any]:
    """The parts of an edge's effect at a token, by source token and head."""
    pair, ids = _read(subject, question)
    found = _journey(subject, question, pair, ids).split(
        question.up, question.down, question.position, on_progress=on_progress
    )
    return found.model_dump()


def as_graph(subject: Subject, question: asked.Graph, on_progress: OnProgress) -> dict[str, Any]:
    """The edges that a page shows at a token, as an attribution graph."""
    pair, ids = _read(subject, question)
    journey, at, shown = _journey(subject, question, pair, ids), question.position, set(question.shown)
    found = journey.edges(at, MOST, on_progress=lambda share: on_progress(share / 2)).edges
    edges = [edge for edge in found if (edge.source, edge.up, edge.down) in shown]
    labels = _labels(subject, question.pair, {edge.up for edge in edges}, {edge.down for edge in edges})
    words = {
        f"{end[0]}{latent}": " ".join([str(latent), *(token_text(token) for token in label["tokens"])])
        for end, some in labels.items()
        for latent, label in some.items()
    }
    return graph(
        run=subject.name,
        pair=question.pair,
        model=_model(subject),
        prompt=question.text,
        tokens=journey.texts,
        position=at,
        edges=edges,
        outputs=journey.outputs(at, on_progress=lambda share: on_progress((1 + share) / 2)),
        names=words | question.names,
        pins=question.pins,
        groups=[(group.name, group.members) for group in question.groups],
    )


def circuit(pair: Pair, pinned: asked.Pinned) -> Circuit:
    """The circuit of what is pinned.

    Raises:
        UserError: the pair has no such edge or feature.
    """
    kept = Circuit.of(pair, [*pinned.edges, *((i, 0) for i in pinned.up), *((0, j) for j in pinned.down)]).kept
    kept.zero_()
    kept[torch.tensor(pinned.up, dtype=torch.long)[:, None], torch.tensor(pinned.down, dtype=torch.long)] = True
    for i, j in pinned.edges:
        kept[i, j] = True
    return Circuit(pair, kept)


def _labels(subject: Subject, pair: str, up: set[int], down: set[int]) -> dict[str, dict[int, dict[str, Any]]]:
    """A few words about some upstream and some downstream features, by end; none without tables of features."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for end, latents in (("up", up), ("down", down)):
        cards = subject.cards(pair, end)
        found[end] = {} if cards is None else cards.labels(latents)
    return found


def _model(subject: Subject) -> str:
    """The language model's name; of one that lies in a folder the folder's."""
    name = subject.lm.name
    return Path(name).name if Path(name).is_dir() else name


def _read(subject: Subject, question: Any) -> tuple[Pair, torch.Tensor]:
    """The pair of a question, and the tokens of its prompt."""
    return subject.pair(question.pair, question.ranking), _tokens(subject, question.text)


def _tokens(subject: Subject, text: str) -> torch.Tensor:
    ids = subject.lm.tokens(text)
    if ids.shape[1] > asked.TOKENS:
        raise UserError(
            f"{ids.shape[1]} tokens: the explorer reads prompts of at most {asked.TOKENS}; shorten the text"
        )
    return ids


def _journey(subject: Subject, question: Any, pair: Pair, ids: torch.Tensor) -> Journey:
    """A journey through a prompt; the last one is kept, since most questions are about the same prompt."""
    key = (question.pair, question.ranking, question.text)
    if subject.last_journey is None or subject.last_journey[0] != key:
        subject.last_journey = (key, Journey(pair, ids))
    return subject.last_journey[1]


def _shown(answer: dict[str, Any], name: str) -> dict[str, Any]:
    """An answer in which every character of the tokens under `name` is visible."""
    return {**answer, name: [{**row, "text": token_text(row["text"])} for row in answer[name]]}


ANSWERS: dict[str, Callable[[Subject, Any, OnProgress], Any]] = {
    "run": about_run,
    "examples": examples,
    "map": the_map,
    "tokens": tokens,
    "recovery": on_prompt,
    "chain": chain,
    "held-out": on_held_out,
    "step": step,
    "change": change,
    "edge": edge,
    "split": split,
    "groups": groups,
    "explain": explain,
    "graph": as_graph,
}
"""The engine's answer to each question, by its name. Those to `card` are read from files (files.py)."""
