"""What the verbs that score are about: a language model, groups of SAEs, text; and options that they share."""

import filecmp
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalar_sae.errors import UserError, unknown

if TYPE_CHECKING:
    from scalar_sae.console import Bar
    from scalar_sae.lm.model import LanguageModel
    from scalar_sae.saes.sources import Find, Group
    from scalar_sae.scoring.config import ScoreConfig
    from scalar_sae.scoring.texts import Texts

Device = Annotated[str | None, typer.Option(help="`cpu`, `cuda`, ...; by default a GPU if there is one.")]
Dtype = Annotated[
    str,
    typer.Option(
        help="Precision of the language model: `float32`, `bfloat16`, `float16`, or `auto` for the one that its "
        "configuration names."
    ),
]
Special = Annotated[
    str | None,
    typer.Option(
        help="How special tokens (BOS, EOS, padding) are treated. `skip` (the default) keeps the model's own "
        "activation there and does not count them. `first` also skips the first token of every prompt, for models such "
        "as GPT-2 whose prompts begin without a special token. `count` treats them like other tokens. Ids such as 0,2 "
        "or first,0 name the tokens to skip."
    ),
]
Text = Annotated[
    str | None,
    typer.Option(
        help="Text to read: a file, a folder, `hf://owner/name` or a name (docs/text.md). By default the held-out "
        "part of the text that the SAEs were trained on."
    ),
]
AllowTrainedText = Annotated[
    bool,
    typer.Option("--allow-trained-text", help="Accept a text that the SAEs were trained on. The records say so."),
]
Memory = Annotated[float, typer.Option(help="Gigabytes of memory that each process may take.", min=0, max=1e6)]


Saes = Annotated[
    list[str],
    typer.Option(
        help="A run, a folder or file of SAEs of any format, or `hf://owner/name/folder`. Repeat it for SAEs from "
        "several places; they may differ in format and method. `resid_post.3=PATH` names the site of an SAE whose "
        "files do not say it. `NAME=PATH` (or `NAME=resid_post.3=PATH`) names the group that its SAEs belong to."
    ),
]


def subjects(
    lm: str | None,
    saes: list[str],
    method: str | None,
    device: str | None,
    dtype: str,
    ends: "Mapping[str, Find]",
) -> "tuple[LanguageModel, dict[str, Group]]":
    """The language model and the groups of SAEs that a command is about: those with an SAE at every end."""
    from scalar_sae import distributed
    from scalar_sae.console import say
    from scalar_sae.lm.model import LanguageModel
    from scalar_sae.saes.fitted import fitted
    from scalar_sae.saes.sources import together
    from scalar_sae.saes.store import load_saes

    place, loaded = distributed.device(device), load_saes(*saes)
    if method is not None and method not in loaded:
        raise unknown("method", method, loaded)
    model = LanguageModel.load(lm or _model_with(saes), device=place, dtype=dtype)
    groups = {name: fitted(model, group) for name, group in loaded.items()}
    chosen = together({name: group for name, group in groups.items() if method in (None, name)}, ends)
    for name in sorted({*groups} - {*chosen} if method is None and {*chosen} <= {*groups} else ()):
        say(f"{name}: left out, because it lacks an SAE at one of {', '.join(ends)}")
    return model, {name: group.to(place) for name, group in chosen.items()}


def _model_with(saes: list[str]) -> Path:
    """The one language model that lies with the SAEs."""
    from scalar_sae.lm.loading import model_in
    from scalar_sae.saes import hub
    from scalar_sae.saes.sources import Source

    found = [model for path in saes if (model := model_in(hub.local(Source.parse(path).path)))]
    for model in found[1:]:
        if not _same_files(found[0], model):
            raise UserError(
                f"{found[0]} and {model} are two language models; name the one that the SAEs read with --lm"
            )
    if found:
        return found[0]
    raise UserError(f"{', '.join(saes)}: no language model is stored there; name the one that the SAEs read with --lm")


def _same_files(a: Path, b: Path) -> bool:
    if a.resolve() == b.resolve():
        return True
    names = [sorted(path.name for path in folder.iterdir()) for folder in (a, b)]
    return names[0] == names[1] and not any(filecmp.cmpfiles(a, b, names[0], shallow=False)[1:])


def score_config(settings: dict[str, Any], *, published: bool = False) -> "ScoreConfig":
    """The settings of a score from options; those that are None were not given.

    Raises:
        UserError: a value is out of range, or two contradict each other. The largest number of edges and the longest
            context depend on the SAEs and the model, and are checked later.
    """
    from pydantic import ValidationError

    from scalar_sae.readers import explained
    from scalar_sae.scoring.config import ScoreConfig, check_grid
    from scalar_sae.scoring.rankings.registry import find_ranking

    given = {name: value for name, value in settings.items() if value is not None}
    try:
        config = ScoreConfig.published(**given) if published else ScoreConfig(**given)
    except ValidationError as error:
        raise UserError(f"score: {explained(error)}") from error
    find_ranking(config.ranking)
    check_grid(config.edges)
    return config


def check_model_and_text(lm: str | None, dtype: str, tokens: str | None) -> None:
    """Raise a UserError if there is no such precision, or nothing where a model or a text is said to be."""
    from scalar_sae.corpora import absolute
    from scalar_sae.lm.loading import check_name, precision

    precision(dtype)
    if lm is not None:
        check_name(lm)
    if tokens is not None:
        absolute(tokens)


def prompts_of(
    tokens: str | None,
    model: "LanguageModel",
    saes: list[str],
    groups: "Mapping[str, Group]",
    method: str | None,
    config: "ScoreConfig",
    context: int | None,
) -> "tuple[ScoreConfig, Texts]":
    """The prompts that a scoring reads, and its settings with their context.

    A context of None is the text's or the model's own. What differs from the prompts that the SAEs in `groups`, read
    from the paths `saes`, were trained on is said.
    """
    from scalar_sae.console import say
    from scalar_sae.own_text import evaluation_text, say_unlike
    from scalar_sae.scoring.config import held_out

    n = 2 * max(config.prompts, config.n_rank_prompts) * (context or min(model.context, 128))
    allow = config.allow_trained_text
    corpus = evaluation_text(model, saes, tokens, n, method, allow_trained_text=allow)
    config = config.model_copy(update={"context": context or corpus.context(model.context)})
    for remark in corpus.remarks(config.context):
        say(remark)
    texts = held_out(corpus, config)
    say_unlike(groups.values(), corpus, config.context)
    return config, texts


def finished(bar: "Bar", name: str, n: int | float) -> None:
    """Move a bar on."""
    bar.step(n, name)
