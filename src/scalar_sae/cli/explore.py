"""The verb `explore`."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from scalar_sae.cli.score import ends
from scalar_sae.cli.subjects import Device, Dtype, Text, check_model_and_text, subjects
from scalar_sae.cli.verbs import Outcome, verb
from scalar_sae.console import tell, waiting_for_user
from scalar_sae.errors import UserError, quoted

app = typer.Typer()


@verb(app)
def explore(
    run: Annotated[Path | None, typer.Argument(help="A run directory; or leave it out, and name SAEs.")] = None,
    saes: Annotated[
        list[str] | None, typer.Option(help="SAEs of any format in place of a run, as `scalar score` takes them.")
    ] = None,
    lm: Annotated[
        str | None, typer.Option(help="The language model that they read; by default the one that lies with them.")
    ] = None,
    block: Annotated[str | None, typer.Option(help="The block between them, such as `ff_block.0`.")] = None,
    method: Annotated[str | None, typer.Option(help="One group of SAEs, if there are several.")] = None,
    tokens: Text = None,
    port: Annotated[int, typer.Option(help="Port on this machine; 0 is any free one.", min=0, max=65535)] = 8766,
    device: Device = None,
    dtype: Dtype = "auto",
) -> Outcome:
    """Walk the circuit of a run in a browser: edges, prompts, interventions; see docs/explorer.md.

    The server answers this machine's own browser alone, at the address that is printed. Ctrl-C ends it.

    Example: **scalar explore runs/quickstart**
    """
    from scalar_sae.explore.run import load_run
    from scalar_sae.explorer.app import serve
    from scalar_sae.explorer.subject import Subject
    from scalar_sae.loopback import check_port
    from scalar_sae.own_text import evaluation_text
    from scalar_sae.sites import Block

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
    check_port(port)
    if run is not None:
        subject = Subject.of_run(load_run(run))
    else:
        paths, place = saes or [], Block.parse(block or "")
        check_model_and_text(lm, dtype, tokens)
        model, groups = subjects(lm, paths, method, device, dtype, ends(place))
        subject = Subject.of_saes(
            ", ".join(paths), model, groups, place, lambda: evaluation_text(model, paths, tokens, method=method)
        )
    with serve(subject, port) as server, waiting_for_user():
        tell(f"Open {server.url} in a browser on this machine; Ctrl-C ends.")
        with suppress(KeyboardInterrupt):
            server.run()
    return Outcome({"url": server.url}, lambda: None)
