"""What the verbs that score are about: a language model, groups of SAEs, text; and options that they share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalar_sae.errors import UserError, unknown

if TYPE_CHECKING:
    from scalar_sae.console import Bar
    from scalar_sae.corpora import Corpus
    from scalar_sae.lm.model import LanguageModel
    from scalar_sae.saes.sae import SAE
    from scalar_sae.sites import Site

Device = Annotated[str | None, typer.Option(help="`cpu`, `cuda`, ...; by default a GPU if there is one.")]
Dtype = Annotated[
    str,
    typer.Option(
        help="Precision in which the language model computes: `float32`, `bfloat16`, `float16`, or `auto`, the one "
        "that its configuration names."
    ),
]
Special = Annotated[
    str | None,
    typer.Option(
        help="Special tokens (BOS, EOS, padding): `skip` keeps the model's own activation there and counts them "
        "nowhere (the default), `count` treats them like other tokens; or ids such as 0,2, to skip those instead."
    ),
]
Memory = Annotated[float, typer.Option(help="Gigabytes to stay within; of several processes each.", min=0, max=1e6)]


def subjects(
    lm: str | None, saes: list[str], method: str | None, device: str | None, dtype: str
) -> "tuple[LanguageModel, dict[str, dict[Site, SAE]]]":
    """The language model and the groups of SAEs that a command is about."""
    from scalar_sae import workers
    from scalar_sae.lm.model import LanguageModel
    from scalar_sae.saes.store import load_saes

    place = workers.device(device)
    model = LanguageModel.load(lm or _model_with(saes), device=place, dtype=dtype)
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


def text(tokens: str, model: "LanguageModel") -> "Corpus":
    """The text that a command reads, with its remark said."""
    from scalar_sae.console import say
    from scalar_sae.corpora import load_held_out

    corpus = load_held_out(tokens, model)
    for remark in corpus.remarks(corpus.context(model.context)):
        say(remark)
    model.check_tokens(corpus.val.unique().long().unsqueeze(1))
    return corpus


def check_out(out: Path | None) -> None:
    """Raise a UserError if results are there already, or cannot be written there."""
    from scalar_sae.io import check_writable

    if out and out.exists():
        raise UserError(f"{out}: exists already; choose another --out")
    if out:
        check_writable(out)


def finished(bar: "Bar", name: str, n: int | float) -> None:
    """Move a bar on."""
    bar.step(n, name)
