"""The verbs of the `scalar` command: argument handling and nothing else."""

from pathlib import Path
from typing import Annotated, Any

import typer

from scalar_sae._version import __version__
from scalar_sae.cli import circuit, compare, explore, measure, saes, score
from scalar_sae.cli.ending import ended
from scalar_sae.cli.outputs import check_cache, check_folder, check_run
from scalar_sae.cli.subjects import Device, Special
from scalar_sae.cli.tables import print_records
from scalar_sae.cli.verbs import Outcome, verb
from scalar_sae.console import tell
from scalar_sae.errors import UserError, unknown
from scalar_sae.io import check_writable
from scalar_sae.malloc import keep_freed_memory
from scalar_sae.readers import parse_yaml
from scalar_sae.training import presets

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="SCALAR: how sparsely do the features of neighbouring sparse autoencoders interact?",
)

PRESET = f"A YAML file, or a preset: {', '.join(f'`{name}`' for name in presets.names())}."
OutRun = Annotated[
    Path, typer.Option("--out", help="Run directory. The same command continues a run that was stopped.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change a field, e.g. --set tokens=2000000 or --set score.prompts=20 (repeat for more)."
    ),
]
TrainDtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="Precision of the language model, as `--set dtype=...`: `float32`, `bfloat16`, `float16`, `auto`.",
    ),
]


for _module in (score, circuit, compare, measure, explore, saes):
    app.add_typer(_module.app)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        tell(f"scalar-sae {__version__}")
        raise typer.Exit
    keep_freed_memory()


@verb(app)
def quickstart(
    out: OutRun = Path("runs/quickstart"),
    preset: Annotated[str | None, typer.Option(help=f"{PRESET} By default `quickstart`.")] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="The preset `quickstart-full`, with more SAEs and transformer blocks. It takes several minutes.",
        ),
    ] = False,
    change: Changes = None,
    special: Special = None,
    device: Device = None,
    dtype: TrainDtype = None,
) -> Outcome | None:
    """Train TopK and Staircase SAEs on a small transformer, score them, write a report: two minutes on a laptop.

    Under `torchrun --no-python --nproc-per-node 2 scalar quickstart ...` the processes share every batch,
    then the blocks to score. The result is the same except for rounding.

    Example: **scalar quickstart --out runs/quickstart**
    """
    from scalar_sae import distributed
    from scalar_sae.cautions import cautions_of
    from scalar_sae.explorer.app import prepare
    from scalar_sae.lm.special import parse_rule
    from scalar_sae.locks import held
    from scalar_sae.report.page import headline, headline_sentence, write_report
    from scalar_sae.study import StudyConfig, score_run, train_run

    if full and preset:
        raise UserError(f"--full is the preset quickstart-full, and --preset says {preset}; give one of them")
    check_run(out)
    rule = None if special is None else parse_rule(special)
    distributed.init()
    name = preset or ("quickstart-full" if full else "quickstart")
    config = StudyConfig.from_preset(name, _changes(change, dtype), rule)
    with held(out, remedy="wait until it ends, or choose another --out"):
        lm = train_run(config, out, device=device, to_score=True)
        results = score_run(config, lm, out)
        if distributed.rank() != 0:
            return None
        page = write_report(out)
        if distributed.world_size() == 1 and lm.device.type == "cpu":  # where the explorer of a run computes
            del lm  # it is loaded anew
            prepare(out)

    def show() -> None:
        chosen = results.under(headline(results))
        print_records(chosen)
        tell("", headline_sentence(results))
        tell("", f"Report: {page}", f"Every record, under every ranking: {out / 'results.json'}")
        if chosen:
            first = chosen[0]
            tell(f"Next: scalar explore {out} walks its circuits in a browser")
            tell(f"Or: scalar score --saes {out} --block {first.block} --method {first.method} --prompts 20")

    found = {"report": page, "records": results.records, "cautions": cautions_of(results.records)}
    return Outcome(found, show)


@verb(app, "train-lm")
def train_lm(
    out: Annotated[Path, typer.Option("--out", help="Folder for the model.")],
    recipe: Annotated[
        str,
        typer.Option(
            help="`python-stdlib` or `tiny-shakespeare` for a toy, `medium` for 5 million parameters and real language."
        ),
    ] = "python-stdlib",
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="For `tiny-shakespeare`, a local copy of the text. For `medium`, a text file to add (repeat for more)."
        ),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a field of the recipe, e.g. --set steps=300 (repeat for more)."),
    ] = None,
) -> Outcome:
    """Train a small language model: the paper's GPT with 216,448 parameters, or a medium one.

    Example: **scalar train-lm --recipe tiny-shakespeare --data input.txt --out runs/lm**
    """
    from scalar_sae.lm.train import RECIPES, LmRecipe
    from scalar_sae.lm.train import train_lm as run
    from scalar_sae.training.config import validated

    check_folder(out)
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    record = run(validated(LmRecipe, {**RECIPES[recipe].model_dump(), **_changes(change)}, "recipe"), out, *data or ())
    said = (
        f"validation loss {record['val_loss_nats']:.4f} nats = {record['val_loss_bits']:.4f} bits per token, "
        f"{record['val_bits_per_byte']:.4f} bits per byte; {out}"
    )
    return Outcome({"folder": out, "record": record}, lambda: tell(said))


@verb(app)
def train(
    out: OutRun,
    preset: Annotated[str | None, typer.Argument(help=PRESET)] = None,
    change: Changes = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run in --out with its own config.yaml, without a preset and --set."
        ),
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that stores activations, so that later runs can read them.")
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(help="Log to `tensorboard` or `wandb` too (repeat for both). Each is an extra of the package."),
    ] = None,
    special: Special = None,
    device: Device = None,
    dtype: TrainDtype = None,
) -> Outcome | None:
    """Train the SAEs of a preset, all in one pass over the language model.

    Under `torchrun --no-python --nproc-per-node 2 scalar train ...` the processes share every batch. The
    result is the same.

    Example: **scalar train paper-toy --out runs/paper-toy**. To continue it after a stop: **scalar train --resume
    --out runs/paper-toy**
    """
    from scalar_sae import distributed
    from scalar_sae.lm.special import parse_rule
    from scalar_sae.study import StudyConfig, train_run

    if resume and (preset or change or special or dtype):
        raise UserError(
            f"--resume: {out / 'config.yaml'} says what is trained; leave out the preset, --set, --special and --dtype"
        )
    if not (resume or preset):
        raise UserError("scalar train needs a preset, or --resume and the --out of a run that was stopped")
    check_run(out)
    check_cache(cache)
    rule = None if special is None else parse_rule(special)
    distributed.init()
    config = StudyConfig.from_preset(preset, _changes(change, dtype), rule) if preset else StudyConfig.of_run(out)
    train_run(config, out, cache, log or (), device)
    if distributed.rank() != 0:
        return None
    return Outcome({"saes": out / "saes"}, lambda: tell(f"SAEs: {out / 'saes'}"))


@verb(app)
def report(
    run: Annotated[Path, typer.Argument(help="A run directory with results.json.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File for the page; by default `report.html` in the run.")
    ] = None,
) -> Outcome:
    """Write the report of a run as one self-contained HTML file.

    Example: **scalar report runs/quickstart**
    """
    from scalar_sae.report.page import write_report

    check_writable(out or run / "report.html")
    page = write_report(run, out)
    return Outcome({"report": page}, lambda: tell(f"Report: {page}"))


def _changes(assignments: list[str] | None, dtype: str | None = None) -> dict[str, Any]:
    """`key=value` arguments, the value read as YAML, and `--dtype`."""
    changes: dict[str, Any] = {}
    for assignment in assignments or []:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: expected FIELD=VALUE")
        changes[key] = parse_yaml(value, f"--set {assignment}")
    if dtype is not None and changes.setdefault("dtype", dtype) != dtype:
        raise UserError(f"--dtype {dtype}: --set says dtype={changes['dtype']}; give one of them")
    return changes


def main() -> None:
    """Run the command line; `ending.py` says how it ends."""
    raise SystemExit(ended(lambda: app(prog_name="scalar", standalone_mode=False)))
