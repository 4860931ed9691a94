"""The evaluation text of SAEs: the held-out part of their training text, or another text that the user names.

    corpus = evaluation_text(lm, ["runs/a"])                     # the held-out part of the run's text
    corpus = evaluation_text(lm, ["runs/a"], "stories.jsonl")    # another text, all of it

An SAE's card (`sae.json`) holds the address and the fingerprint of its training text.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch import Tensor

from scalar_sae.console import say_once
from scalar_sae.corpora import (
    HELD_OUT,
    Corpus,
    absolute,
    load_again,
    load_corpus,
    load_held_out,
    prompts_fingerprint,
    to_evaluate_on,
)
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.toy import shipped
from scalar_sae.readers import RESTORE, explained, parse_json, read_text
from scalar_sae.records.sae_results import TextRead
from scalar_sae.saes import hub
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.sources import Source
from scalar_sae.saes.store import CONFIG, load_sae
from scalar_sae.saes.training_text import largest_share, trained_text
from scalar_sae.sites import Site

Described = dict[str, Any]
"""The description of a text that `Corpus.describe` returns."""


class _Text(BaseModel):
    """The fields of the description that are needed to find the text again."""

    model_config = ConfigDict(strict=True)

    source: str
    fingerprint: str
    tokenizer: str
    n_train: NonNegativeInt
    n_val: NonNegativeInt


def evaluation_text(
    lm: LanguageModel,
    saes: Sequence[str | Path],
    spec: str | None = None,
    n: int = HELD_OUT,
    method: str | None = None,
    *,
    allow_trained_text: bool = False,
) -> Corpus:
    """The text to evaluate SAEs on, as the validation part of a corpus.

    Args:
        lm: the model that reads it.
        saes: paths of the SAEs, as `load_saes` takes them.
        spec: the text, as `load_corpus` takes it; None takes the SAEs' training text. Of the training text only the
            held-out part is read, of any other text all of it.
        n: number of tokens needed of another text.
        method: the only group of SAEs that is evaluated; None for all.
        allow_trained_text: whether a text may be named that SAEs were trained on. The corpus is then marked as such.

    Raises:
        UserError: the SAEs' files do not name their training text, or name several; the text no longer exists or has
            changed; it cannot be read; it belongs to another tokenizer; or SAEs were trained on it.
    """
    own = trained_on(saes, method)
    if spec is None:
        corpus = _own_text(lm, own, saes)
    else:
        corpus = _checked(_other_text(lm, own, spec, n), saes, method, allow_trained_text)
    lm.check_tokens(torch.tensor([corpus.extremes]))
    return corpus


def trained_on(saes: Sequence[str | Path], method: str | None = None) -> list[Described]:
    """The training texts of SAEs; none if the files of any SAE do not say.

    Raises:
        UserError: a card is damaged.
    """
    found: dict[str, Described] = {}
    for path in saes:
        texts = [_text_of(card, content) for card, content in _cards(path, method).items()]
        if not texts or not all(texts):
            return []
        found |= {text["fingerprint"]: text for text in texts}
    return list(found.values())


def text_read(corpus: Corpus, tokens: Int[Tensor, "prompt token"]) -> TextRead:
    """The description, for a record, of the text of a measurement."""
    return TextRead(
        corpus=corpus.name,
        source=corpus.source,
        fingerprint=corpus.fingerprint,
        prompts=prompts_fingerprint(tokens),
        n_tokens=tokens.numel(),
        seen=corpus.seen,
    )


def say_unlike(groups: Iterable[Mapping[Site, SAE]], corpus: Corpus, context: int) -> None:
    """Tell the user how prompts of `context` tokens differ from those that the SAEs were trained on."""
    found: dict[str, dict[Site, None]] = {}
    for group in groups:
        for site, sae in group.items():
            for difference in sae.origin.unlike(context, bos=bool(corpus.start)):
                found.setdefault(difference, {})[site] = None
    for difference, sites in found.items():
        first, *more = map(str, sorted(sites))
        say_once(f"{first}{f' and {len(more)} more' if more else ''}: {difference}")


def _cards(path: str | Path, method: str | None) -> dict[Path, dict[str, Any]]:
    """The cards below a path, with what they say; only those of one group if `method` names it."""
    source = Source.parse(path)
    place, group = hub.local(source.path), None if source.name else method
    paths = (card for card in sorted(place.rglob(CONFIG)) if not _hidden(card.relative_to(place)))
    cards = {card: _content(card) for card in paths}
    return {card: content for card, content in cards.items() if group in (None, content.get("name"))}


def _checked(corpus: Corpus, saes: Sequence[str | Path], method: str | None, allow: bool) -> Corpus:
    """The corpus, marked if SAEs of another training text were trained on it.

    Raises:
        UserError: they were, and that is not allowed.
    """
    cards = [(card, _text_of(card, content)) for path in saes for card, content in _cards(path, method).items()]
    texts = [sae.text for card, said in cards if said for sae, _ in [load_sae(card.parent)] if sae.text is not None]
    share = largest_share([text for text in texts if text.fingerprint != corpus.fingerprint], corpus.val)
    if not share:
        return corpus
    if not allow:
        silent = next(
            (f" ({card} does not say which text, so no part is held out)" for card, said in cards if not said), ""
        )
        raise UserError(trained_text(corpus.name, share, silent))
    return replace(corpus, seen="trained on")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _content(card: Path) -> dict[str, Any]:
    found = parse_json(read_text(card, "give the folder of an SAE"), str(card))
    return found if isinstance(found, dict) else {}


def _text_of(path: Path, card: dict[str, Any]) -> Described:
    """The description of the text on a card; empty if the card has none.

    Raises:
        UserError: the description has fields of the wrong type.
    """
    recipe = card.get("recipe")
    data = recipe.get("data") if isinstance(recipe, dict) else None
    if not isinstance(data, dict) or not set(_Text.model_fields) <= set(data):
        return {}
    try:
        _Text.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{path}: recipe.data.{explained(error)}; {RESTORE}") from error
    return data


def _own_text(lm: LanguageModel, own: list[Described], saes: Sequence[str | Path]) -> Corpus:
    """The training text of SAEs. If it is unknown, the text of the shipped model that they read."""
    where = ", ".join(map(str, saes))
    if not own and lm.name in shipped():
        return replace(load_held_out(lm.name, lm), seen="unknown")
    if not own:
        raise UserError(f"{where}: the files do not say which text the SAEs were trained on; name one with --tokens")
    if len(own) > 1:
        texts = ", ".join(sorted(str(data["source"]) for data in own))
        raise UserError(f"{where}: the SAEs were trained on several texts ({texts}); name one with --tokens")
    [data] = own
    if data["tokenizer"] != lm.tokenizer.fingerprint:
        raise UserError(
            f"{where}: the SAEs were trained on the tokens of another tokenizer than that of {lm.name}; name the model "
            "that they read with --lm, or a text with --tokens"
        )
    try:
        corpus = load_again(data, lm)
    except UserError as error:
        raise UserError(f"{where}: no text that the SAEs were trained on: {error}; name one with --tokens") from error
    if corpus.fingerprint != data["fingerprint"]:
        raise UserError(
            f"{data['source']}: is not the text any more that the SAEs were trained on (fingerprint "
            f"{corpus.fingerprint}, not {data['fingerprint']}); restore it, or name a text with --tokens"
        )
    return replace(corpus, seen="held out")


def _other_text(lm: LanguageModel, own: list[Described], spec: str, n: int) -> Corpus:
    """A text that the user names: the held-out part of the SAEs' training text, or all of any other text."""
    source = absolute(spec)
    same = next((data for data in own if data["source"] == source), None)
    corpus = load_corpus(spec, lm, n_train=max(n, HELD_OUT)) if same is None else load_again(same, lm)
    if corpus.fingerprint in {data["fingerprint"] for data in own}:
        return replace(corpus, seen="held out")
    if same is not None:
        note = "has changed since the SAEs were trained on it; they may have seen parts of it"
        corpus = replace(load_corpus(spec, lm, n_train=max(n, HELD_OUT)), notes=(*corpus.notes, note), seen="unknown")
    else:
        corpus = replace(corpus, seen="another text" if own else "unknown")
    return to_evaluate_on(corpus)
