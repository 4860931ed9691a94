"""Export SAEs in our own format, SAELens' or sparsify's, one folder per SAE."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from scalar_sae.errors import UserError, unknown
from scalar_sae.saes import hub
from scalar_sae.saes.formats import saelens, sparsify
from scalar_sae.saes.formats.detect import Located
from scalar_sae.saes.formats.files import Found, about
from scalar_sae.saes.origin import Origin
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import SaeCard, placed, save_sae
from scalar_sae.sites import Site

ExportFormat = Literal["scalar", "saelens", "sparsify"]
_PUBLIC = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w.-]+)?")
"""A shipped model's name, or one on the Hub."""


def export(
    located: Iterable[Located], format_: str, out: Path, *, model: str = "", layers: str = "h", site: Site | None = None
) -> list[Path]:
    """Write SAEs to `<group>/<site>` below a folder, named as the format names them. Returns their folders.

    Args:
        located: the SAEs to write.
        format_: `scalar`, `saelens` or `sparsify`.
        out: a folder that does not exist yet or is empty.
        model: the language model's name, which SAELens stores; by default the one that the SAEs were trained on.
        layers: for sparsify, the name of the model's list of layers: `h` or `layers`.
        site: where the SAE reads, if its files do not say.

    Raises:
        UserError: the format cannot represent one of the SAEs. Nothing of that SAE is written.
    """
    check_format(format_)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; choose another --out")
    written: list[Path] = []
    for found, source, where in located:
        with about(where):
            reads, sae = placed(found, site)
            folder = out / found.group / _name(format_, reads, sae, layers)
            if folder in written:
                raise UserError(f"a second SAE for {folder}; export them one by one")
            if format_ == "saelens":
                saelens.save(sae, reads, folder, _trained_on(found, model))
            elif format_ == "sparsify":
                sparsify.save(sae, folder)
            else:
                recipe = {"source_format": source, **found.recipe} if source != "scalar-sae" else found.recipe
                if address := hub.address_of(where):
                    recipe = {"source": address, **recipe}
                card = SaeCard.of(sae, found.group, found.group, reads, recipe)
                known = {"origin": found.origin, "remarks": list(found.remarks)}
                save_sae(sae, card.model_copy(update=known), folder)
        written.append(folder)
    return written


def check_format(name: str) -> None:
    """Raise a UserError unless SAEs can be written in the format of this name."""
    if name not in get_args(ExportFormat):
        raise unknown("format", name, get_args(ExportFormat))


def _trained_on(found: Found, model: str) -> Origin:
    """What an SAE was trained on, with the model's name as the user gives it, or as its files or its recipe do."""
    known = found.origin if str(found.origin) else found.sae.origin
    config = found.recipe.get("config")
    named = config.get("lm") if isinstance(config, dict) else None
    if not isinstance(named, str) or not _PUBLIC.fullmatch(named) or os.path.lexists(named):
        named = None  # a path on this machine is no name elsewhere
    return known.model_copy(update={"model": model or known.model or named})


def _name(format_: str, reads: Site, sae: SAE, layers: str) -> str:
    if format_ == "saelens":
        return reads.transformer_lens
    if format_ == "sparsify":  # folders are named after the module; for a transcoder it is the one that it replaces
        return sparsify.hookpoint(sae.writes or reads, layers)
    return str(reads)
