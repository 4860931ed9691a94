"""The verb `explore`."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalar_sae.cli.score import ends
from scalar_sae.cli.subjects import Device, Dtype, Text, check_model_and_text, subjects
from scalar_sae.cli.verbs import Outcome, verb
from scalar_sae.console import tell, waiting_for_user
from scalar_sae.errors import UserError, quoted

if TYPE_CHECKING:
    from scalar_sae.evaluation.features.judges import Judge
    from scalar_sae.explorer.subject import Subject

app = typer.Typer()


@verb(app)
def explore(
    run: Annotated[Path | None, typer.Argument(help="A run directory. Leave it out to name SAEs with --saes.")] = None,
    saes: Annotated[
        list[str] | None, typer.Option(help="SAEs of any format, as for `scalar score`, in place of a run.")
    ] = None,
    lm: Annotated[
        str | None, typer.Option(help="The language model that they read. By default the one stored with them.")
    ] = None,
    block: Annotated[str | None, typer.Option(help="The block between them, such as `ff_block.0`.")] = None,
    method: Annotated[str | None, typer.Option(help="The group of SAEs, if there are several.")] = None,
    tokens: Text = None,
    judge: Annotated[
        str | None,
        typer.Option(help="A language model that explains edges and groups: a folder, a Hub id, or a model at --url."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible server for the judge (key: OPENAI_API_KEY), as for `scalar judge`."),
    ] = None,
    port: Annotated[int, typer.Option(help="Port on this machine. 0 takes any free one.", min=0, max=65535)] = 8766,
    device: Device = None,
    dtype: Dtype = "auto",
) -> Outcome:
    """Walk the circuits of a run in a browser: edges, prompts and interventions (docs/explorer.md).

    Only a browser on this machine can open the printed address. Ctrl-C ends the server.

    Example: **scalar explore runs/quickstart**
    """
    from scalar_sae.explorer.app import serve
    from scalar_sae.explorer.files import Kept
    from scalar_sae.loopback import check_port
    from scalar_sae.run_folder import run_folder

    if run is None and not saes:
        raise UserError("scalar explore needs a run, or --saes with --block; give one of them")
    if run is not None and saes:
        raise UserError(f"{run} and --saes {quoted(saes[0])}: give one of them")
    of_saes = {"lm": lm, "block": block, "method": method, "tokens": tokens, "device": device}
    of_saes |= {"dtype": None if dtype == "auto" else dtype}
    for name, value in of_saes.items():
        if run is not None and value is not None:
            raise UserError(f"--{name} {quoted(value)}: goes with --saes; a run names its own")
    if saes and block is None:
        raise UserError("--saes: name the block between them with --block, such as ff_block.0")
    if url and not judge:
        raise UserError(f"--url {quoted(url)}: name the server's model with --judge")
    if judge == "":
        raise UserError("--judge '': name a folder, a Hub id, or a model at --url; or leave it out")
    check_port(port)
    kept = None if run is None else Kept(run_folder(run), None if judge is None else [judge, url])

    def load() -> "Subject":
        explains = None if judge is None else _judge(judge, url)  # before the model, which takes longer
        subject = _of_saes(saes or [], block or "", method, lm, tokens, device, dtype) if run is None else _of_run(run)
        subject.judge = None if explains is None else _keeping(explains, subject.folder)
        return subject

    with serve(load, port, kept) as server, waiting_for_user():
        tell(f"Open {server.url} in a browser on this machine; Ctrl-C ends.")
        with suppress(KeyboardInterrupt):
            server.run()
    return Outcome({"url": server.url}, lambda: None)


def _of_run(run: Path) -> "Subject":
    from scalar_sae.explore.run import load_run
    from scalar_sae.explorer.subject import Subject

    return Subject.of_run(load_run(run))


def _of_saes(
    paths: list[str],
    block: str,
    method: str | None,
    lm: str | None,
    tokens: str | None,
    device: str | None,
    dtype: str,
) -> "Subject":
    from scalar_sae.explorer.subject import Subject
    from scalar_sae.own_text import evaluation_text
    from scalar_sae.sites import Block

    place = Block.parse(block)
    check_model_and_text(lm, dtype, tokens)
    model, groups = subjects(lm, paths, method, device, dtype, ends(place))
    return Subject.of_saes(
        ", ".join(paths), model, groups, place, lambda: evaluation_text(model, paths, tokens, method=method)
    )


def _judge(model: str, url: str | None) -> "Judge":
    from scalar_sae.evaluation.features.judges import endpoint, local

    return endpoint(url, model, option="--judge") if url else local(model, option="--judge")


def _keeping(judge: "Judge", folder: Path | None) -> "Judge":
    """The judge. Its answers are kept in a run directory, if they can be."""
    from scalar_sae.evaluation.features.judge import kept

    return judge if folder is None else kept(judge, folder / "explorer" / "judge.jsonl")
