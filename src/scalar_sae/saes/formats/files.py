"""Helpers for every format: the files of a folder as configs and tensors, and an SAE built from tensors.

Every function raises a UserError with the reason alone; `about` puts the path before it.
"""

import json
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from scalar_sae.bounds import folder_name
from scalar_sae.errors import UserError, quoted, reason
from scalar_sae.io import atomic_write
from scalar_sae.readers import open_regular
from scalar_sae.saes.activation import Activation, JumpReLU
from scalar_sae.saes.formats.fields import INTEGER, Fields
from scalar_sae.saes.formats.tensors import Tensors, read_tensors
from scalar_sae.saes.normalization import InputNorm
from scalar_sae.saes.origin import Origin
from scalar_sae.saes.reparam import without_pre_bias
from scalar_sae.saes.sae import SAE

_LARGEST_CONFIG = 2**24
"""Maximum size of a config in bytes."""


@dataclass(frozen=True)
class Folder:
    """A folder, or a single file."""

    path: Path
    names: frozenset[str]
    opened: list[Fields | Tensors] = field(default_factory=list["Fields | Tensors"], compare=False)
    """Configs and tensors that were opened. They are checked once the SAEs are read."""

    @classmethod
    def of(cls, path: Path) -> "Folder":
        """The files of a folder; for a file, the file alone."""
        path = path.resolve() if ".." in path.parts else path.absolute()
        if path.is_file():
            return cls(path.parent, frozenset([path.name]))
        return cls(path, frozenset(entry.name for entry in path.iterdir()))

    def has(self, *names: str) -> bool:
        """Whether all these files exist."""
        return self.names.issuperset(names)

    def matching(self, pattern: str) -> list[str]:
        """Names of files that match a glob pattern, in natural order."""
        found = [name for name in self.names if Path(name).match(pattern)]
        return sorted(found, key=lambda name: (len(name), name))

    def ending(self, pattern: str) -> re.Match[str] | None:
        """Match the end of the folder's path against a regular expression.

        Only whole components at the end of the path are matched, because folders further up may have any name. A
        snapshot in a Hub cache is treated as lying in the folder `owner/repository`.
        """
        for path in (self.path, self.path.resolve()):
            named = re.sub(r"^.*/models--([^/]+)--([^/]+)/snapshots/[^/]+", r"\1/\2", path.as_posix())
            if match := re.search(f"(?:^|/){pattern}$", named):
                return match
        return None

    def json(self, name: str) -> dict[str, Any]:
        """Read a .json or .yaml file that holds an object.

        Raises:
            UserError: it does not hold an object.
        """
        try:
            with open_regular(self.path / name) as file:
                text = file.read(_LARGEST_CONFIG + 1).decode("utf-8")
            if len(text) > _LARGEST_CONFIG:
                raise UserError(f"{name}: no config has more than {_LARGEST_CONFIG:,} bytes; restore it from a copy")
            is_yaml = name.endswith(".yaml")
            content = yaml.safe_load(text) if is_yaml else json.loads(text, object_pairs_hook=_object)
        except UserError:
            raise
        except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
            problem = "nested too deeply" if isinstance(error, RecursionError) else reason(error)
            raise UserError(f"{name} cannot be read ({problem}); restore it from a copy") from error
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise UserError(f"{name} does not hold an object")
        return content

    def config(self, name: str) -> Fields:
        """Read such a file as fields, each of which must be requested.

        Raises:
            UserError: the file does not hold an object.
        """
        found = Fields(self.json(name), name)
        self.opened.append(found)
        return found

    def tensors(self, name: str) -> Tensors:
        """Read a .safetensors, .npz or PyTorch file, each of whose tensors must be requested. Nothing in it is
        executed.

        Raises:
            UserError: it is damaged, or contains code.
        """
        found = read_tensors(self.path / name)
        self.opened.append(found)
        return found

    def check_read(self) -> None:
        """Raise a UserError if an opened file holds fields or tensors that were not requested."""
        for opened in self.opened:
            opened.check_read()
        self.opened[:] = [opened for opened in self.opened if isinstance(opened, Fields)]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UserError(f"a config says {next(key for key, _ in pairs if sum(k == key for k, _ in pairs) > 1)} twice")
    return found


@dataclass(frozen=True, eq=False)
class Found:
    """An SAE found in other people's files."""

    sae: SAE
    group: str
    """Name of its group. SAEs of one group can stand at both ends of a block."""
    reads: str
    """The site that it reads, as named in its files; empty if they do not say."""
    writes: str = ""
    """The site that a transcoder writes; empty for an SAE."""
    recipe: dict[str, Any] = field(default_factory=dict[str, Any])
    """Its config, unchanged."""
    origin: Origin = field(default_factory=Origin)
    """What it was trained on."""
    remarks: tuple[str, ...] = ()
    """Remarks for the user of the SAE, one sentence each."""

    def __post_init__(self) -> None:
        try:
            folder_name(self.group)
        except ValueError as error:
            raise UserError(
                f"the name {quoted(self.group)} cannot be that of a folder ({error}); rename these SAEs"
            ) from error


class Format(NamedTuple):
    """A format for SAEs in files."""

    name: str
    files: str
    """Description of the files in a folder of this format, for messages."""
    here: Callable[[Folder], bool]
    """Whether a folder has this format, judged by file names and configs."""
    weights: tuple[str, ...]
    """Names of files that identify a folder as this format, possibly a damaged one."""
    read: Callable[[Folder], Iterable[Found]]
    """Reads its SAEs. It must read all configs before the first SAE, and each file of tensors before the first of its
    SAEs.
    """


@contextmanager
def about(path: Path | str) -> Generator[None]:
    """Put a path before the message of a UserError, and turn errors of a reader on invalid files into UserErrors."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"{path}: its files do not fit together ({type(error).__name__}: {reason(error)})") from error


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
    """Build an SAE from tensors in row-vector convention. A bias subtracted before the encoder is folded into b_enc.

    Raises:
        UserError: the tensors do not fit together, or contain NaN or infinity.
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


def check_numbers(found: Found) -> None:
    """Raise a UserError if an SAE cannot be used: its numbers are too large, or its output has an impossible width."""
    sae = found.sae
    if not found.writes and sae.d_model != sae.d_out:
        raise UserError(
            f"W_enc {tuple(sae.W_enc.shape)} and W_dec {tuple(sae.W_dec.shape)} read and write other widths, and the "
            "files do not say where it writes"
        )
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        if not getattr(sae, name).isfinite().all():
            raise UserError(f"{name} is too large for float32 once all factors are folded into it")


def save_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], names: tuple[str, str]) -> None:
    """Write a config and float32 tensors under two names into a folder, atomically."""
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        plain = {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}
        save_file(plain, temporary / names[1])
        (temporary / names[0]).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def check_size(sae: SAE, config: Fields, d_in: str, d_sae: str) -> None:
    """Raise a UserError if a config's widths differ from those of the tensors."""
    config.same(d_in, INTEGER, sae.d_model)
    config.same(d_sae, INTEGER, sae.d_sae)
