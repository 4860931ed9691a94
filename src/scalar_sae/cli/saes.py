"""The verbs for files of SAEs: `ls`, `export`, `push`, `pull`."""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from scalar_sae.cli.outputs import check_empty
from scalar_sae.cli.tables import PlainTable, show
from scalar_sae.cli.verbs import Outcome, verb
from scalar_sae.console import tell
from scalar_sae.errors import UserError, unknown

app = typer.Typer()

Source = Annotated[
    str, typer.Argument(help="A run, a folder or file of SAEs of any format, or `hf://owner/name/folder`.")
]


@verb(app, "ls")
def list_(path: Source) -> Outcome:
    """List what a folder holds: SAEs and their format, a language model, records.

    Example: **scalar ls runs/quickstart**
    """
    from scalar_sae.lm.loading import model_in
    from scalar_sae.records.results import Results
    from scalar_sae.saes import hub
    from scalar_sae.saes.formats.detect import Located, NothingFoundError
    from scalar_sae.saes.store import find_saes, notes

    folder = hub.local(path)
    if not folder.exists():
        raise UserError(f"{path}: no such file or folder")
    model = model_in(folder)
    results = folder / "results.json"
    records = Results.read(results).records if os.path.lexists(results) else None
    table, rows, located = PlainTable(title=path), list[dict[str, Any]](), list[Located]()
    columns = ("method", "site", "d_model", "d_sae", "activation", "chunks", "format")
    for column in columns:
        table.add_column(column)
    try:
        located = list(find_saes(folder))
        for found, format_, _ in located:
            sae, site = found.sae, f"{found.reads} -> {found.writes}" if found.writes else found.reads or "?"
            chunks = " ".join(map(str, sae.chunks))
            table.add_row(found.group, site, str(sae.d_model), str(sae.d_sae), str(sae.activation), chunks, format_)
            cells = (found.group, site, sae.d_model, sae.d_sae, str(sae.activation), list(sae.chunks), format_)
            rows.append(dict(zip(columns, cells, strict=True)))
    except NothingFoundError:
        if model is None and records is None:
            raise
    remarks = list(notes(located))

    def show_all() -> None:
        if table.row_count:
            show(table)
        tell(*remarks)
        if model:
            tell(f"language model: {model}")
        if records is not None:
            tell(f"records: {len(records)} in {results}")

    n_records = None if records is None else len(records)
    return Outcome({"saes": rows, "notes": remarks, "language_model": model, "n_records": n_records}, show_all)


@verb(app)
def export(
    path: Source,
    out: Annotated[Path, typer.Option("--out", help="Folder for the SAEs. It must not exist yet.")],
    format_: Annotated[
        str, typer.Option("--format", help="`saelens`, `sparsify`, or `scalar` for our own.")
    ] = "saelens",
    model: Annotated[
        str,
        typer.Option(
            help="For SAELens, the name of the language model. By default the one that the SAEs were trained on."
        ),
    ] = "",
    layers: Annotated[str, typer.Option(help="For sparsify, what the model calls its layers: `h` or `layers`.")] = "h",
    site: Annotated[str | None, typer.Option(help="The site of a single SAE, if its files do not say it.")] = None,
    method: Annotated[str | None, typer.Option(help="The group of SAEs to write. By default all.")] = None,
) -> Outcome:
    """Write SAEs of any format for SAELens (SAEDashboard, Neuronpedia, SAEBench) or for sparsify (delphi).

    Example: **scalar export runs/quickstart --format saelens --out runs/for-saelens**
    """
    from scalar_sae.saes.export import check_format
    from scalar_sae.saes.export import export as run
    from scalar_sae.saes.store import find_saes
    from scalar_sae.sites import Site

    check_empty(out)
    check_format(format_)
    where = None if site is None else Site.parse(site)
    located = list(find_saes(path))
    groups = {found.group for found, _, _ in located}
    if method is not None and method not in groups:
        raise unknown("method", method, sorted(groups))
    chosen = [one for one in located if method in (None, one.found.group)]
    written = run(chosen, format_, out, model=model, layers=layers, site=where)
    return Outcome({"folder": out, "saes": written}, lambda: tell(f"{len(written)} SAEs: {out}"))


@verb(app)
def pull(
    path: Annotated[
        str, typer.Argument(help="`hf://owner/name`, or a folder in it: `hf://owner/name@revision/folder`.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the SAEs. It must not exist yet.")],
) -> Outcome:
    """Download SAEs of any format from the Hugging Face Hub and store them in our own format.

    Example: **scalar pull hf://openai-community/some-saes --out runs/theirs**
    """
    return export(path, out, "scalar")


@verb(app)
def push(
    path: Source,
    repository: Annotated[
        str, typer.Argument(help="`owner/name` on the Hugging Face Hub. It is created if necessary.")
    ],
    private: Annotated[bool, typer.Option("--private", help="If the repository is created, make it private.")] = False,
) -> Outcome:
    """Publish SAEs on the Hugging Face Hub, with a model card.

    The card holds scores, recipes, and how to load the SAEs. Only the last name of an absolute path is published.

    Example: **scalar push runs/quickstart me/my-saes**
    """
    from scalar_sae.records.results import Results
    from scalar_sae.report.publication import stage
    from scalar_sae.saes import hub
    from scalar_sae.saes.store import find_saes

    hub.check_repository(repository)
    located = list(find_saes(path))
    file = Path(path) / "results.json"
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / "saes"
        stage(staged, repository, located, Results.read(file) if os.path.lexists(file) else None)
        address = hub.upload(staged, repository, private)
    return Outcome({"address": address, "n_saes": len(located)}, lambda: tell(f"{len(located)} SAEs: {address}"))
