"""An on-disk cache of activations: the buffers of a stream are kept, one file per buffer, and read by later runs.

    folder/manifest.json               the recipe that determines the buffers, and its hash
    folder/buffer-000000.safetensors   one buffer: "resid_mid.0" -> [n_tokens, d_model], with the SHA-256 of the
                                       recipe, its number and its content

A buffer depends only on the recipe and its number, so a run from the cache equals a run without it, to the bit. Memory
holds one buffer at a time, on the model's device. A run may use some of the sites of a cache. A cache of another recipe
is refused.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, model_validator

from scalar_sae import distributed
from scalar_sae.activations.stream import ActivationStream, Buffer
from scalar_sae.console import say
from scalar_sae.digests import digest
from scalar_sae.errors import UserError
from scalar_sae.io import atomic_write, write_json
from scalar_sae.lm.model import LanguageModel
from scalar_sae.locks import held
from scalar_sae.readers import WRITER, open_regular, read_json
from scalar_sae.sealed import load_tensors, save_tensors

_NO_PART = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
"""Fields of a model's configuration that do not affect its activations. The precision is taken from the weights."""


class Manifest(BaseModel):
    """The content of `manifest.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: int = 1
    written_by: str = WRITER
    hash: str
    """SHA-256 of the recipe."""
    recipe: dict[str, Any]

    @classmethod
    def of(cls, recipe: dict[str, Any]) -> "Manifest":
        """The manifest of buffers made by a recipe."""
        return cls(hash=_hash(recipe), recipe=recipe)

    @model_validator(mode="after")
    def _checked(self) -> "Manifest":
        if self.hash != _hash(self.recipe):
            raise ValueError("the hash is not that of the recipe")
        return self


def _hash(recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


class CachedStream:
    """A stream that keeps its buffers in a folder.

    Raises:
        UserError: the folder holds a cache of another recipe or one that lacks a site (the message lists the
            differences), or other files, or the disk has no room for the `needed` buffers of a run.
    """

    def __init__(self, stream: ActivationStream, folder: Path, needed: int) -> None:
        self._stream, self._folder = stream, folder
        wanted = recipe(stream)
        path = folder / "manifest.json"
        with distributed.first_rank_first():
            if not os.path.lexists(path):
                with held(folder, path.name, wait=60.0, option="--cache"):
                    if not os.path.lexists(path):
                        write_json(path, Manifest.of(wanted).model_dump(), "--cache")
        manifest = read_json(path, Manifest, "the cache has no manifest; choose another --cache")
        there, self._hash = manifest.recipe, manifest.hash
        differing = [name for name in wanted if name != "reads" and wanted[name] != there.get(name)]
        lacking = sorted(set(wanted["reads"]) - set(there.get("reads", ())))
        if differing or lacking:
            why = "; ".join([*(f"{name} differs" for name in differing), *(f"lacks {name}" for name in lacking)])
            raise UserError(f"{folder}: activations of another recipe ({why}); choose another --cache")
        self._all = there.get("reads") == wanted["reads"]
        self._make_room(needed)

    def _make_room(self, n: int) -> None:
        """Report the disk space of the buffers before anything is computed, and refuse if it is not available."""
        stream = self._stream
        there = sum(self._there(self._path(index)) for index in range(n))
        bytes_each = 4 * stream.lm.d_model * stream.tokens_per_buffer * len(stream.reads)
        needed, free = (n - there) * bytes_each, shutil.disk_usage(self._folder).free
        size = f"{n} buffers of {bytes_each / 2**20:,.0f} MiB, {there} of them there already"
        if not self._all:
            say(f"cache {self._folder}: {size}; those that are not there are not kept, since it has other sites too")
        elif needed > free:
            raise UserError(
                f"{self._folder}: {size}; {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free; choose a "
                "--cache on another disk, fewer tokens or fewer sites"
            )
        elif needed and not os.access(self._folder, os.W_OK):
            raise UserError(f"{self._folder}: {size}, and no more can be written there; choose another --cache")
        else:
            say(f"cache {self._folder}: {size}; {needed / 1e9:.1f} GB more, {free / 1e9:,.0f} GB free")

    def buffers(self, start: int = 0) -> Iterator[Buffer]:
        """Yield buffers endlessly from number `start` on. Missing buffers are computed and kept."""
        index = start
        while True:
            path = self._path(index)
            missing = any(distributed.all_max([int(not self._there(path))]))
            yield self._compute(index, path) if missing else self._load(index, path)
            index += 1

    def _path(self, index: int) -> Path:
        return self._folder / f"buffer-{index:06d}.safetensors"

    def _there(self, path: Path) -> bool:
        """Whether a buffer is in the cache.

        Raises:
            UserError: a folder or a pipe has its name.
        """
        if os.path.lexists(path):
            open_regular(path).close()
            return True
        return False

    def _of(self, index: int) -> str:
        return f"{self._hash} {index}"

    def _load(self, index: int, path: Path) -> Buffer:
        tensors = load_tensors(path, "delete it, and it is made again", self._of(index))
        return {read: tensors[str(read)].to(self._stream.lm.device) for read in self._stream.reads}

    def _compute(self, index: int, path: Path) -> Buffer:
        buffer = next(self._stream.buffers(index))
        if (
            self._all and distributed.rank() == 0
        ):  # a run that reads fewer sites would leave a buffer without the others
            with atomic_write(path, "--cache") as temporary:
                save_tensors(temporary, {str(read): acts for read, acts in buffer.items()}, self._of(index))
        return buffer


def recipe(stream: ActivationStream) -> dict[str, Any]:
    """Everything that determines the buffers of a stream."""
    return {
        "lm": fingerprint(stream.lm),
        "tokens": hashlib.sha256(stream.prompts.numpy().tobytes()).hexdigest(),
        "context": stream.prompts.shape[1],
        "buffer_tokens": stream.buffer_tokens,
        "seed": stream.seed,
        "lm_batch": stream.lm_batch,
        "special": list(stream.special),
        "reads": sorted(map(str, stream.reads)),
    }


def fingerprint(lm: LanguageModel) -> str:
    """The digest of the model's configuration (such as the norm's epsilon, heads, rotary base), and of its weights'
    names and bytes.

    The path of the model and the version that wrote it are excluded, so a saved copy has the same fingerprint.
    """
    config = {name: value for name, value in lm.hf.config.to_dict().items() if name not in _NO_PART}
    names, tensors = zip(*sorted(lm.state_dict().items()), strict=True)
    text = json.dumps([config, names], sort_keys=True, default=str).encode()
    return digest([torch.frombuffer(bytearray(text), dtype=torch.uint8), *tensors])
