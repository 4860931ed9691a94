"""Data that the `datasets` library reads: the splits of a folder, data sets that it saved, and data sets on the Hub."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalar_sae.corpora.address import Address
from scalar_sae.corpora.files import named_kind
from scalar_sae.corpora.rows import Row, Table, peeked
from scalar_sae.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Generator

SPLIT = "train"
"""The split that is read if none is named."""
_SAVED = ("dataset_dict.json", "state.json")
_ABOUT_DATA = ("dataset_infos.json", "dataset_info.json")
_OPTIONS: dict[str, dict[str, Any]] = {"csv": {"keep_default_na": False}, "text": {"sample_by": "document"}}
"""A field that says NA is text, and a text file is one document."""


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((folder / name).is_file() for name in _SAVED)


def saved(address: Address) -> Table:
    """Read a data set that `save_to_disk` wrote.

    Raises:
        UserError: it is damaged, or has no such split.
    """
    address.refuse("a data set that was saved to disk", "what")
    with _explained(address) as datasets:
        found = datasets.load_from_disk(address.place)
    if isinstance(found, datasets.DatasetDict):
        found = found[_split(address, list(found))]
    else:
        address.refuse("a data set without splits", "split")
    return _table(address, found)


def files_of(address: Address) -> tuple[list[Path], list[Path]]:
    """The files of a folder's split, sorted by name, and the files that belong to none of its splits.

    Raises:
        UserError: there is no such configuration or split, or no file is of a kind that holds data.
    """
    with _explained(address) as datasets:
        builder = datasets.load_dataset_builder(address.place, address.what)
        splits = {str(name): list(map(Path, files)) for name, files in builder.config.data_files.items()}
    folder, found = Path(address.place), set(chain(*splits.values()))
    card, left = folder / "README.md", list[Path]()
    if not (card.is_file() and "configs:" in card.read_text(encoding="utf-8")):  # the card says which files are read
        left = [path for path in sorted(folder.rglob("*")) if _holds_data(path, folder) and path not in found]
    return splits[_split(address, list(splits))], left


def _holds_data(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.is_file() and not hidden and path.name not in _ABOUT_DATA and named_kind(path) is not None


def streamed(address: Address) -> Table:
    """A data set on the Hub, read lazily.

    Raises:
        UserError: there is no such data set, revision, configuration or split, no access to it, or no connection.
    """
    with _explained(address) as datasets:
        which = {"name": address.what, "revision": address.revision}
        builder = datasets.load_dataset_builder(address.place, **which)
        if builder.name in _OPTIONS:
            builder = datasets.load_dataset_builder(address.place, **which, **_OPTIONS[builder.name])
        splits = builder.as_streaming_dataset()
        return _table(address, splits[_split(address, list(splits))])


def _table(address: Address, found: Any) -> Table:
    """A data set as a table. If it does not name its columns, they are taken from its first rows."""

    def rows(columns: list[str]) -> Iterator[Row]:
        with _explained(address):
            yield from found.select_columns(columns) if columns else found

    names = found.column_names
    return peeked(str(address), rows([])) if names is None else Table(str(address), names, rows)


def _split(address: Address, there: list[str]) -> str:
    split = address.split or SPLIT
    if split not in there:
        raise UserError(f"{address}: no split {split!r}; name one with @, there are {', '.join(there)}")
    return split


@contextmanager
def _explained(address: Address) -> "Generator[Any]":
    """The library. Its errors become one line."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise UserError(f"{address}: needs the datasets library: pip install 'scalar-sae[data]'") from error
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)  # most folders have no card
    try:
        yield datasets
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, DatasetsError) as error:
        if "Config name is missing" in str(error):
            names = ", ".join(datasets.get_dataset_config_names(address.place, revision=address.revision))
            raise UserError(f"{address}: name a configuration after a colon, there are {names}") from error
        place = "the Hugging Face Hub" if address.on_hub else "this folder"
        raise UserError(f"{address}: cannot be read from {place} ({reason(error)})") from error
