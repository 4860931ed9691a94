"""Find a model and its tokenizer: a shipped name, a local folder, a Hub id. What goes wrong is said in one line."""

import difflib
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from scalar_sae.errors import UserError, unknown
from scalar_sae.lm import gpt_circuits
from scalar_sae.lm.toy import WEIGHTS, shipped
from scalar_sae.tokenizer import Ascii, Pretrained, Tokenizer

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_LAYER = re.compile(r"(.*\b(?:h|layers)\.)(\d+)\.")


def load_hf(source: str | Path, device: str | torch.device | None = None, **options: Any) -> Any:
    """Load a causal language model with `transformers`; code from a repository is never run.

    Raises:
        UserError: there is no such model, it is gated, or its files are damaged or of no causal language model.
    """
    name = str(source)
    folder = WEIGHTS / name if name in shipped() else Path(source)
    if gpt_circuits.is_checkpoint(folder):
        hf: Any = gpt_circuits.load(folder)
        return hf if device is None else hf.to(device)
    local = folder.is_dir()
    if local and not (folder / "config.json").is_file():
        raise UserError(f"{name}: no config.json there; expected a folder with config.json and model.safetensors")
    if not local and (not _HUB_ID.fullmatch(name) or difflib.get_close_matches(name, shipped(), cutoff=0.8)):
        raise unknown("language model", name, [*shipped(), "a folder with config.json", "a Hub id such as owner/name"])
    if local:
        transformers_logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder if local else name,
            local_files_only=local,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
            **options,
        )
    except Exception as error:  # a config can be wrong in as many ways as there are models
        raise _explained(name, "cannot be loaded as a causal language model", error) from error
    hf, report = loaded
    _check_report(name, hf, report)
    return hf if device is None else hf.to(device)


def _check_report(name: str, hf: Any, report: dict[str, Any]) -> None:
    """Raise a UserError if the weights are not those of the config: missing, of other shapes, or of more layers."""
    if report["missing_keys"]:
        raise UserError(f"{name}: weights are missing: {', '.join(sorted(report['missing_keys'])[:5])}")
    for key, stored, wanted in sorted(report["mismatched_keys"]):
        raise UserError(
            f"{name}: {key} has shape {tuple(stored)}, by its config {tuple(wanted)}; one is of another model"
        )
    n_layers = hf.config.get_text_config().num_hidden_layers
    lists = {found[1] for key in hf.state_dict() if (found := _LAYER.match(key))}
    for key in sorted(report["unexpected_keys"]):  # others are common: buffers of old versions, vision towers
        found = _LAYER.match(key)
        if found and found[1] in lists and int(found[2]) >= n_layers:
            raise UserError(f"{name}: holds {key}, by its config it has {n_layers} layers; one is of another model")


def model_in(folder: Path) -> Path | None:
    """The language model that lies in a folder of SAEs: the folder itself, or `lm` in it."""
    for place in (folder / "lm", folder):
        has_config = (place / "config.json").is_file() or (place / "model.json").is_file()
        if has_config and (place / "model.safetensors").is_file():
            return place
    return None


def load_tokenizer(source: str, name: str, d_vocab: int) -> Tokenizer:
    """The tokenizer beside a model's weights; ASCII codes for a model of 128 symbols that has none.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    folder = Path(source)
    local = source == "" or folder.is_dir()
    if local and not any((folder / file).is_file() for file in _TOKENIZER_FILES if source):
        if d_vocab == Ascii().d_vocab:
            return Ascii()
        raise UserError(
            f"{name}: no tokenizer beside the weights; save one there (tokenizer.json), "
            "or LanguageModel.load(..., tokenizer=...)"
        )
    try:
        found = Pretrained(AutoTokenizer.from_pretrained(source, local_files_only=local), name)
        ids, _ = found.encode("a")
    except Exception as error:
        raise _explained(name, "its tokenizer cannot be loaded", error) from error
    if not len(ids):
        raise UserError(f"{name}: its tokenizer makes nothing of a text; take the files of the model's own tokenizer")
    return found


def _explained(name: str, what: str, error: Exception) -> UserError:
    """One line for what `transformers` says in many."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return UserError(
            f"{name}: a gated repository; ask for access at https://huggingface.co/{name}, then hf auth login"
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return UserError(
            f"{name}: neither a local folder nor a repository on the Hub that you can read (hf auth login?)"
        )
    return UserError(f"{name}: {what} ({str(error).strip().splitlines()[0]})")
