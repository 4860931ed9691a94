"""Find a model and its tokenizer: a shipped name, a folder, a GGUF file or the Hub. Every error is reported in one
line.

Weights, configuration and tokenizer of a model on the Hub come from one commit. Code from a repository is never run.
"""

import difflib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from scalar_sae.console import Bar, in_log, say
from scalar_sae.errors import UserError, unknown
from scalar_sae.lm import gpt_circuits
from scalar_sae.lm.gguf import is_gguf, unpacked
from scalar_sae.lm.toy import WEIGHTS, shipped
from scalar_sae.readers import open_regular, read_text
from scalar_sae.sealed import DIGESTS, check_sealed
from scalar_sae.tokenizer import SAMPLE, Ascii, Pretrained, Tokenizer

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Precisions in which a model can compute. `auto` takes the one in its configuration."""
HUB_OPTIONS = ("revision", "token", "cache_dir", "subfolder", "force_download", "proxies", "local_files_only")
"""Options that select files on the Hub or say how to reach them."""
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_ADDRESS = re.compile(r"(?:hf://)?([\w.-]+(?:/[\w.-]+)?)(?:@([^/]+))?(?:/(.+?))?/?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_CUT_OTHERWISE = f"{SAMPLE}I'll IT'S we'RE, e.g. 12.5 of 2024-01-31...\n\n\n  \t end É e\u0301 ①ﬁ  "
"""A text that tokenizers split differently if their rules for numbers, blanks, contractions or Unicode differ."""
_READ = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")
"""Files that `transformers` may open in the folder of a model."""
_LAYER = re.compile(r"(.*\b(?:h|layers)\.)(\d+)\.")


@dataclass(frozen=True)
class Origin:
    """The location of a model's files: a folder, or a repository on the Hub."""

    path: str
    """The folder, or `owner/name`; empty if there are no files."""
    hub: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    """For a repository: the values of those `HUB_OPTIONS` that are set. The revision is a commit, so files that are
    read later belong to those read first, even if the repository has changed since."""

    @property
    def local(self) -> bool:
        """Whether no download is needed."""
        return self.path == "" or Path(self.path).is_dir()

    @classmethod
    def of(cls, hf: Any) -> "Origin":
        """The origin that a module's configuration names. It does not include the revision of a repository."""
        return cls(str(hf.name_or_path))


def locate(source: str | Path, options: dict[str, Any], *, with_tokenizer: bool = True) -> Origin:
    """Locate a model's files. The Hub options are removed from `options`.

    Args:
        source: a shipped name, a folder, a GGUF file, `owner/name[@revision]`, or
            `hf://owner/name[@revision][/subfolder]`, which may end in the name of a GGUF file.
        options: the options of `LanguageModel.load`.
        with_tokenizer: whether the tokenizer of a GGUF file is needed.

    Raises:
        UserError: there is no such model.
    """
    name = str(source)
    hub = {key: value for key in HUB_OPTIONS if (value := options.pop(key, None)) is not None}
    if (file := options.pop("gguf_file", None)) is not None:
        name = f"{name.rstrip('/')}/{file}"
    path = WEIGHTS / name if name in shipped() else Path(name)
    if path.exists():
        if "revision" in hub:
            raise UserError(f"{name}: on this machine, where there is no revision {hub['revision']!r}; leave it out")
        path = path / hub.get("subfolder", "")
        if path.is_file() and not is_gguf(path):
            raise UserError(f"{name}: a single file; give the folder that config.json lies in, or a GGUF file")
        return Origin(str(unpacked(path, with_tokenizer=with_tokenizer) if is_gguf(path) else path))
    repository, revision, inside = _on_hub(name, as_file=file is not None)
    for key, value in (("revision", revision), ("subfolder", inside)):
        if value is not None and hub.setdefault(key, value) != value:
            raise UserError(f"{name}: names the {key} {value!r}, the option {key} is {hub[key]!r}; give one of them")
    if is_gguf(hub.get("subfolder", "")):
        found = _downloaded(name, repository, hub.pop("subfolder"), hub)
        return Origin(str(unpacked(found, with_tokenizer=with_tokenizer)))
    config = _downloaded(name, repository, "config.json", hub)
    commit = next(part for part, above in zip(config.parts[1:], config.parts, strict=False) if above == "snapshots")
    return Origin(repository, hub | {"revision": commit})


def check_name(name: str) -> None:
    """Raise a UserError unless this is a shipped model, an existing path or an address on the Hub."""
    if name not in shipped() and not Path(name).exists():
        _on_hub(name)


def _on_hub(name: str, *, as_file: bool = False) -> tuple[str, str | None, str | None]:
    """The repository, the revision and the path inside it.

    Raises:
        UserError: the name is not such an address, or it is a misspelling of a shipped model's name.
    """
    address = _address(name, as_file=as_file)
    if address is None or difflib.get_close_matches(name, shipped(), cutoff=0.8):
        expected = ["a folder with config.json", "a GGUF file", "a Hub id such as owner/name or owner/name@revision"]
        raise unknown("language model", name, [*shipped(), *expected])
    return address


def _address(name: str, *, as_file: bool = False) -> tuple[str, str | None, str | None] | None:
    """The repository, the revision and the path inside it; None for anything but an address, such as a missing folder's
    path.
    """
    found = _ADDRESS.fullmatch(name)
    if found is None:
        return None
    repository, revision, inside = found.groups()
    certain = name.startswith("hf://") or revision is not None or as_file
    return None if (inside or is_gguf(name)) and not certain else (repository, revision, inside)


def _downloaded(name: str, repository: str, file: str, hub: dict[str, Any]) -> Path:
    """Download a file of a repository into the Hub's cache."""
    try:
        with in_log(f"download {file} of {repository}"):
            return Path(hf_hub_download(repository, file, **hub))
    except Exception as error:
        raise _explained(name, "cannot be loaded from the Hub", error) from error


def check_whole(origin: Origin) -> None:
    """Raise a UserError if the files of a model that this package wrote have changed since."""
    folder = Path(origin.path)
    if origin.path and origin.local and os.path.lexists(folder / DIGESTS):
        check_sealed(folder, "restore it from a copy, or make it again")


def precision(dtype: Any) -> Any:
    """Convert a precision to the form that `transformers` takes: a `torch.dtype`, or `auto`.

    Raises:
        UserError: it is not one of `DTYPES`.
    """
    name = str(dtype).removeprefix("torch.")
    if dtype is None or name == "auto":
        return "auto"
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return getattr(torch, name)


def load_hf(origin: Origin, name: str, dtype: Any, device: str | torch.device | None = None, **options: Any) -> Any:
    """Load a causal language model with `transformers`.

    Args:
        origin: location of the files.
        name: the name that the user gave.
        dtype: precision, as returned by `precision`.
        device: device to move it to; None leaves it where `transformers` puts it.
        options: options for `from_pretrained`.

    Raises:
        UserError: there is no such model, it is gated, its files are damaged, or it is not a causal language model.
    """
    if options.pop("trust_remote_code", False):
        raise UserError(
            f"{name}: trust_remote_code: code from a repository is never run here; load the model with transformers "
            "and give the module: LanguageModel.load(hf_model, tokenizer=...)"
        )
    folder = Path(origin.path)
    if gpt_circuits.is_checkpoint(folder):
        hf: Any = gpt_circuits.load(folder)
        return hf.to(device=device, dtype=None if dtype == "auto" else dtype)
    if origin.local:
        _check_folder(folder, name)
        transformers_logging.disable_progress_bar()
    # otherwise transformers asks a server to convert .bin files
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    try:
        with Bar(f"load {name}") if origin.local else in_log(f"download and load {name}"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                origin.path,
                dtype=dtype,
                trust_remote_code=False,
                weights_only=True,  # for .bin files: never run code in a pickle
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # _check_report refuses them
                **({"local_files_only": True} if origin.local else origin.hub),
                **options,
            )
    except Exception as error:  # a bad config can raise any exception
        raise _explained(name, "cannot be loaded as a causal language model", error) from error
    hf, report = loaded
    _check_report(name, hf, report)
    return hf if device is None else hf.to(device)


def _check_folder(folder: Path, name: str) -> None:
    """Raise a UserError if a folder holds no model, naming what it holds instead, or if one of its files cannot be a
    model's.
    """
    if (folder / "config.json").is_file():
        for entry in folder.iterdir():
            if entry.suffix in _READ and not entry.is_dir():
                open_regular(entry).close()
        return
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{name}: holds an adapter, no model; merge it (peft: merge_and_unload) and save the model")
    if files := sorted(folder.glob("*.gguf")):
        raise UserError(f"{name}: no config.json there; a GGUF file is given by its name, such as {files[0]}")
    raise UserError(f"{name}: no config.json there; expected a folder with config.json and {WEIGHT_FILES[0]}")


def _check_report(name: str, hf: Any, report: dict[str, Any]) -> None:
    """Raise a UserError if the weights do not fit the config: missing tensors, other shapes, or more layers."""
    if report["missing_keys"]:
        raise UserError(f"{name}: weights are missing: {', '.join(sorted(report['missing_keys'])[:5])}")
    for key, stored, wanted in sorted(report["mismatched_keys"]):
        raise UserError(
            f"{name}: {key} has shape {tuple(stored)}, by its config {tuple(wanted)}; one is of another model"
        )
    n_layers = hf.config.get_text_config().num_hidden_layers
    lists = {found[1] for key in hf.state_dict() if (found := _LAYER.match(key))}
    modules = dict(hf.named_modules())
    for key in sorted(report["unexpected_keys"]):  # other unexpected keys are common: old buffers, vision towers
        found = _LAYER.match(key)
        if found and found[1] in lists and int(found[2]) >= n_layers:
            raise UserError(f"{name}: holds {key}, by its config it has {n_layers} layers; one is of another model")
        module, _, leaf = key.rpartition(".")
        if module in modules and leaf in modules[module]._parameters:  # pyright: ignore[reportPrivateUsage]
            raise UserError(f"{name}: holds {key}, by its config there is none; one is of another model")


def model_in(folder: Path) -> Path | None:
    """The language model in a folder of SAEs: the folder itself, or its subfolder `lm`. It is returned even if
    damaged.
    """
    places = (folder / "lm", folder)
    return next((place for place in places if os.path.lexists(place / DIGESTS) or _is_model(place)), None)


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a language model: a configuration, and weights in one file or in shards."""
    if gpt_circuits.is_checkpoint(folder):
        return True
    try:
        config = json.loads(read_text(folder / "config.json", "none"))
    except (OSError, ValueError, RecursionError):  # UserError is a ValueError
        return False
    named = isinstance(config, dict) and ("model_type" in config or "architectures" in config)
    return named and any((folder / file).is_file() for file in WEIGHT_FILES)


def load_tokenizer(origin: Origin, name: str, d_vocab: int) -> Tokenizer:
    """The tokenizer in a model's files. A model of 128 symbols without a tokenizer gets ASCII codes.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    folder = Path(origin.path)
    if origin.local and not any((folder / file).is_file() for file in _TOKENIZER_FILES if origin.path):
        if d_vocab == Ascii().d_vocab:
            return Ascii()
        raise UserError(
            f"{name}: no tokenizer beside the weights; save one there (tokenizer.json), "
            "or LanguageModel.load(..., tokenizer=...)"
        )
    if not origin.local and "revision" not in origin.hub:
        say(
            f"{name}: the tokenizer is that of {origin.path}, main; if the weights are of another revision, "
            "give the tokenizer too"
        )
    try:
        options = {"local_files_only": True} if origin.local else origin.hub
        inner: Any = AutoTokenizer.from_pretrained(origin.path, trust_remote_code=False, **options)
        found = Pretrained(_by_its_file(inner, origin.path, options, name), name)
        ids, _ = found.encode("a")
    except Exception as error:
        raise _explained(name, "its tokenizer cannot be loaded", error) from error
    if "AutoTokenizer" in (found.inner.init_kwargs.get("auto_map") or ()):
        say(f"{name}: its tokenizer has code of its own, which is not run; its other files are read")
    if not len(ids):
        raise UserError(f"{name}: its tokenizer makes nothing of a text; take the files of the model's own tokenizer")
    return found


def _by_its_file(inner: Any, path: str, options: dict[str, Any], name: str) -> Any:
    """Return the tokenizer, or the one in its `tokenizer.json` if its class splits text differently.

    Some classes of `transformers` 5 (GPT2Tokenizer, GPTNeoXTokenizer) apply the rules of their first model and ignore
    those in the file, such as SmolLM2's rule that splits numbers into digits.
    """
    if cached_file(path, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **options) is None:
        return inner
    by_file: Any = PreTrainedTokenizerFast.from_pretrained(path, **options)
    ids, wanted = (each(_CUT_OTHERWISE, add_special_tokens=False).input_ids for each in (inner, by_file))
    if ids == wanted:
        return inner
    say(f"{name}: {type(inner).__name__} of transformers cuts text otherwise than its tokenizer.json: that is followed")
    return by_file


def _explained(name: str, what: str, error: Exception) -> UserError:
    """Reduce a multi-line error of `transformers` to one line."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        address = _ADDRESS.fullmatch(name)
        page = f"https://huggingface.co/{address[1] if address else name}"
        return UserError(f"{name}: a gated repository; ask for access at {page}, then hf auth login")
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return UserError(f"{name}: the repository has no such revision; give a branch, a tag or a commit that it has")
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return UserError(
            f"{name}: neither a local folder nor a repository on the Hub that you can read (hf auth login?)"
        )
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return UserError(f"{name}: {what} ({first})")
