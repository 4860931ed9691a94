"""What every format needs: a folder's files as JSON and tensors, and an SAE from tensors that fit together.

Everything raises UserError with the reason alone; `about` puts the path before it.
"""

import json
import pickle
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
import yaml
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.io import whole
from scalar_sae.saes.activation import Activation, JumpReLU
from scalar_sae.saes.folds import without_pre_bias
from scalar_sae.saes.norm import InputNorm
from scalar_sae.saes.sae import SAE

_CHANGES_THE_RULE = re.compile(r"threshold|gate|r_mag|b_mag|skip", re.IGNORECASE)
"""Names of tensors that make an SAE another function than one without them."""


class Tensors:
    """The tensors of one file, in float32, by name."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self._values = values
        self._source = source
        self._asked: set[str] = set()

    def check_read(self) -> None:
        """Raise a UserError if there is a tensor that changes what the SAE computes, and nobody asked for it."""
        left = [name for name in self._values if name not in self._asked and _CHANGES_THE_RULE.search(name)]
        if left:
            raise UserError(
                f"{self._source} holds {', '.join(left)}, which the kind of SAE that its config names does not have: "
                "config and tensors contradict each other"
            )

    def __contains__(self, name: str) -> bool:
        self._asked.add(name)
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __getitem__(self, name: str) -> Float[Tensor, "..."]:
        self._asked.add(name)
        if not isinstance(self._values.get(name), Tensor):
            raise UserError(f"{self._source} lacks the tensor {name}; it holds {', '.join(map(str, self._values))}")
        return self._values[name].float()

    def get(self, name: str) -> Float[Tensor, "..."] | None:
        """A tensor, if it is there."""
        self._asked.add(name)
        return self[name] if name in self._values else None

    def plain(self, name: str) -> Any:
        """What is stored beside the tensors: a name or a dictionary."""
        self._asked.add(name)
        return self._values.get(name)

    def inside(self, name: str) -> "Tensors":
        """The tensors that lie one level further in."""
        return Tensors(self._values[name], self._source)

    def under(self, prefix: str) -> "Tensors":
        """The tensors whose names begin with a prefix, without it."""
        chosen = {name[len(prefix) :]: value for name, value in self._values.items() if name.startswith(prefix)}
        self._asked.update(prefix + name for name in chosen)
        return Tensors(chosen, self._source)


@dataclass(frozen=True)
class Folder:
    """A folder, or one file of it."""

    path: Path
    names: frozenset[str]
    opened: list[Tensors] = field(default_factory=list["Tensors"], compare=False)
    """What was read since the last check."""

    @classmethod
    def of(cls, path: Path) -> "Folder":
        """The files of a folder; for a file, itself alone."""
        path = path.absolute()
        if path.is_file():
            return cls(path.parent, frozenset([path.name]))
        return cls(path, frozenset(entry.name for entry in path.iterdir()))

    def has(self, *names: str) -> bool:
        """Whether all these files are there."""
        return self.names.issuperset(names)

    def matching(self, pattern: str) -> list[str]:
        """Names that match a glob pattern, in natural order."""
        found = [name for name in self.names if Path(name).match(pattern)]
        return sorted(found, key=lambda name: (len(name), name))

    def json(self, name: str) -> dict[str, Any]:
        """A .json or .yaml file that holds an object.

        Raises:
            UserError: it does not.
        """
        try:
            text = (self.path / name).read_text(encoding="utf-8")
            content = yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{name} cannot be read ({' '.join(str(error).split())})") from error
        if not isinstance(content, dict):
            raise UserError(f"{name} does not hold an object")
        return content

    def tensors(self, name: str) -> Tensors:
        """A .safetensors, .npz or PyTorch file. Nothing in it is executed.

        Raises:
            UserError: it is damaged, or holds code.
        """
        path = self.path / name
        try:
            found = Tensors(_READERS.get(path.suffix, _torch)(path), name)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{name} holds more than tensors and plain values; refused, for it could run code"
            ) from error
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError, BadZipFile) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{name} cannot be read: damaged or truncated ({reason})") from error
        self.opened.append(found)
        return found

    def check_read(self) -> None:
        """Raise a UserError if what was read holds tensors that change the SAE and were not asked for."""
        for tensors in self.opened:
            tensors.check_read()
        self.opened.clear()


def _npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _torch(path: Path) -> dict[str, Any]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise ValueError("not a state dict")
    return content


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {".safetensors": load_file, ".npz": _npz}


@dataclass(frozen=True, eq=False)
class Found:
    """An SAE in somebody's files."""

    sae: SAE
    group: str
    """SAEs of one group can stand at both ends of a block."""
    reads: str
    """Where it reads, in the words of its files; empty if they do not say."""
    writes: str = ""
    """Where a transcoder writes; empty for an SAE."""
    recipe: dict[str, Any] = field(default_factory=dict[str, Any])
    """Its config, as it was found."""

    def __post_init__(self) -> None:
        if self.group in (".", "..") or set(self.group) & set("/\\"):
            raise UserError(f"the name {self.group!r} would lead out of its folder; rename these SAEs")


class Format(NamedTuple):
    """One way of keeping SAEs in files."""

    name: str
    files: str
    """What a folder of this format holds, for messages."""
    here: Callable[[Folder], bool]
    """Whether a folder is of this format, from names and configs."""
    read: Callable[[Folder], Iterable[Found]]


@contextmanager
def about(path: Path | str) -> Generator[None]:
    """Put a path before the message of a UserError; what a reader trips over in somebody's files becomes one too."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: its files do not fit together ({type(error).__name__}: {reason})") from error


def build(
    W_enc: Float[Tensor, "..."],
    b_enc: Float[Tensor, "..."] | None,
    W_dec: Float[Tensor, "..."],
    b_dec: Float[Tensor, "..."] | None,
    activation: Activation,
    *,
    b_pre: Float[Tensor, "..."] | None = None,
    chunks: tuple[int, ...] = (),
    norm: InputNorm | None = None,
    W_skip: Float[Tensor, "..."] | None = None,
) -> SAE:
    """An SAE from tensors in row-vector convention, the bias that is subtracted before the encoder folded.

    Raises:
        UserError: the tensors do not fit together, or hold NaN or infinity.
    """
    if W_enc.dim() != 2 or W_dec.dim() != 2:
        shapes = f"W_enc {tuple(W_enc.shape)}, W_dec {tuple(W_dec.shape)}"
        raise UserError(f"{shapes}: expected two axes; crosscoders and cross-layer transcoders are not supported")
    d_model, d_sae = W_enc.shape
    d_out = W_dec.shape[1]
    b_enc = W_enc.new_zeros(d_sae) if b_enc is None else b_enc
    b_dec = W_dec.new_zeros(d_out) if b_dec is None else b_dec
    needed = {"W_dec": (W_dec, (d_sae, d_out)), "b_enc": (b_enc, (d_sae,)), "b_dec": (b_dec, (d_out,))}
    if b_pre is not None:
        needed["bias before the encoder"] = (b_pre, (d_model,))
    if W_skip is not None:
        needed["W_skip"] = (W_skip, (d_model, d_out))
    for name, (tensor, shape) in needed.items():
        if tuple(tensor.shape) != shape:
            raise UserError(f"{name} has shape {tuple(tensor.shape)}; W_enc {d_model, d_sae} needs {shape}")
    for name, tensor in (("W_enc", W_enc), *((name, tensor) for name, (tensor, _) in needed.items())):
        if not tensor.isfinite().all():
            raise UserError(f"{name} holds NaN or infinity: the training diverged; take an earlier checkpoint")
    if isinstance(activation, JumpReLU) and activation.threshold.isnan().any():
        raise UserError("threshold holds NaN: the training diverged; take an earlier checkpoint")
    if b_pre is not None:
        b_enc = without_pre_bias(b_enc, b_pre, W_enc)
    return SAE(W_enc, b_enc, W_dec, b_dec, activation, chunks, norm, W_skip)


def save_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], names: tuple[str, str]) -> None:
    """Write a config and float32 tensors under two names into a folder, whole or not at all."""
    with whole(folder) as temporary:
        temporary.mkdir()
        plain = {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}
        save_file(plain, temporary / names[1])
        (temporary / names[0]).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def check_size(sae: SAE, config: dict[str, Any], d_in: str, d_sae: str) -> None:
    """Raise a UserError if a config's widths are not those of the tensors."""
    for key, width in ((d_in, sae.d_model), (d_sae, sae.d_sae)):
        if config.get(key) and config[key] != width:
            raise UserError(f"the config says {key} = {config[key]}, the tensors have {width}")


def needs(config: dict[str, Any], key: str) -> Any:
    """A value that a config must have.

    Raises:
        UserError: it has not.
    """
    if config.get(key) is None:
        raise UserError(f"the config gives no {key}")
    return config[key]
