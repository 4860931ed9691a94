"""Activations on disk: what a stream yields is kept, one file a buffer, and read instead of computed by later runs.

    folder/manifest.json               the recipe that the buffers were made by, and its hash
    folder/buffer-000000.safetensors   one buffer: "resid_mid.0" -> [n_tokens, d_model]

The stream's buffers depend on the recipe and their number alone, so a cached run is the same run, to the bit. In memory
there is one buffer at a time, where the model lies. A run may use some of the sites of a cache; one of another recipe
is refused.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scalar_sae import workers
from scalar_sae.activations.stream import ActivationStream, Buffer
from scalar_sae.console import say
from scalar_sae.errors import UserError
from scalar_sae.io import check_writable, whole, write_json
from scalar_sae.lm.model import LanguageModel

_NO_PART = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
"""Fields of a model's configuration that do not decide its activations (the weights say of what type they are)."""


class CachedStream:
    """A stream that keeps its buffers in a folder.

    Raises:
        UserError: the folder holds a cache of another recipe, or lacks a site (the differing fields are listed), or
            something else; or the disk has no room for the `needed` buffers of a run.
    """

    def __init__(self, stream: ActivationStream, folder: Path, needed: int) -> None:
        self._stream, self._folder = stream, folder
        wanted = recipe(stream)
        path = folder / "manifest.json"
        with workers.one_first():
            if not path.is_file():
                text = json.dumps(wanted, sort_keys=True)
                content = {"hash": hashlib.sha256(text.encode()).hexdigest(), "recipe": wanted}
                write_json(path, content, "--cache")
        there = _recipe_in(path)
        differing = [name for name in wanted if name != "reads" and wanted[name] != there.get(name)]
        lacking = sorted(set(wanted["reads"]) - set(there["reads"]))
        if differing or lacking:
            why = "; ".join([*(f"{name} differs" for name in differing), *(f"lacks {name}" for name in lacking)])
            raise UserError(f"{folder}: activations of another recipe ({why}); choose another --cache")
        self._all = there["reads"] == wanted["reads"]
        self._make_room(needed)

    def _make_room(self, n: int) -> None:
        """Say what so many buffers take on the disk, before anything is computed."""
        stream = self._stream
        there = sum(self._path(index).is_file() for index in range(n))
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
        else:
            if needed:
                check_writable(self._folder, "--cache", folder=True)
            say(f"cache {self._folder}: {size}; {needed / 1e9:.1f} GB more, {free / 1e9:,.0f} GB free")

    def buffers(self, start: int = 0) -> Iterator[Buffer]:
        """Yield buffers without end, from number `start` on; computed and kept where the cache has none."""
        index = start
        while True:
            path = self._path(index)
            missing = any(workers.most([int(not path.is_file())]))
            yield self._compute(index, path) if missing else self._load(path)
            index += 1

    def _path(self, index: int) -> Path:
        return self._folder / f"buffer-{index:06d}.safetensors"

    def _load(self, path: Path) -> Buffer:
        try:
            tensors = load_file(path, device=str(self._stream.lm.device))
            return {read: tensors[str(read)] for read in self._stream.reads}
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"{path}: damaged ({error}); delete it") from error

    def _compute(self, index: int, path: Path) -> Buffer:
        buffer = next(self._stream.buffers(index))
        if (
            self._all and workers.number() == 0
        ):  # a run that reads fewer sites would leave a buffer that others cannot use
            with whole(path, "--cache") as temporary:
                save_file({str(read): acts for read, acts in buffer.items()}, temporary)
        return buffer


def recipe(stream: ActivationStream) -> dict[str, Any]:
    """Everything that decides what a stream yields."""
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


def _recipe_in(manifest: Path) -> dict[str, Any]:
    """The recipe that a cache was made by."""
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))["recipe"]
        return {**found, "reads": list(found["reads"])}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{manifest}: not of a cache of activations, or damaged; choose another --cache") from error


def fingerprint(lm: LanguageModel) -> str:
    """SHA-256 over the model's configuration (norm's epsilon, heads, rotary base) and its weights' names and bytes.

    Left out is what says where a model lies and by what it was written: a saved copy has the same fingerprint.
    """
    config = {name: value for name, value in lm.hf.config.to_dict().items() if name not in _NO_PART}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(lm.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)  # numpy knows no bfloat16
    return digest.hexdigest()
