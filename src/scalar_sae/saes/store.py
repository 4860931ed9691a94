"""SAEs on disk: `<folder>/sae.safetensors` (the tensors) and `<folder>/sae.json` (activation, chunks, site, recipe).

`sae.json` is written last: a folder without it is not an SAE.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.runs import whole
from scalar_sae.saes.activation import Activation, JumpReLU, Kind, ReLU, TopK
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


class SaeCard(BaseModel):
    """What `sae.json` says."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = 1
    method: str
    """The training method."""
    name: str
    """The group of SAEs it was trained in: the folder's name in a run."""
    site: str
    d_model: int
    d_sae: int
    activation: Kind
    k: int | None = None
    """For `topk`; a `jumprelu` has its thresholds among the tensors."""
    chunks: list[int] = []
    recipe: dict[str, Any] = {}
    """The whole training config, data fingerprint, tokens seen, seed and versions."""

    @classmethod
    def of(cls, sae: SAE, method: str, name: str, site: Site, recipe: dict[str, Any]) -> "SaeCard":
        """The card of an SAE that was trained by `method` in the group `name`."""
        return cls(
            method=method,
            name=name,
            site=str(site),
            d_model=sae.d_model,
            d_sae=sae.d_sae,
            activation=sae.activation.kind,
            k=sae.activation.k if isinstance(sae.activation, TopK) else None,
            chunks=list(sae.chunks),
            recipe=recipe,
        )


def save_sae(sae: SAE, card: SaeCard, folder: Path) -> None:
    """Write an SAE folder, whole or not at all."""
    with whole(folder) as temporary:
        temporary.mkdir()
        tensors = {name: getattr(sae, name) for name in TENSORS}
        if isinstance(sae.activation, JumpReLU):
            tensors["threshold"] = sae.activation.threshold
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary / "sae.safetensors"
        )
        (temporary / "sae.json").write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")


def load_sae(folder: Path) -> tuple[SAE, SaeCard]:
    """Read an SAE folder.

    Raises:
        UserError: not an SAE, damaged, or its json contradicts its tensors.
    """
    if not (folder / "sae.json").is_file():
        raise UserError(f"{folder}: no SAE here (sae.json and sae.safetensors)")
    try:
        card = SaeCard.model_validate(json.loads((folder / "sae.json").read_text(encoding="utf-8")))
        tensors = load_file(folder / "sae.safetensors")
    except (ValidationError, json.JSONDecodeError, SafetensorError, OSError) as error:
        raise UserError(f"{folder}: not readable as an SAE ({error})") from error
    missing = {*TENSORS, *(["threshold"] if card.activation == "jumprelu" else [])} - set(tensors)
    if missing:
        raise UserError(f"{folder}: sae.safetensors lacks {', '.join(sorted(missing))}")
    _check_shapes(tensors, folder)
    rule = _activation(card, tensors, folder)
    sae = SAE(**{name: tensors[name] for name in TENSORS}, activation=rule, chunks=tuple(card.chunks))
    if (sae.d_model, sae.d_sae) != (card.d_model, card.d_sae):
        raise UserError(f"{folder}: sae.json says {card.d_model, card.d_sae}, the tensors are {sae.d_model, sae.d_sae}")
    return sae, card


def _activation(card: SaeCard, tensors: dict[str, Tensor], folder: Path) -> Activation:
    if card.activation == "jumprelu":
        return JumpReLU(tensors["threshold"])
    if card.activation == "relu":
        return ReLU()
    if card.k is None:
        raise UserError(f"{folder}: sae.json says topk and gives no k")
    return TopK(card.k)


def _check_shapes(tensors: dict[str, Tensor], folder: Path) -> None:
    if tensors["W_enc"].dim() != 2:
        raise UserError(f"{folder}: W_enc has shape {tuple(tensors['W_enc'].shape)}; expected (d_model, d_sae)")
    d_model, d_sae = tensors["W_enc"].shape
    needed = {"W_dec": (d_sae, d_model), "b_enc": (d_sae,), "b_dec": (d_model,)}
    for name, shape in needed.items():
        if tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape)
            raise UserError(f"{folder}: {name} has shape {found}; W_enc {d_model, d_sae} needs {shape}")


def load_saes(folder: str | Path) -> dict[str, dict[Site, SAE]]:
    """Every SAE of a run: name of the group -> site -> SAE. Accepts a run, its `saes/`, or one group's folder.

    Raises:
        UserError: no SAE found.
    """
    folder = Path(folder)
    found: dict[str, dict[Site, SAE]] = {}
    for path in sorted(folder.rglob("sae.json")):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            sae, card = load_sae(path.parent)
            site = Site.parse(card.site)
            if site in found.setdefault(card.name, {}):
                raise UserError(f"{folder}: several SAEs named {card.name} at {site}; give one run's folder")
            found[card.name][site] = sae
    if not found:
        raise UserError(f"{folder}: holds no SAEs; train some with 'scalar train', or give a run directory")
    return found


def find_sae(saes: dict[Site, SAE], site: Site) -> SAE | None:
    """The SAE at a place, under whichever of its names it was stored."""
    return next((sae for other, sae in saes.items() if other.same_place(site)), None)
