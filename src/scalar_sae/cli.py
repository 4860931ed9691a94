"""The verbs of the `scalar` command: argument handling and nothing else."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from scalar_sae._version import __version__
from scalar_sae.errors import UserError, unknown

if TYPE_CHECKING:
    from scalar_sae.results import Record, Results

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="SCALAR: how sparsely do the features of neighbouring sparse autoencoders interact?",
)

OutRun = Annotated[Path, typer.Option("--out", help="Run directory; the same command goes on where it stopped.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field, e.g. --set tokens=2000000 (repeat for more).")
]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"scalar-sae {__version__}")
        raise typer.Exit


@app.command()
def quickstart(
    out: OutRun = Path("runs/quickstart"),
    preset: Annotated[str, typer.Option(help="Preset name or YAML file.")] = "quickstart",
    change: Changes = None,
) -> None:
    """Train TopK and Staircase SAEs on a small transformer, score them, write a report: a few minutes on a laptop.

    Example: **scalar quickstart --out runs/quickstart**
    """
    from scalar_sae.report.page import write_report
    from scalar_sae.study import StudyConfig, score_run, train_run

    config = StudyConfig.from_preset(preset, _changes(change))
    lm = train_run(config, out)
    results = score_run(config, lm, out)
    page = write_report(out)
    _print_records(results.records)
    typer.echo(f"\nReport: {page}")


@app.command("train-lm")
def train_lm(
    out: Annotated[Path, typer.Option("--out", help="Folder for the model.")],
    recipe: Annotated[
        str, typer.Option(help="`python-stdlib` or `tiny-shakespeare`: the recipe of a shipped model.")
    ] = "python-stdlib",
    data: Annotated[Path | None, typer.Option(help="A local copy of the text, instead of the download.")] = None,
    change: Changes = None,
) -> None:
    """Train the toy language model: the paper's 216,448-parameter GPT.

    Example: **scalar train-lm --recipe tiny-shakespeare --data input.txt --out runs/lm**
    """
    from scalar_sae.lm.train import RECIPES, LmRecipe
    from scalar_sae.lm.train import train_lm as run
    from scalar_sae.training.config import validated

    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    record = run(validated(LmRecipe, {**RECIPES[recipe].model_dump(), **_changes(change)}, "recipe"), out, data)
    typer.echo(
        f"validation loss {record['val_loss_nats']:.4f} nats = {record['val_loss_bits']:.4f} bits per character; {out}"
    )


@app.command()
def train(
    preset: Annotated[str, typer.Argument(help="Preset name (`quickstart`, `paper-toy`) or YAML file.")],
    out: OutRun,
    change: Changes = None,
) -> None:
    """Train the SAEs of a preset, all in one pass over the language model.

    Example: **scalar train paper-toy --out runs/paper-toy**
    """
    from scalar_sae.study import StudyConfig, train_run

    train_run(StudyConfig.from_preset(preset, _changes(change)), out)
    typer.echo(f"SAEs: {out / 'saes'}")


@app.command()
def score(
    lm: Annotated[
        str, typer.Option(help="Language model: a run's `lm` folder, a Hugging Face GPT-2 folder, a shipped name.")
    ],
    saes: Annotated[Path, typer.Option(help="A run, its `saes` folder, or one group of SAEs in it.")],
    block: Annotated[
        str, typer.Option(help="`ff_block.0`, `transformer_block.2`, `ff_layer.1`, `resid_pre.0->resid_post.1`.")
    ],
    tokens: Annotated[
        str,
        typer.Option(help="Text: a corpus (its validation part is used), or a text file that nothing was trained on."),
    ] = "python-stdlib",
    method: Annotated[
        str | None, typer.Option(help="Which group of SAEs, if there are several (all by default).")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts to score.", min=1)] = 50,
    rank_prompts: Annotated[int, typer.Option(help="Prompts to rank edges on; none of them is scored.", min=1)] = 64,
    context: Annotated[
        int | None, typer.Option(help="Tokens per prompt; by default all that the model reads.", min=2)
    ] = None,
    ranking: Annotated[str, typer.Option(help="`ablation`, `published`, `random`, or a saved matrix.")] = "ablation",
    edges: Annotated[str, typer.Option(help="`full`, `coarse`, `published`, or counts such as 1,2,4,8.")] = "full",
    seed: Annotated[int, typer.Option(help="Seed of prompts, ties and bootstrap.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the records to this JSON file.")] = None,
) -> None:
    """Score the interaction of SAEs across one block.

    Example: **scalar score --lm runs/quickstart/lm --saes runs/quickstart --block ff_block.0 --prompts 10**
    """
    from scalar_sae.benchmark.pair import Pair
    from scalar_sae.benchmark.score import ScoreConfig, held_out
    from scalar_sae.benchmark.score import score as run
    from scalar_sae.corpora import load_held_out
    from scalar_sae.lm.model import LanguageModel
    from scalar_sae.results import Results
    from scalar_sae.runs import Bar, say
    from scalar_sae.saes.store import find_sae, load_saes
    from scalar_sae.sites import Block

    if out and out.exists():
        raise UserError(f"{out}: exists already; choose another --out")
    place = Block.parse(block)
    model = LanguageModel.load(lm)
    groups = load_saes(saes)
    if method is not None and method not in groups:
        raise unknown("method", method, groups)
    chosen = {name: group for name, group in groups.items() if method in (None, name)}
    both = {name: group for name, group in chosen.items() if find_sae(group, place.up) and find_sae(group, place.down)}
    pairs = {name: Pair.between(model, place, group) for name, group in (both or chosen).items()}
    corpus = load_held_out(tokens)
    config = ScoreConfig(
        rankings={ranking: rank_prompts},
        prompts=prompts,
        context=context or model.context,
        edges=edges,
        seed=seed,
    )
    if corpus.remark:
        say(corpus.remark)
    texts = held_out(corpus, config)
    results = Results()
    with Bar("score", len(pairs) * (prompts + rank_prompts)) as bar:
        for name, pair in pairs.items():
            results.records.append(run(pair, texts, name, ranking, config, lambda n, t=name: bar.step(n, t)))
    if out:
        results.write(out)
    _print_records(results.records)


@app.command()
def measure(
    run: Annotated[Path, typer.Argument(help="A run, its `saes` folder, or one group of SAEs.")],
    against: Annotated[
        list[Path] | None, typer.Option(help="A run of another seed: are its features the same? (Repeat for more.)")
    ] = None,
    lm: Annotated[str | None, typer.Option(help="The language model the SAEs read, if not the run's own.")] = None,
    tokens: Annotated[str, typer.Option(help="Text: a corpus (its validation part is used), or a text file.")] = (
        "python-stdlib"
    ),
    prompts: Annotated[int, typer.Option(help="Prompts to measure on.", min=2)] = 64,
    context: Annotated[
        int | None, typer.Option(help="Tokens per prompt; by default all the model reads.", min=2)
    ] = None,
    threshold: Annotated[float, typer.Option(help="Cosine from which two seeds' latents count as shared.")] = 0.7,
    any_partner: Annotated[
        bool, typer.Option("--any-partner", help="Shared need not mean the same partner by encoder and decoder.")
    ] = False,
) -> None:
    """Measure SAEs: fidelity of each and of all spliced in, agreement with other seeds; see docs/measures.md.

    Example: **scalar measure runs/seed0 --against runs/seed1 --against runs/seed2**
    """
    from scalar_sae.measures.run import measure_run

    results = measure_run(run, against or [], lm, tokens, prompts, context, threshold, not any_partner)
    _print_measures(results)
    typer.echo(f"\nRecords: {run / 'results.json'}")


@app.command()
def blind(
    out: Annotated[Path, typer.Option("--out", help="Folder of the comparison.")],
    a: Annotated[Path | None, typer.Argument(help="Folder of one SAE (with sae.json).")] = None,
    b: Annotated[Path | None, typer.Argument(help="Folder of the other, at the same site.")] = None,
    lm: Annotated[str, typer.Option(help="The language model that both read.")] = "python-stdlib",
    tokens: Annotated[str, typer.Option(help="Text that features are shown on.")] = "python-stdlib",
    rater: Annotated[str, typer.Option(help="Your name: each rater's answers are kept apart.")] = "rater",
    pairs: Annotated[int, typer.Option(help="Pairs of features.", min=1)] = 100,
    prompts: Annotated[int, typer.Option(help="Prompts to look for examples in.", min=1)] = 512,
    port: Annotated[int, typer.Option(help="Port on this machine.", min=0, max=65535)] = 8765,
    summary: Annotated[bool, typer.Option("--summary", help="Say what raters preferred so far.")] = False,
) -> None:
    """Compare two SAEs' features blindly, by keyboard, in a browser; see docs/measures.md.

    Example: **scalar blind runs/a/saes/topk/resid_post.0 runs/a/saes/staircase/resid_post.0 --out runs/blind**
    """
    from scalar_sae.measures.blind import summary as summarise

    if summary:
        typer.echo(summarise(out).model_dump_json(indent=1))
        return
    from scalar_sae.measures.run import prepare_blind
    from scalar_sae.report.blind import Comparison, serve

    if a is None or b is None:
        raise UserError("scalar blind needs the folders of two SAEs")
    prepare_blind(out, a, b, lm, tokens, pairs, prompts)
    with serve(Comparison(out, rater), port) as server:
        typer.echo(f"Open http://127.0.0.1:{server.server_port} and use the arrow keys; Ctrl-C ends, the same goes on.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo(f"Answers: {out / 'answers'}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run directory with results.json.")],
) -> None:
    """Write `report.html` from a run's results: one self-contained page.

    Example: **scalar report runs/quickstart**
    """
    from scalar_sae.report.page import write_report

    typer.echo(f"Report: {write_report(run)}")


@app.command("ls")
def list_(
    path: Annotated[Path, typer.Argument(help="A run directory, or any folder of SAEs.")],
) -> None:
    """Say what a folder holds: language model, SAEs, records.

    Example: **scalar ls runs/quickstart**
    """
    from scalar_sae.results import Results
    from scalar_sae.saes.store import load_saes

    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    model = next((folder for folder in (path / "lm", path) if (folder / "config.json").is_file()), None)
    results = path / "results.json"
    saes = load_saes(path) if model is None or any(path.rglob("sae.json")) else {}
    table = Table(title=str(path))
    for column in ("method", "site", "d_model", "d_sae", "activation", "chunks"):
        table.add_column(column)
    for name, group in saes.items():
        for site, sae in sorted(group.items()):
            table.add_row(
                name, str(site), str(sae.d_model), str(sae.d_sae), str(sae.activation), " ".join(map(str, sae.chunks))
            )
    if saes:
        Console().print(table)
    if model:
        typer.echo(f"language model: {model}")
    if results.is_file():
        typer.echo(f"records: {len(Results.read(results).records)} in {results}")


def _changes(assignments: list[str] | None) -> dict[str, Any]:
    """`key=value` arguments, the value read as YAML."""
    changes: dict[str, Any] = {}
    for assignment in assignments or []:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: expected FIELD=VALUE")
        try:
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {assignment}: {value!r} is not a YAML value") from error
    return changes


def _print_records(records: "list[Record]") -> None:
    table = Table(title="SCALAR: lower is better, 95 % intervals over prompts")
    for column in ("block", "SAEs", "ranking"):
        table.add_column(column, no_wrap=True)
    for column in ("edges@90", "live", "log area", "floor"):
        table.add_column(column, justify="right")
    for record in records:
        edges, interval = record.edges_at["90"], record.ci["edges_at.90"]
        live = record.live_edges_at["90"]
        table.add_row(
            record.block,
            record.method,
            record.ranking if len(record.ranking) < 20 else Path(record.ranking).name,
            ("never" if edges is None else f"{edges:,.0f}")
            + (f" [{interval[0]:,.0f}, {interval[1]:,.0f}]" if isinstance(interval, tuple) else ""),
            "" if live is None else f"{live:.1f}",
            f"{record.log_area:.3f}",
            f"{record.floor.kl:.3f}",
        )
    Console().print(table)


def _print_measures(results: "Results") -> None:
    table = Table(title=f"SAEs, on {results.saes[0].n_tokens:,} tokens; KL and CE in nats")
    for column in ("SAEs", "site"):
        table.add_column(column, no_wrap=True)
    for column in ("L0", "FVU", "cosine", "CE increase", "KL", "KL recovered (mean)", "dead"):
        table.add_column(column, justify="right")
    for sae in results.saes:
        scores = (sae.l0, sae.fvu, sae.cosine, sae.ce_increase, sae.kl, sae.kl_recovered["mean"], sae.dead)
        table.add_row(sae.method, sae.site, *("" if score is None else f"{score:.3f}" for score in scores))
    for group in results.spliced:
        scores = (group.ce_increase, group.kl, group.kl_recovered["mean"])
        cells = ["" if score is None else f"{score:.3f}" for score in scores]
        table.add_row(group.method, f"all {len(group.sites)}", "", "", "", *cells, "")
    Console().print(table)
    if not results.seeds:
        return
    table = Table(title="Agreement of seeds: latents that fire, signed cosines")
    for column in ("SAEs", "site", "PW-MCC", "null", "rescaled", "shared", "null"):
        table.add_column(column, no_wrap=True)
    for seeds in results.seeds:
        scores = (seeds.pw_mcc, seeds.null, seeds.rescaled, seeds.shared, seeds.shared_null)
        table.add_row(seeds.method, seeds.site, *(f"{score:.3f}" for score in scores))
    Console().print(table)


def main() -> None:
    """Run the command line: exit code 2 and one line for a user's mistake."""
    try:
        app()
    except UserError as error:
        print(f"scalar: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
