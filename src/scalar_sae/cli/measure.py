"""The verbs that measure SAEs by themselves: `measure`, `features`, `judge`, `blind`."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalar_sae.cli.outputs import check_folder, check_tables
from scalar_sae.cli.subjects import AllowTrainedText, Device, Dtype, Special, Text, check_model_and_text
from scalar_sae.cli.tables import print_measures, print_reading
from scalar_sae.cli.verbs import Outcome, verb
from scalar_sae.console import tell, waiting_for_user
from scalar_sae.errors import UserError
from scalar_sae.io import check_writable

if TYPE_CHECKING:
    from scalar_sae.records.sae_results import SaeReading

app = typer.Typer()

Measured = Annotated[
    str, typer.Argument(help="A run, or SAEs of any format: a folder, a file, `hf://owner/name/folder` or SITE=PATH.")
]


@verb(app)
def measure(
    run: Measured,
    against: Annotated[
        list[str] | None, typer.Option(help="A run with another seed, whose features are compared (repeat for more).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the records (results.json). By default the run. For SAEs that are not a run of this "
            "package it is `scalar-NAME` in the current folder, and their own folder stays as it is.",
        ),
    ] = None,
    lm: Annotated[
        str | None, typer.Option(help="The language model that the SAEs read, if it is not the run's own.")
    ] = None,
    tokens: Text = None,
    allow_trained_text: AllowTrainedText = False,
    prompts: Annotated[int, typer.Option(help="Prompts to measure on.", min=2)] = 64,
    context: Annotated[
        int | None, typer.Option(help="Tokens per prompt; by default 128, or all that the model reads.", min=2)
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Least cosine at which the latents of two seeds count as shared.", min=-1, max=1)
    ] = 0.7,
    any_partner: Annotated[
        bool,
        typer.Option(
            "--any-partner", help="Count a latent as shared even if encoder and decoder find different partners."
        ),
    ] = False,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Also measure absorption, sparse probing, TPP and SCR. The labels are `characters` (classes, words, "
            "keywords), or `first-letters` of words for models that can spell."
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    words: Annotated[int, typer.Option(help="Number of words for `--labels first-letters`.", min=40)] = 4096,
    special: Special = None,
) -> Outcome:
    """Measure SAEs by themselves: fidelity, agreement between seeds, and how well latents match labels.

    Fidelity is measured of each SAE and of all of them spliced in together. docs/measures.md has the definitions.

    Example: **scalar measure runs/seed0 --against runs/seed1 --against runs/seed2**
    """
    from scalar_sae.evaluation.run import check_records, measure_run, records_folder
    from scalar_sae.lm.special import parse_rule

    path = check_records(run, records_folder(run, out))
    check_model_and_text(lm, dtype, tokens)
    partner, rule = not any_partner, parse_rule(special or "skip")
    results = measure_run(
        run, against or [], lm, tokens, prompts, context, threshold, partner, labels, words, dtype, rule, out, device,
        allow_trained_text=allow_trained_text,
    )  # fmt: skip

    def show() -> None:
        print_measures(results)
        tell("", f"Records: {path}")

    measured = results.model_dump(mode="json", exclude={"records", "reading", "schema_version", "written_by"})
    return Outcome({"results": path, **measured}, show)


@verb(app)
def features(
    run: Measured,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for tables, pages and records. By default tables and pages go to `features` in the run, and "
            "records to its results.json. For SAEs that are not a run of this package, both go to `scalar-NAME` in the "
            "current folder.",
        ),
    ] = None,
    lm: Annotated[
        str | None, typer.Option(help="The language model that the SAEs read, if it is not the run's own.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="The group of SAEs, if there are several.")] = None,
    tokens: Text = None,
    allow_trained_text: AllowTrainedText = False,
    prompts: Annotated[int, typer.Option(help="Prompts to read.", min=2)] = 512,
    context: Annotated[
        int | None, typer.Option(help="Tokens per prompt; by default 128, or all that the model reads.", min=2)
    ] = None,
    edges: Annotated[
        str, typer.Option(help="The ranking of the edges between neighbouring SAEs, or `none`.")
    ] = "leave_one_out",
    edge_prompts: Annotated[int, typer.Option(help="Prompts to rank edges on.", min=1)] = 4,
    memory: Annotated[
        float, typer.Option(help="Gigabytes of memory that ranking edges may take.", min=0, max=1e6)
    ] = 8.0,
    device: Device = None,
    dtype: Dtype = "auto",
    special: Special = None,
) -> Outcome:
    """Write a page of the features of every SAE.

    A feature has examples, a histogram, its effect on the logits, edges, and a rule (docs/measures.md). The same
    command continues where it stopped. It refuses tables that were made with other options.

    Example: **scalar features runs/quickstart --method topk**
    """
    from scalar_sae import distributed
    from scalar_sae.evaluation.features.interpretability import keep_reading, reading
    from scalar_sae.evaluation.run import check_records, read_run, records_folder
    from scalar_sae.explorer.app import prepare
    from scalar_sae.lm.special import parse_rule
    from scalar_sae.report.features import write_page

    path = check_records(run, records_folder(run, out))
    check_tables(out or path.parent / "features")
    check_model_and_text(lm, dtype, tokens)
    ranking = None if edges == "none" else edges
    rule = parse_rule(special or "skip")
    folders = read_run(
        run, out, lm, method, tokens, prompts, context, ranking, edge_prompts, memory, dtype, rule,
        device=device,
        allow_trained_text=allow_trained_text,
    )  # fmt: skip
    records = [reading(folder) for folder in folders]
    pages = [write_page(folder, _title(record)) for folder, record in zip(folders, records, strict=True)]
    keep_reading(path, records)
    if distributed.device(device) == "cpu":  # where the explorer of a run computes
        prepare(path.parent)

    def show() -> None:
        tell(*(f"Features: {page}" for page in pages))
        print_reading(records)
        tell("", f"Records: {path}")

    return Outcome({"results": path, "pages": pages, "reading": records}, show)


def _title(record: "SaeReading") -> str:
    """The title of a page of features."""
    return f"{record.method} {record.site}" + (f", on {record.text}" if record.text else "")


@verb(app)
def judge(
    folder: Annotated[Path, typer.Argument(help="Feature tables of one SAE: FEATURES/METHOD/SITE.")],
    url: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible server, such as http://127.0.0.1:8000/v1 (key: OPENAI_API_KEY)."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="The server's model. Without --url, a folder or Hub id to load here.")
    ] = "",
    latents: Annotated[int, typer.Option(help="Number of latents to judge. They are a random sample.", min=1)] = 100,
    device: Device = None,
    dtype: Dtype = "auto",
) -> Outcome:
    """Have a language model explain features, and test its explanations by detection and fuzzing.

    It is asked three questions about each latent. Every answer is written at once, so the same command continues where
    it stopped. Answers of other judges are kept. The scores go into the results.json of the run (or of the folder
    FEATURES) that holds the tables.

    Example: **scalar judge runs/quickstart/features/topk/resid_post.0 --url http://127.0.0.1:8000/v1 --model m**
    """
    from scalar_sae.evaluation.features.interpretability import keep_reading, reading
    from scalar_sae.evaluation.features.judge import judge_features
    from scalar_sae.evaluation.features.judges import endpoint, local
    from scalar_sae.evaluation.run import RESULTS
    from scalar_sae.records.results import Results
    from scalar_sae.report.features import write_page

    if url and dtype != "auto":
        raise UserError(f"--dtype {dtype}: a server decides in which precision its model computes; leave it out")
    if url and device:
        raise UserError(f"--device {device}: a server decides where its model computes; leave it out")
    if not model:
        raise UserError("scalar judge needs a judge: --url and --model, or --model FOLDER")
    copy, kept = "folder, such as a copy of this one", None
    if folder.is_dir():  # otherwise there are no tables either
        above = folder.resolve().parent.parent  # RUN/features, or FEATURES by itself
        kept = next((path for path in (above / RESULTS, above.parent / RESULTS) if path.is_file()), None)
        check_folder(folder, copy)
        check_folder(folder / "page", copy)
    if kept:
        check_writable(kept, copy)
        Results.read(kept)  # what is damaged is said before anything is asked
    answers = judge_features(folder, endpoint(url, model) if url else local(model, dtype, device), latents)
    record = reading(folder)
    page = write_page(folder, _title(record))
    if kept:
        keep_reading(kept, [record])

    def show() -> None:
        tell(f"Answers: {answers}", f"Features: {page}")
        print_reading([record])
        if kept:
            tell("", f"Records: {kept}")

    return Outcome({"results": kept, "answers": answers, "pages": [page], "reading": [record]}, show)


@verb(app)
def blind(
    out: Annotated[Path, typer.Option("--out", help="Folder for the comparison.")],
    a: Annotated[Path | None, typer.Argument(help="The folder of one SAE (with sae.json).")] = None,
    b: Annotated[Path | None, typer.Argument(help="The folder of another SAE at the same site.")] = None,
    lm: Annotated[
        str | None,
        typer.Option(help="The language model that both read. By default the one of the run that holds them."),
    ] = None,
    tokens: Text = None,
    allow_trained_text: AllowTrainedText = False,
    rater: Annotated[str, typer.Option(help="Your name. The answers of each rater are kept apart.")] = "rater",
    pairs: Annotated[int, typer.Option(help="Number of pairs of features.", min=1)] = 100,
    prompts: Annotated[int, typer.Option(help="Prompts to look for examples in.", min=1)] = 512,
    special: Special = None,
    port: Annotated[int, typer.Option(help="Port on this machine.", min=0, max=65535)] = 8765,
    device: Device = None,
    dtype: Dtype = "auto",
    summary: Annotated[bool, typer.Option("--summary", help="Show what raters have preferred so far.")] = False,
) -> Outcome:
    """Compare the features of two SAEs blindly, by keyboard in a browser (docs/measures.md).

    The same command continues where it stopped. It refuses a comparison that was made with other options.

    Example: **scalar blind runs/a/saes/topk/resid_post.0 runs/a/saes/staircase/resid_post.0 --out runs/blind**
    """
    from scalar_sae.evaluation.features.blind import check_rater
    from scalar_sae.evaluation.features.blind import summary as summarise

    if summary:
        found = summarise(out)
        return Outcome(found.model_dump(), lambda: tell(*found.model_dump_json(indent=1).splitlines()))
    from scalar_sae.evaluation.run import prepare_blind
    from scalar_sae.lm.special import parse_rule
    from scalar_sae.loopback import check_port
    from scalar_sae.report.blind import Comparison, serve

    if a is None or b is None:
        raise UserError("scalar blind needs the folders of two SAEs")
    check_folder(out)
    check_folder(out / "answers")
    check_model_and_text(lm, dtype, tokens)
    check_rater(rater)
    check_port(port)
    rule, allow = parse_rule(special or "skip"), allow_trained_text
    prepare_blind(out, a, b, lm, tokens, pairs, prompts, dtype, rule, device=device, allow_trained_text=allow)
    with serve(Comparison(out, rater), port) as server, waiting_for_user():
        tell(f"Open {server.url} and answer by keyboard; Ctrl-C ends; the same command continues.")
        with suppress(KeyboardInterrupt):
            server.run()
    answers = out / "answers"
    return Outcome({"answers": answers}, lambda: tell(f"Answers: {answers}"))
