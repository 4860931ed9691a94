"""SAEs on disk: `<folder>/sae.safetensors` (the tensors) and `<folder>/sae.json` (activation, chunks, site, recipe).

`sae.json` is written last, so a folder without it is not an SAE. `load_saes` also reads other people's files
(formats/).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file

from scalar_sae.console import say
from scalar_sae.errors import UserError
from scalar_sae.io import atomic_write
from scalar_sae.readers import WRITER, check_version
from scalar_sae.saes import hub
from scalar_sae.saes.activation import Activation, GroupMax, JumpReLU, Kind, ReLU, TopK
from scalar_sae.saes.formats.detect import FORMATS, Located, nothing, walk
from scalar_sae.saes.formats.fields import shown
from scalar_sae.saes.formats.files import Folder, Format, Found, about, build
from scalar_sae.saes.formats.tensors import Tensors
from scalar_sae.saes.methods.unverified import REMARK, UNVERIFIED
from scalar_sae.saes.normalization import InputNorm
from scalar_sae.saes.origin import Origin
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.sources import Group, Source, site_in
from scalar_sae.saes.trained import Trained
from scalar_sae.saes.training_text import TrainingText
from scalar_sae.sealed import check_digest, digest_of_file
from scalar_sae.sites import Site

CONFIG, WEIGHTS = "sae.json", "sae.safetensors"
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
PASSAGES = "training_passages"
"""The tensor that tells training text from other text (training_text.py). It is no weight."""


class SaeCard(BaseModel):
    """The content of `sae.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: Literal[1] = 1
    method: str
    """The training method."""
    name: str
    """The group of SAEs that it was trained in, which is the folder's name in a run."""
    site: str
    """Site that it reads."""
    writes: str | None = None
    """Site that a transcoder writes."""
    d_model: int
    d_sae: int
    activation: Kind
    k: int | None = None
    """k of `topk` and `groupmax`. The thresholds of `jumprelu` are among the tensors."""
    chunks: list[int] = []
    norm: InputNorm | None = None
    """Run-time normalisation of the input."""
    recipe: dict[str, Any] = {}
    """The whole training config, data fingerprint, tokens seen, seed and versions."""
    origin: Origin = Field(default_factory=Origin)
    """For other people's SAEs: the model and the text that they were trained on."""
    remarks: list[str] = []
    """Remarks for the user of the SAE."""
    sha256: str = ""
    """SHA-256 of the bytes of `sae.safetensors`."""
    written_by: str = WRITER

    @classmethod
    def of(cls, sae: SAE, method: str, name: str, site: Site, recipe: dict[str, Any]) -> "SaeCard":
        """The card of an SAE that was trained by `method` in the group `name`."""
        return cls(
            method=method,
            name=name,
            site=site.words,
            writes=None if sae.writes is None else sae.writes.words,
            d_model=sae.d_model,
            d_sae=sae.d_sae,
            activation=sae.activation.kind,
            k=sae.activation.k if isinstance(sae.activation, TopK | GroupMax) else None,
            chunks=list(sae.chunks),
            norm=sae.norm,
            recipe=recipe,
        )


def save_sae(sae: SAE, card: SaeCard, folder: Path) -> None:
    """Write an SAE folder atomically."""
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        tensors = {name: getattr(sae, name) for name in TENSORS}
        if isinstance(sae.activation, JumpReLU):
            tensors["threshold"] = sae.activation.threshold
        if sae.W_skip is not None:
            tensors["W_skip"] = sae.W_skip
        if sae.text is not None:
            tensors[PASSAGES] = sae.text.passages
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary / WEIGHTS)
        card = card.model_copy(update={"sha256": digest_of_file(temporary / WEIGHTS)})
        (temporary / CONFIG).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")


def load_sae(folder: Path) -> tuple[SAE, SaeCard]:
    """Read an SAE folder.

    Raises:
        UserError: it is not an SAE, it is damaged, or its json contradicts its tensors.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no SAE here ({CONFIG} and {WEIGHTS})")
    with about(folder):
        files = Folder.of(folder)
        sae, card = _read_own(files)
        files.check_read()
        return sae, card


def _read_own(folder: Folder) -> tuple[SAE, SaeCard]:
    check_version(CONFIG, folder.json(CONFIG), SaeCard)
    try:
        card = SaeCard.model_validate_json(json.dumps(folder.json(CONFIG)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{CONFIG}: {where}: {' '.join(first['msg'].split())}, not {shown(first['input'])} (of gpt-circuits, it "
            "would say sae_variant)"
        ) from error
    check_digest(folder.path / WEIGHTS, card.sha256, "restore it from a copy")
    tensors = folder.tensors(WEIGHTS)
    weights = {name: tensors[name] for name in TENSORS}
    sae = build(
        **weights,
        activation=_activation(card, tensors),
        chunks=tuple(card.chunks),
        norm=card.norm,
        W_skip=tensors.get("W_skip"),
    )
    if (sae.d_model, sae.d_sae) != (card.d_model, card.d_sae):
        raise UserError(
            f"{CONFIG} says d_model, d_sae = {card.d_model, card.d_sae}, the tensors are {sae.d_model, sae.d_sae}"
        )
    if card.chunks and (card.chunks[-1] != sae.d_sae or any(b <= a for a, b in pairwise([0, *card.chunks]))):
        raise UserError(f"{CONFIG} says chunks = {card.chunks}: expected rising numbers that end with {sae.d_sae}")
    writes = None if card.writes is None else Site.parse(card.writes)
    trained = Trained.of(card.method, card.recipe, sae.d_sae)
    return replace(sae, writes=writes, origin=_origin(card), trained=trained, text=_text(card, tensors)), card


def _text(card: SaeCard, tensors: Tensors) -> TrainingText | None:
    """What the files know of the training text; None if they lack a part of it."""
    passages, data = tensors.integers(PASSAGES), card.recipe.get("data")
    fingerprint = data.get("fingerprint") if isinstance(data, dict) else None
    if passages is None or not isinstance(fingerprint, str):
        return None
    if any(later <= earlier for earlier, later in pairwise([-1, *passages])):
        raise UserError(f"{WEIGHTS}: {PASSAGES} is not a list of rising numbers; restore it from a copy")
    return TrainingText(fingerprint, torch.tensor(passages, dtype=torch.int64))


def _origin(card: SaeCard) -> Origin:
    """What an SAE was trained on. For our own SAEs this is read from the recipe."""
    config, bos = card.recipe.get("config"), card.recipe.get("bos")
    context = config.get("context") if isinstance(config, dict) else None
    if str(card.origin) or not isinstance(context, int):
        return card.origin
    return Origin(context=context, bos=bos if isinstance(bos, bool) else None)


def _activation(card: SaeCard, tensors: Tensors) -> Activation:
    if card.k is not None and card.activation not in ("topk", "groupmax"):
        raise UserError(f"{CONFIG} says {card.activation} and k = {card.k}: they contradict each other")
    if card.activation == "jumprelu":
        return JumpReLU(tensors["threshold"])
    if card.activation == "relu":
        return ReLU()
    if card.k is None:
        raise UserError(f"{CONFIG} says {card.activation} and gives no k")
    return TopK(card.k) if card.activation == "topk" else GroupMax(card.k)


def _own_here(folder: Folder) -> bool:
    return folder.has(CONFIG) and "sae_variant" not in folder.json(CONFIG)


def _own(folder: Folder) -> Iterator[Found]:
    sae, card = _read_own(folder)
    reading = [f"the method {card.method} {REMARK}"] if card.method in UNVERIFIED else []
    remarks = (*card.remarks, *reading)
    yield Found(sae, card.name, card.site, card.writes or "", card.recipe, card.origin, remarks)


OWN = Format("scalar-sae", f"{CONFIG}, {WEIGHTS}", _own_here, (WEIGHTS,), _own)


def find_saes(path: str | Path) -> Iterator[Located]:
    """Yield every SAE below a path, of any format, one after another.

    Args:
        path: a folder, a file, or `hf://owner/repository[@revision][/folder]`, which is downloaded.

    Raises:
        UserError: the path does not exist, contains no SAE, or holds damaged files.
    """
    local = hub.local(str(path))
    if not local.exists():
        raise UserError(f"{path}: no such file or folder")
    empty = True
    for located in walk(local, (OWN, *FORMATS)):
        empty = False
        yield located
    if empty:
        raise nothing(local, (OWN, *FORMATS))


def load_saes(*paths: str | Path) -> dict[str, Group]:
    """Load the SAEs of a run or of other people's files, by the name of their group and the site that they read.

    If other people's files state the model and text of training, or contain remarks, the user is told once.

    Args:
        paths: run directories, their `saes/`, single groups, and anything that `find_saes` accepts, as
            `[NAME=][SITE=]PATH`. `NAME` names the group of the path's SAEs. `SITE` is the site that the only SAE of a
            path reads, if its files do not say.

    Raises:
        UserError: no SAE was found, two are at the same place, or one is at a place that no block can begin or end at.
    """
    found: dict[str, Group] = {}
    for source in map(Source.parse, paths):
        path = source.path
        located = list(find_saes(path))
        say_notes(path, located)
        if source.site is not None and len(located) > 1:
            raise UserError(f"{source.site}={path}: holds {len(located)} SAEs; give the path of one")
        for one, _, where in located:
            with about(where):
                reads, sae = placed(one, source.site)
                origin = one.origin if str(one.origin) else sae.origin
                sae = replace(sae, address=hub.address_of(where), origin=origin)
            group = found.setdefault(source.name or one.group, Group())
            if site_in(group, reads) is not None:
                raise UserError(
                    f"{path}: several SAEs named {source.name or one.group} at {reads}; give one run's folder, or give "
                    f"these another name: NAME={path}"
                )
            group[reads] = sae
    return found


def say_notes(path: str | Path, located: Iterable[Located]) -> None:
    """Tell the user what the files of SAEs say about their training, each sentence once."""
    for note in notes(located):
        say(f"{path}: {note}")


def notes(located: Iterable[Located]) -> list[str]:
    """What the files of SAEs say about their training, and remarks; each sentence once."""
    found: dict[str, None] = {}
    for one in (one.found for one in located):
        found |= dict.fromkeys([f"trained on {one.origin}"] if str(one.origin) else [])
        found |= dict.fromkeys(one.remarks)
    return list(found)


def placed(found: Found, site: Site | None = None) -> tuple[Site, SAE]:
    """The site that an SAE reads, and the SAE with the site that it writes.

    Raises:
        UserError: the files do not say, or name a place that no block can begin or end at.
    """
    if site is None and not found.reads:
        raise UserError("the files do not say where this SAE reads; give SITE=PATH, such as resid_post.3=PATH")
    try:
        reads = site or Site.parse(found.reads)
        return reads, replace(found.sae, writes=Site.parse(found.writes)) if found.writes else found.sae
    except UserError as error:
        where = f"{found.reads} and writes {found.writes}" if found.writes else found.reads
        raise UserError(f"the files say that it reads {where}: {error}") from error


def find_sae(saes: Mapping[Site, SAE], site: Site) -> SAE | None:
    """The SAE at a place, under whichever of the place's names it is stored."""
    there = site_in(saes, site)
    return None if there is None else saes[there]
