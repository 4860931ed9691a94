"""Files of tensors of other people's SAEs, read by allow-list: `check_read` refuses tensors that were not requested."""

import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scalar_sae.errors import UserError, reason
from scalar_sae.readers import open_regular
from scalar_sae.saes.formats.fields import NUMBER, Fields, Harmless, Kind, T, shown

_MOST_PACKED = 100
"""Maximum expansion of an archive of tensors. Trained weights do not compress even to half their size."""
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Tensors:
    """The tensors of one file by name. Floating-point tensors are read in float32, whatever device they were saved
    from.
    """

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix
        self._source = source
        self._asked: set[str] = set()
        self._inner: list[Fields | Tensors] = []

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __getitem__(self, name: str) -> Float[Tensor, "..."]:
        """A tensor in float32.

        Raises:
            UserError: it is missing, or not an ordinary floating-point tensor.
        """
        value = self._tensor(name)
        if value.dtype not in _FLOATS:
            floats = ", ".join(map(_name, _FLOATS))
            raise UserError(f"{self._label(name)} holds {_name(value.dtype)}: expected one of {floats}")
        return value.detach().float()

    def get(self, name: str) -> Float[Tensor, "..."] | None:
        """A tensor in float32, or None if it is missing."""
        return self[name] if name in self._values else None

    def sized(self, name: str, *shape: int) -> Float[Tensor, "..."]:
        """A tensor in float32 with the given shape and floating-point numbers.

        Raises:
            UserError: it is missing, holds other numbers, or has another shape.
        """
        value = self[name]
        if tuple(value.shape) != shape:
            raise UserError(f"{self._label(name)} has shape {tuple(value.shape)}; the other tensors need {shape}")
        if not value.isfinite().all():
            raise UserError(f"{name} holds NaN or infinity: the training diverged; take an earlier checkpoint")
        return value

    def matrix(self, name: str) -> Float[Tensor, "row column"]:
        """A tensor in float32 with two axes.

        Raises:
            UserError: it is missing, holds other numbers, or has another shape.
        """
        value = self[name]
        if value.dim() != 2:
            raise UserError(
                f"{self._label(name)} has shape {tuple(value.shape)}: expected two axes; crosscoders and "
                "cross-layer transcoders are not supported"
            )
        return value

    def need(self, name: str, kind: Kind[T]) -> T:
        """A required number, stored as a tensor or as a plain number.

        Raises:
            UserError: it is missing, or not a number of that kind.
        """
        found = self.scalar(name, kind)
        if found is None:
            raise UserError(
                f"{self._source} lacks the tensor {self._prefix}{name}; it holds {', '.join(map(str, self._values))}"
            )
        return found

    def scalar(self, name: str, kind: Kind[T]) -> T | None:
        """A number, stored as a tensor or as a plain number; None if it is missing.

        Raises:
            UserError: it is not a number of that kind.
        """
        self._asked.add(name)
        if self._values.get(name) is None:
            return None
        value = self._values[name]
        if isinstance(value, Tensor) and kind is NUMBER:
            value = self[name]
        plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        found = kind.read(plain)
        if found is None:
            raise UserError(f"{self._label(name)} = {shown(plain)}: expected {kind.name}")
        return found

    def integers(self, name: str) -> list[int] | None:
        """An integer tensor as a list; None if it is missing.

        Raises:
            UserError: it holds other numbers.
        """
        if name not in self._values:
            return None
        value = self._tensor(name)
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise UserError(f"{self._label(name)} holds {_name(value.dtype)}: expected whole numbers")
        return value.flatten().tolist()

    def fields(self, name: str) -> Fields:
        """An object stored beside the tensors. It has no fields if it is missing.

        Raises:
            UserError: it is something else.
        """
        found = Fields({name: self._values.get(name)}, self._source).inside(name)
        self._asked.add(name)
        self._inner.append(found)
        return found

    def text(self, name: str) -> str | None:
        """A string stored beside the tensors, or None if it is missing.

        Raises:
            UserError: it is something else.
        """
        self._asked.add(name)
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{self._label(name)} = {shown(value)}: expected a text")
        return value

    def inside(self, name: str) -> "Tensors":
        """The tensors in a nested dictionary.

        Raises:
            UserError: there is no such dictionary.
        """
        self._asked.add(name)
        if not isinstance(self._values.get(name), dict):
            raise UserError(f"{self._label(name)} = {shown(self._values.get(name))}: expected tensors by name")
        return self._keep(Tensors(self._values[name], self._source))

    def under(self, prefix: str) -> "Tensors":
        """The tensors whose names begin with a prefix, with the prefix removed."""
        chosen = {name[len(prefix) :]: value for name, value in self._values.items() if name.startswith(prefix)}
        self._asked.update(prefix + name for name in chosen)
        return self._keep(Tensors(chosen, self._source, self._prefix + prefix))

    def harmless(self, table: Harmless) -> None:
        """Mark tensors that may hold anything."""
        for names in table.values():
            self._asked.update(names.split())

    def check_read(self) -> None:
        """Raise a UserError if a tensor was not requested."""
        left = [str(name) for name in self._values if name not in self._asked]
        if left:
            raise UserError(
                f"{self._source} holds {', '.join(left)}, which the kind of SAE that its config names does not have: "
                "config and tensors contradict each other"
            )
        for inner in self._inner:
            inner.check_read()

    def _tensor(self, name: str) -> Tensor:
        self._asked.add(name)
        value = self._values.get(name)
        if not isinstance(value, Tensor):
            raise UserError(
                f"{self._source} lacks the tensor {self._prefix}{name}; it holds {', '.join(map(str, self._values))}"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type == "meta":
            raise UserError(f"{self._label(name)} is sparse, quantised or without data: expected a dense tensor")
        if value.nbytes > max(2**30, value.untyped_storage().nbytes()):
            raise UserError(f"{self._label(name)} has shape {tuple(value.shape)}, and its file holds fewer numbers")
        return value

    def _label(self, name: str) -> str:
        return f"{self._source}: {self._prefix}{name}"

    def _keep(self, inner: "Tensors") -> "Tensors":
        self._inner.append(inner)
        return inner


def read_tensors(path: Path) -> Tensors:
    """Read a .safetensors, .npz or PyTorch file. Nothing in it is executed.

    Raises:
        UserError: it is damaged, contains code, or would fill the memory.
    """
    try:
        with open_regular(path) as file:
            _check_packing(file, path.name)
        return Tensors(_READERS.get(path.suffix, _torch)(path), path.name)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path.name} holds more than tensors and plain values; refused, for it could run code"
        ) from error
    except UserError:
        raise
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        LookupError,
        MemoryError,
        SafetensorError,
        BadZipFile,
    ) as error:
        problem = reason(error)
        raise UserError(
            f"{path.name} cannot be read: damaged or truncated ({problem}); download or copy it again"
        ) from error


def _check_packing(file: Any, name: str) -> None:
    """Raise a UserError if a small archive would fill the memory when unpacked."""
    if is_zipfile(file):
        with ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        packed = file.seek(0, os.SEEK_END)
        if unpacked > max(2**30, _MOST_PACKED * packed):
            raise UserError(f"{name}: {packed:,} bytes that unpack to {unpacked:,}; this is no file of tensors")


def _npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _torch(path: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about a pickle that is refused a moment later
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise ValueError("not a state dict")
    return content


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {".safetensors": load_file, ".npz": _npz}
