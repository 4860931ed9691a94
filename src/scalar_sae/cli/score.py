"""The verbs that score: `score`, `circuit`, `compare`."""

import functools
import shutil
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from scalar_sae.cli.tables import print_records, show
from scalar_sae.errors import UserError, unknown

if TYPE_CHECKING:
    from scalar_sae.benchmark.compare import Ratio
    from scalar_sae.corpora import Corpus
    from scalar_sae.lm.model import LanguageModel
    from scalar_sae.runs import Bar
    from scalar_sae.saes.sae import SAE
    from scalar_sae.sites import Block, Site

app = typer.Typer()

Device = Annotated[str | None, typer.Option(help="`cpu`, `cuda`, ...; by default a GPU if there is one.")]
Memory = Annotated[float, typer.Option(help="Gigabytes to stay within.")]


@app.command()
def score(
    saes: Annotated[
        list[str],
        typer.Option(
            help="A run, SAEs of any format, `hf://owner/name/folder` (repeat for more); "
            "`resid_post.3=PATH` where the files do not say where they read."
        ),
    ],
    block: Annotated[
        str, typer.Option(help="`ff_block.0`, `transformer_block.2`, `ff_layer.1`, `resid_pre.0->resid_post.1`.")
    ],
    lm: Annotated[
        str | None,
        typer.Option(
            help="Language model: a folder, a Hub id, a shipped name; by default the one that lies with the SAEs."
        ),
    ] = None,
    tokens: Annotated[
        str,
        typer.Option(help="Text: a corpus (its validation part is used), or a text file that nothing was trained on."),
    ] = "python-stdlib",
    method: Annotated[
        str | None, typer.Option(help="Which group of SAEs, if there are several (all by default).")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts to score.", min=1)] = 50,
    rank_prompts: Annotated[
        int | None,
        typer.Option(
            help="Prompts to rank edges on, none of them scored; by default 64, with --ranking local 1, with "
            "--published the authors' 576, some of them scored.",
            min=1,
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens per prompt; by default 128, or all that the model reads.", min=2)
    ] = None,
    ranking: Annotated[
        str | None,
        typer.Option(
            help="`expected` (the default), `ablation`, `pruned`, `output`, `insertion`, `shapley`, `ig`, `gradient`, "
            "`published`, `random`; `local`: edges chosen at every token; or a saved matrix (.npy, .safetensors)."
        ),
    ] = None,
    edges: Annotated[
        str | None, typer.Option(help="`full` (the default), `coarse`, `published`, or counts such as 1,2,4,8.")
    ] = None,
    ablation: Annotated[str, typer.Option(help="What a removed latent is set to: `zero` or `mean`.")] = "zero",
    published: Annotated[
        bool, typer.Option("--published", help="As the authors' code: their ranking, counts, conventions and text.")
    ] = False,
    memory: Memory = 8.0,
    control: Annotated[
        str | None,
        typer.Option(help="Score a control instead: `padded` with dead latents, or a model with `shuffled` weights."),
    ] = None,
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Seed of prompts, ties and bootstrap.", min=0)] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the records to this JSON file; with the same --out a stopped scoring goes on."),
    ] = None,
) -> None:
    """Score the interaction of SAEs across one block.

    Under `torchrun --no-python --nproc-per-node 2 scalar score ...` the prompts are shared out.

    Example: **scalar score --saes runs/quickstart --block ff_block.0 --prompts 10**
    """
    from scalar_sae import workers
    from scalar_sae.benchmark.config import LOCAL, ScoreConfig, held_out
    from scalar_sae.benchmark.pair import Pair
    from scalar_sae.benchmark.score import score as run
    from scalar_sae.results import Results
    from scalar_sae.runs import Bar
    from scalar_sae.sites import Block
    from scalar_sae.training.config import validated

    _check(out)
    if published and ablation != "zero":
        raise UserError(f"--ablation {ablation}: the authors' code knows zero ablation alone; leave out --published")
    workers.join()
    place = Block.parse(block)
    model, chosen = _subjects(lm, saes, method, device)
    complete = {name: group for name, group in chosen.items() if _at_both_ends(group, place)}
    pairs = {name: Pair.between(model, place, group) for name, group in (complete or chosen).items()}
    usual = ("published", "published", "published") if published else ("expected", "full", "exact")
    used = ranking or usual[0]
    enough = 576 if published else 64
    if used == LOCAL and ablation == "zero":
        enough = 1  # local edges are chosen on the scored text
    rank_prompts = rank_prompts or enough
    settings: dict[str, Any] = {"rankings": {used: rank_prompts}, "prompts": prompts}
    settings |= {"edges": edges or usual[1], "conventions": usual[2]}
    settings |= {"context": context or min(model.context, 128), "ablation": ablation, "overlap": published}
    settings |= {"memory": memory, "seed": seed, "controls": (control,) if control else ()}
    config = validated(ScoreConfig, settings, "score")
    texts = held_out(_text(tokens, model), config)
    results = Results()
    with Bar("score", len(pairs) * (prompts + rank_prompts) / workers.count()) as bar:
        for name, pair in pairs.items():
            partial = out.with_name(f"{out.name}.partial") if out else None
            done = functools.partial(_finished, bar, name)
            instead = next(iter(config.controls), None)
            results.records.append(run(pair, texts, name, used, config, done, partial, instead))
    if workers.number() != 0:
        return
    if out:
        results.write(out)
        shutil.rmtree(out.with_name(f"{out.name}.partial"), ignore_errors=True)
    print_records(results.records)


@app.command()
def circuit(
    saes: Annotated[list[str], typer.Option(help="SAEs, as for `scalar score`.")],
    sites: Annotated[str, typer.Option(help="Sites along the residual stream, e.g. resid_pre.0,resid_post.0,...")],
    lm: Annotated[str | None, typer.Option(help="Language model, as for `scalar score`.")] = None,
    tokens: Annotated[str, typer.Option(help="Text, as for `scalar score`.")] = "python-stdlib",
    method: Annotated[
        str | None, typer.Option(help="Which group of SAEs; by default all that have one at every site.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts to score.", min=1)] = 10,
    rank_prompts: Annotated[int, typer.Option(help="Prompts to rank edges on.", min=1)] = 16,
    context: Annotated[int | None, typer.Option(help="Tokens per prompt.", min=2)] = None,
    ranking: Annotated[
        str | None,
        typer.Option(help="A ranking's name; by default `expected`, and with --one-order `output`."),
    ] = None,
    edges: Annotated[str, typer.Option(help="`full`, `coarse`, or counts.")] = "coarse",
    one_order: Annotated[
        bool, typer.Option("--one-order", help="One ranking of all pairs' edges, not the same budget for each pair.")
    ] = False,
    memory: Memory = 8.0,
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Seed.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the records to this JSON file.")] = None,
) -> None:
    """Score a circuit through several layers at once: the top edges of every pair, errors compounding.

    Under `torchrun --no-python --nproc-per-node 2 scalar circuit ...` the prompts are shared out.

    Example: **scalar circuit --saes runs/quickstart --sites resid_pre.0,resid_post.0,resid_post.1**
    """
    from scalar_sae import workers
    from scalar_sae.benchmark.circuit import score_chain
    from scalar_sae.benchmark.config import ScoreConfig, held_out
    from scalar_sae.results import Results
    from scalar_sae.runs import Bar
    from scalar_sae.sites import Site
    from scalar_sae.training.config import validated

    _check(out)
    places = [Site.parse(name.strip()) for name in sites.split(",")]
    workers.join()
    model, chosen = _subjects(lm, saes, method, device)
    groups = {name: group for name, group in chosen.items() if _at_all(group, places)} or chosen
    used = ranking or ("output" if one_order else "expected")
    settings: dict[str, Any] = {"rankings": {used: rank_prompts}, "prompts": prompts, "edges": edges}
    settings |= {"context": context or min(model.context, 128), "memory": memory, "seed": seed}
    config = validated(ScoreConfig, settings, "score")
    texts = held_out(_text(tokens, model), config)
    results = Results()
    total = len(groups) * (prompts + rank_prompts * (len(places) - 1))
    with Bar("circuit", total / workers.count()) as bar:
        for name, group in groups.items():
            done = functools.partial(_finished, bar, name)
            results.records.append(score_chain(model, group, places, texts, name, config, one_order, done))
    if workers.number() != 0:
        return
    if out:
        results.write(out)
    print_records(results.records)


def _check(out: Path | None) -> None:
    """Raise a UserError if results are there already, or cannot be written there."""
    from scalar_sae.runs import check_writable

    if out and out.exists():
        raise UserError(f"{out}: exists already; choose another --out")
    if out:
        check_writable(out)


def _finished(bar: "Bar", name: str, n: int | float) -> None:
    bar.step(n, name)


@app.command()
def compare(
    files: Annotated[
        list[Path], typer.Argument(help="Results files, or runs; several with SAEs of one name are seeds of it.")
    ],
    base: Annotated[str, typer.Option(help="Name of the SAEs that the others are compared with.")] = "topk",
    score: Annotated[
        str, typer.Option(help="`edges_at.90`, `live_edges_at.90`, `log_area`, `absolute`, `relative`, `pure`, ...")
    ] = "edges_at.90",
    ranking: Annotated[str, typer.Option(help="Records of this ranking.")] = "expected",
    matched: Annotated[
        bool, typer.Option("--matched", help="Compare families such as topk-k5, topk-k10 at the baseline's fidelity.")
    ] = False,
) -> None:
    """Compare SAEs: ratios per block and over blocks (geometric mean), 95 % intervals paired over prompts.

    SAEs of one name in several files are taken for seeds: the mean of their log scores, intervals over seeds too.

    Example: **scalar compare runs/quickstart --base topk --score edges_at.90**
    """
    from scalar_sae.benchmark.compare import at_matched_fidelity, ratios
    from scalar_sae.results import Results

    paths = [path / "results.json" if path.is_dir() else path for path in files]
    everything = [Results.read(path) for path in paths]
    records = [record for results in everything for record in results.under(ranking)]
    if not records:
        there = sorted({record.ranking for results in everything for record in results.records})
        names = ", ".join(there) or "no others"
        raise UserError(f"{', '.join(map(str, paths))}: no records of the ranking {ranking!r}; there are {names}")
    table = Table(title=f"{score} of each over that of {base}; below 1 is less than {base}")
    for column in ("block", "SAEs", "ratio", "95 %", "do nothing", "paired"):
        table.add_column(column, no_wrap=True)
    for ratio in (at_matched_fidelity if matched else ratios)(records, base, score):
        low_high = "" if ratio.interval is None else f"{ratio.interval[0]:.3g} to {ratio.interval[1]:.3g}"
        nothing = "" if ratio.do_nothing is None else f"{ratio.do_nothing:.3g}"
        paired = "yes" if ratio.paired else "no"
        table.add_row(ratio.block, ratio.method, _said(ratio), low_high, nothing, paired)
    show(table)


def _said(ratio: "Ratio") -> str:
    """The value, or who never reaches the score."""
    if isfinite(ratio.value) and not ratio.base_never:
        return f"{ratio.value:.3g}"
    return "baseline never" if ratio.value == 0 else "never reached"


def _subjects(
    lm: str | None, saes: list[str], method: str | None, device: str | None
) -> "tuple[LanguageModel, dict[str, dict[Site, SAE]]]":
    """The language model and the groups of SAEs that a command is about."""
    from scalar_sae import workers
    from scalar_sae.lm.model import LanguageModel
    from scalar_sae.saes.store import load_saes

    place = workers.device(device)
    model = LanguageModel.load(lm or _model_with(saes), device=place)
    groups = load_saes(*saes)
    if method is not None and method not in groups:
        raise unknown("method", method, groups)
    chosen = {name: group for name, group in groups.items() if method in (None, name)}
    return model, {name: {site: sae.to(place) for site, sae in group.items()} for name, group in chosen.items()}


def _model_with(saes: list[str]) -> Path:
    """The language model that lies in the first folder of SAEs that holds one."""
    from scalar_sae.lm.loading import model_in
    from scalar_sae.saes import hub
    from scalar_sae.saes.store import split

    for path in saes:
        if model := model_in(hub.local(split(path)[1])):
            return model
    raise UserError(f"{', '.join(saes)}: no language model lies there; name the one that the SAEs read with --lm")


def _at_both_ends(group: "dict[Site, SAE]", place: "Block") -> bool:
    from scalar_sae.benchmark.pair import upstream
    from scalar_sae.saes.store import find_sae

    return upstream(group, place.up) is not None and find_sae(group, place.down) is not None


def _at_all(group: "dict[Site, SAE]", places: "list[Site]") -> bool:
    from scalar_sae.saes.store import find_sae

    return all(find_sae(group, place) is not None for place in places)


def _text(tokens: str, model: "LanguageModel") -> "Corpus":
    """The text that a command reads, with its remark said."""
    from scalar_sae.corpora import load_held_out
    from scalar_sae.runs import say

    corpus = load_held_out(tokens, model.tokenizer)
    if corpus.remark:
        say(corpus.remark)
    model.check_tokens(corpus.val.unique().long().unsqueeze(1))
    return corpus
