"""Language models in GGUF files. `transformers` reads them; they are checked and kept as an ordinary folder of weights.

The reader of `transformers` silently ignores whatever it does not know in a GGUF file: scaled rotary positions (the
tensor `rope_freqs` of Llama 3.1), a sliding window, or the rule for splitting digits. Therefore every hyperparameter in
the file is compared with the model that was built, every tensor of the file must have a place in it, and a rule for
splitting text that is not known to be right is refused.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from math import isclose
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from scalar_sae.console import Bar, say
from scalar_sae.errors import UserError
from scalar_sae.io import atomic_write, cache_folder
from scalar_sae.readers import open_regular

_VERSION = 1
"""Version of the conversion. It is increased when the same file converts into another folder than before."""
_PROBE = "In 1999,  it's   the\n  cats'\t\thats: x = 12.5;  Ünïcode  "

_GPT2_SPLIT = {"gpt-2", "phi-2", "mpt", "olmo"}
"""Values of `tokenizer.ggml.pre` for which the rule of GPT-2's own tokenizer is right."""
_DIGITS_SPLIT = {"smollm", "starcoder", "refact", "command-r"}
"""Values for which every digit is a word of its own and the rest is split as by GPT-2."""
_BOS_WITHOUT_FLAG = {"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken", "pixtral"}
"""Byte-pair vocabularies to which llama.cpp adds BOS if the file does not say whether to."""


def is_gguf(source: object) -> bool:
    """Whether `source` names a GGUF file."""
    return str(source).endswith(".gguf")


def unpacked(path: Path, *, with_tokenizer: bool) -> Path:
    """The cached folder that holds a GGUF file's model in float32. It is made on first use.

    The folder is named by the digest of the file, so a file that was changed or moved is never confused with another.

    Raises:
        UserError: see `convert`. Also if the tokenizer is needed and `transformers` does not read it exactly.
    """
    with Bar(f"look for {path.name} in the cache"):
        digest = _digest(path)
    folder = cache_folder() / "gguf" / f"{digest[:16]}-v{_VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            convert(path, folder, digest=digest, with_tokenizer=with_tokenizer, option="SCALAR_SAE_CACHE")
            say(f"{path}: kept as float32 in {folder}")
    if with_tokenizer and not (folder / "tokenizer.json").is_file():
        _tokenizer(path, _read(path)[0])
    return folder


def convert(
    path: Path,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    digest: str | None = None,
    with_tokenizer: bool = True,
    option: str = "folder",
) -> None:
    """Convert a GGUF file's model and tokenizer to a `transformers` folder, atomically.

    The field `dequantized_from` in the folder's `config.json` names the source.

    Args:
        path: the GGUF file.
        folder: the folder to write.
        dtype: precision of the written weights. Only float32 keeps every number of the file.
        digest: SHA-256 of the file, if known.
        with_tokenizer: whether to refuse a file whose tokenizer is not read exactly; if false, none is written for it.
        option: the option that named the folder, for messages.

    Raises:
        UserError: the file is not a complete language model in GGUF format, `transformers` does not know its
            architecture, or the file states something that the model built by `transformers` does not do.
    """
    with Bar(f"read fields and tokenizer of {path.name}"):
        fields, tensors = _read(path)
        try:
            tokenizer = _tokenizer(path, fields)
        except UserError:
            if with_tokenizer:
                raise
            tokenizer = None
    types = Counter(kind for _, kind, _ in tensors)
    with Bar(f"read {path.name}", len(tensors)) as bar:
        hf = _model(path, bar)
    _check_config(path, fields, hf.config)
    _check_numbers(path, tensors, hf)
    hf.config.dequantized_from = {
        "file": path.name,
        "sha256": digest or _digest(path),
        "types": dict(types.most_common()),
    }
    with Bar(f"write {path.name} as {folder.name}"), atomic_write(folder, option) as temporary:
        hf.to(dtype).save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
            _check_saved(path, tokenizer, temporary)


def _read(path: Path) -> tuple[dict[str, Any], list[tuple[str, str, int]]]:
    """The fields of a file, and the name, type and number of elements of each tensor."""
    try:
        import gguf
    except ImportError as error:
        raise UserError(f"{path}: reading GGUF files needs an extra: pip install 'scalar-sae[gguf]'") from error
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = [(tensor.name, tensor.tensor_type.name, int(tensor.n_elements)) for tensor in reader.tensors]
    except Exception as error:  # a truncated or foreign file can fail anywhere in the reader
        raise UserError(f"{path}: cannot be read as a GGUF file ({_first_line(error)})") from error
    if fields.get("split.count", 1) > 1:
        raise UserError(f"{path}: one of {fields['split.count']} parts; join them with `llama-gguf-split --merge`")
    kind = fields.get("general.type", "model")
    if kind != "model" or "general.architecture" not in fields or not tensors:
        raise UserError(f"{path}: holds no whole language model (general.type {kind}, {len(tensors)} tensors)")
    return fields, tensors


def _model(path: Path, bar: Bar) -> Any:
    """The model, dequantised to float32 and no longer marked as quantised."""
    with _alone(path) as (folder, file), _tensors_counted(bar):
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=file, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
            hf, report = loaded
            if report["missing_keys"]:
                raise UserError(f"{path}: weights are missing: {', '.join(sorted(report['missing_keys'])[:5])}")
            config = hf.config
            for mark in ("quantization_config", "_model_name_or_path"):
                vars(config).pop(mark, None)
            with torch.device("meta"):
                plain: Any = type(hf)(config)
            plain.load_state_dict(hf.state_dict(), assign=True)
        except UserError:
            raise
        except Exception as error:  # every architecture raises its own errors
            raise UserError(f"{path}: transformers cannot build a model of it ({_first_line(error)})") from error
    plain.tie_weights()
    return plain


def _tokenizer(path: Path, fields: dict[str, Any]) -> Any:
    """The file's tokenizer, with the splitting rule and the BOS of llama.cpp.

    Raises:
        UserError: it is not certain to produce the same tokens.
    """
    kind, rule = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    other = "give the model's own: LanguageModel.load(FILE, tokenizer=...)"
    with _alone(path) as (folder, file):
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
        except Exception as error:
            raise UserError(
                f"{path}: transformers cannot read its tokenizer ({_first_line(error)}); {other}"
            ) from error
    if kind == "gpt2":
        if rule in _DIGITS_SPLIT:
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        elif rule not in _GPT2_SPLIT | _known_to_transformers():
            raise UserError(f"{path}: its tokenizer splits text by the rule {rule!r}, which is not known; {other}")
    elif kind == "llama":
        wanted = fields.get("tokenizer.ggml.add_space_prefix", fields["general.architecture"][:5] != "gemma")
        if tokenizer.tokenize("a")[0].startswith("▁") != bool(wanted):
            raise UserError(f"{path}: its tokenizer has add_space_prefix {wanted}, which transformers ignores; {other}")
    if "tokenizer.ggml.add_bos_token" not in fields and rule in _BOS_WITHOUT_FLAG:
        tokenizer.add_bos_token = True
    return tokenizer


def _known_to_transformers() -> set[str]:
    """Splitting rules that the reader of `transformers` implements; old versions have none."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        return set()
    return set(GGUF_PRE_TOKENIZER_SPLITS)


def _check_saved(path: Path, tokenizer: Any, folder: Path) -> None:
    """Raise a UserError if the saved tokenizer produces other tokens than the original."""
    again: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if again(_PROBE).input_ids != tokenizer(_PROBE).input_ids:
        raise UserError(f"{path}: transformers {type(again).__name__} does not keep its tokenizer as it is")


def _first(*names: str) -> Callable[[Any], Any]:
    """Read the first of several attributes that a config has."""
    return lambda config: next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rope(config: Any, name: str) -> Any:
    """A parameter of the rotary positions. transformers 5 keeps them in a dict, or in one dict per kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    return rope.get(name, getattr(config, name, None))


def _rotary_dims(config: Any) -> int:
    share = _rope(config, "partial_rotary_factor")
    return round(_head_dim(config) * (1 if share is None else share))


_EPS = _first("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
_STATED: dict[str, Callable[[Any], Any]] = {
    "context_length": _first("max_position_embeddings"),
    "embedding_length": _first("hidden_size"),
    "block_count": _first("num_hidden_layers"),
    "feed_forward_length": lambda config: (
        _first("intermediate_size", "n_inner", "ffn_hidden_size")(config) or 4 * config.hidden_size
    ),
    "vocab_size": _first("vocab_size"),
    "attention.head_count": _first("num_attention_heads"),
    "attention.head_count_kv": _first("num_key_value_heads", "num_attention_heads"),
    "attention.key_length": _head_dim,
    "attention.value_length": _head_dim,
    "attention.layer_norm_rms_epsilon": _EPS,
    "attention.layer_norm_epsilon": _EPS,
    "attention.sliding_window": _first("sliding_window"),
    "attention.causal": lambda _: True,
    "attn_logit_softcapping": _first("attn_logit_softcapping"),
    "final_logit_softcapping": _first("final_logit_softcapping"),
    "rope.dimension_count": _rotary_dims,
    "rope.freq_base": lambda config: _rope(config, "rope_theta"),
    "rope.scaling.type": lambda _: "none",
    "use_parallel_residual": _first("use_parallel_residual"),
}
"""Hyperparameters in a GGUF file (after the architecture's name), with the corresponding value of a `transformers`
config.
"""
_HARMLESS = {"quantized_by"}


def _check_config(path: Path, fields: dict[str, Any], config: Any) -> None:
    """Raise a UserError if the file states a hyperparameter that the model does not have."""
    architecture = fields["general.architecture"]
    for name, value in fields.items():
        if not name.startswith(f"{architecture}."):
            continue
        stated = _STATED.get(name.removeprefix(f"{architecture}."))
        if stated is None:
            raise UserError(
                f"{path}: says {name} = {value}, which transformers does not read; take the original checkpoint"
            )
        if not _agree(value, stated(config)):
            raise UserError(
                f"{path}: says {name} = {value}, transformers builds a model with {stated(config)}; take the original "
                "checkpoint"
            )
    if (scale := getattr(config, "query_pre_attn_scalar", None)) is not None:
        largest = config.num_hidden_layers in (46, 62)  # the 27B models, which no field identifies
        wanted = config.hidden_size // config.num_attention_heads if largest else _head_dim(config)
        if scale != wanted:
            raise UserError(
                f"{path}: its attention is scaled for {wanted} dimensions, transformers takes {scale}; take the "
                "original checkpoint"
            )


def _agree(stated: Any, built: Any) -> bool:
    if isinstance(stated, list):
        return all(_agree(one, built) for one in stated)
    if isinstance(stated, float) and isinstance(built, int | float):
        return isclose(stated, built, rel_tol=1e-6)
    return stated == built


def _check_numbers(path: Path, tensors: Iterable[tuple[str, str, int]], hf: Any) -> None:
    """Raise a UserError if tensors of the file have no place in the model."""
    held, used = sum(n for _, _, n in tensors), sum(weights.numel() for weights in hf.parameters())
    if held != used:
        usual = {"token_embd.weight", "output_norm.weight", "output.weight"}
        odd = sorted({name for name, _, _ in tensors if not name.startswith("blk.")} - usual)
        raise UserError(
            f"{path}: holds {held:,} weights, the model that transformers builds {used:,}"
            + (f" (it has no place for {', '.join(odd)}?)" if odd else "")
            + "; take the original checkpoint"
        )


@contextmanager
def _alone(path: Path) -> Generator[tuple[str, str]]:
    """A folder that holds only this file, because `transformers` would also read a config or tokenizer beside it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        file.symlink_to(path.resolve())
        yield folder, str(file)


@contextmanager
def _tensors_counted(bar: Bar) -> Generator[None]:
    """Let the loop over tensors in `transformers` advance our progress bar instead of its own."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    def counted(tensors: Iterable[Any], **_: Any) -> Generator[Any]:
        for tensor in tensors:
            yield tensor
            bar.step()

    module: Any = reader  # tqdm is not a public name of this module
    own = module.tqdm
    logging.disable_progress_bar()
    module.tqdm = counted
    try:
        yield
    finally:
        module.tqdm = own


def _digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
