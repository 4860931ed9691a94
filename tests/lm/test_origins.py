"""Which files a model is read from: shards, pickles, revisions and subfolders of the Hub, precisions; never code."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from scalar_sae.errors import UserError
from scalar_sae.lm.loading import model_in
from scalar_sae.lm.model import LanguageModel
from scalar_sae.saes.store import SaeCard, save_sae
from scalar_sae.sites import Site
from tests.helpers import random_sae
from tests.lm.gguf_files import digits_tokenizer, small_llama, write_gguf
from tests.test_study import scalar

TEXT = "def hue_to_rgb(parser, color): return 1.0"
TOKENS = torch.arange(22).view(2, 11)


def learned_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Byte pairs of a text: other texts give other ids, in a vocabulary of the same size."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    inner.train_from_iterator([text] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def small_gpt2(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=270, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and tokenizer in a folder."""
    folder = tmp_path_factory.mktemp("origins") / "lm"
    small_gpt2(0).save_pretrained(folder)
    learned_tokenizer(TEXT).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, and no network: me/m is one model on `main`, another at `step1`, a third in a subfolder."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = cache / "models--me--m"
    texts = {"main": "colours in columns, hues in huts", "step1": "parse the parser, return to the returns"}
    for seed, (revision, text) in enumerate(texts.items()):
        commit = "ab"[seed] * 40
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        for place, offset in (("", 0), ("final", 2)):
            folder = repository / "snapshots" / commit / place
            small_gpt2(seed + offset).save_pretrained(folder)
            learned_tokenizer(text + " final" * offset).save_pretrained(folder)
    return cache


@pytest.mark.parametrize(
    ("source", "options", "seed", "files"),
    [
        ("me/m", {}, 0, "a" * 40),
        ("me/m", {"revision": "step1"}, 1, "b" * 40),
        ("me/m@step1", {}, 1, "b" * 40),
        ("hf://me/m@step1", {}, 1, "b" * 40),
        ("me/m", {"subfolder": "final"}, 2, "a" * 40 + "/final"),
        ("hf://me/m/final", {}, 2, "a" * 40 + "/final"),
        ("me/m@step1/final", {}, 3, "b" * 40 + "/final"),
        ("me/m", {"revision": "step1", "subfolder": "final"}, 3, "b" * 40 + "/final"),
    ],
)
def test_weights_and_tokenizer_are_of_one_revision_and_subfolder(
    hub: Path, source: str, options: dict[str, Any], seed: int, files: str
):
    lm = LanguageModel.load(source, **options)
    own = AutoTokenizer.from_pretrained(hub / "models--me--m" / "snapshots" / files)
    assert lm.tokenizer.encode(TEXT)[0].tolist() == own(TEXT).input_ids
    assert torch.equal(lm.hf.transformer.wte.weight, small_gpt2(seed).transformer.wte.weight)


def test_the_tokenizer_is_of_the_commit_of_the_weights_even_if_the_branch_moves_on(hub: Path):
    lm = LanguageModel.load("me/m")
    (hub / "models--me--m" / "refs" / "main").write_text("b" * 40)
    own = AutoTokenizer.from_pretrained(hub / "models--me--m" / "snapshots" / ("a" * 40))
    assert lm.tokenizer.encode(TEXT)[0].tolist() == own(TEXT).input_ids
    moved = LanguageModel.load("me/m")
    assert moved.tokenizer.encode(TEXT)[0].tolist() != own(TEXT).input_ids


def test_a_module_does_not_say_its_revision_so_the_user_is_told_which_tokenizer_is_taken(
    hub: Path, capsys: pytest.CaptureFixture[str]
):
    lm = LanguageModel.load(GPT2LMHeadModel.from_pretrained("me/m", revision="step1"))
    assert lm.tokenizer.encode(TEXT)[0].tolist() == AutoTokenizer.from_pretrained("me/m")(TEXT).input_ids
    assert "the tokenizer is that of me/m, main; if the weights are of another revision" in capsys.readouterr().err


def test_a_cache_of_the_users_choice_holds_for_the_tokenizer_too(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.rename(tmp_path / "elsewhere")
    lm = LanguageModel.load("me/m", cache_dir=tmp_path / "elsewhere", token="not-a-token")
    assert len(lm.tokenizer.encode(TEXT)[0])
    assert "not-a-token" not in repr(lm._origin)


def test_addresses_that_contradict_themselves(hub: Path, saved: Path):
    with pytest.raises(UserError, match="names the revision 'step1', the option revision is 'main'; give one"):
        LanguageModel.load("me/m@step1", revision="main")
    with pytest.raises(UserError, match="on this machine, where there is no revision 'main'; leave it out"):
        LanguageModel.load(saved, revision="main")
    with pytest.raises(UserError, match=r"unknown language model 'runs/no/such': expected one of"):
        LanguageModel.load("runs/no/such")
    with pytest.raises(UserError, match=r"config.json: a single file; give the folder"):
        LanguageModel.load(saved / "config.json")


def test_a_gguf_file_on_the_hub(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SCALAR_SAE_CACHE", str(tmp_path / "cache"))
    folder = hub / "models--me--m" / "snapshots" / ("b" * 40) / "q8"
    folder.mkdir()
    write_gguf(folder / "x.gguf", small_llama(), digits_tokenizer())
    for source, options in (
        ("hf://me/m@step1/q8/x.gguf", {}),
        ("me/m", {"revision": "step1", "gguf_file": "q8/x.gguf"}),
        (folder, {"gguf_file": "x.gguf"}),
    ):
        lm = LanguageModel.load(source, **options)
        assert torch.equal(lm.hf.model.embed_tokens.weight, small_llama().model.embed_tokens.weight)
    with pytest.raises(UserError, match=r"hf://me/m/none.gguf: cannot be loaded from the Hub"):
        LanguageModel.load("hf://me/m/none.gguf")
    with pytest.raises(
        UserError, match=r"q8: no config.json there; a GGUF file is given by its name, such as .*x.gguf"
    ):
        LanguageModel.load(folder)


def shards(folder: Path) -> None:
    small_gpt2(0).save_pretrained(folder, max_shard_size="20KB")


def pickle_(folder: Path) -> None:
    small_gpt2(0).config.save_pretrained(folder)
    torch.save(small_gpt2(0).state_dict(), folder / "pytorch_model.bin")


def pickled_shards(folder: Path) -> None:
    hf = small_gpt2(0)
    hf.config.save_pretrained(folder)
    halves = [{}, {}]
    for number, (name, weights) in enumerate(hf.state_dict().items()):
        halves[number % 2][name] = weights
    files = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        torch.save(half, folder / file)
    where = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.mark.parametrize("write", [shards, pickle_, pickled_shards])
def test_weights_in_several_files_or_pickled(tmp_path: Path, write: Callable[[Path], None]):
    run = tmp_path / "run"
    (run / "lm").mkdir(parents=True)
    write(run / "lm")
    learned_tokenizer(TEXT * 2).save_pretrained(run / "lm")
    assert not (run / "lm" / "model.safetensors").exists()
    sae = random_sae(16, 20, 4, 0)
    save_sae(sae, SaeCard.of(sae, "topk", "topk", Site("resid_post", 1), {}), run / "saes" / "topk" / "resid_post.1")
    assert model_in(run) == run / "lm"
    lm = LanguageModel.load(run / "lm")
    with torch.no_grad():
        assert torch.equal(lm.logits(TOKENS), small_gpt2(0)(TOKENS).logits)
    assert f"language model: {run / 'lm'}" in scalar("ls", run).stdout


def test_a_shard_that_is_missing(tmp_path: Path):
    shards(tmp_path)
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(UserError, match=r"cannot be loaded as a causal language model \(.*\)$"):
        LanguageModel.load(tmp_path)


def test_no_code_in_a_pickle_is_run(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'run'}",)

    small_gpt2(0).config.save_pretrained(tmp_path)
    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"transformer.wte.weight": Evil()}, file)
    with pytest.raises(UserError, match=r"cannot be loaded as a causal language model"):
        LanguageModel.load(tmp_path)
    assert not (tmp_path / "run").exists()


def test_no_code_of_a_repository_is_run_and_nobody_is_asked(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass C: pass\n")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.C"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        LanguageModel.load(tmp_path)
    small_gpt2(0).save_pretrained(tmp_path)
    own = {"tokenizer_class": "C", "auto_map": {"AutoTokenizer": ["own.C", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(own))
    (tmp_path / "tokenizer.json").write_text((saved / "tokenizer.json").read_text())
    ids = LanguageModel.load(tmp_path).tokenizer.encode(TEXT)[0].tolist()
    assert ids == AutoTokenizer.from_pretrained(saved)(TEXT).input_ids
    assert "its tokenizer has code of its own, which is not run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="trust_remote_code: code from a repository is never run here"):
        LanguageModel.load(saved, trust_remote_code=True)


@pytest.mark.parametrize("named", ["bfloat16", torch.bfloat16, "torch.bfloat16"])
def test_a_precision_by_name(saved: Path, tmp_path: Path, named: Any):
    lm = LanguageModel.load(saved, dtype=named)
    assert {weights.dtype for weights in lm.hf.parameters()} == {torch.bfloat16}
    lm.save(tmp_path / "copy")
    assert LanguageModel.load(tmp_path / "copy").hf.dtype == torch.bfloat16
    assert LanguageModel.load(tmp_path / "copy", dtype="float32").hf.dtype == torch.float32
    assert LanguageModel.load("python-stdlib", dtype=named).hf.dtype == torch.bfloat16


def test_a_precision_that_there_is_not(saved: Path):
    for wrong in ("bf16", "int8", torch.int8):
        with pytest.raises(UserError, match=r"unknown dtype '(bf16|int8)': expected one of auto, float32, bfloat16"):
            LanguageModel.load(saved, dtype=wrong)


def test_weights_that_the_config_has_no_place_for(tmp_path: Path):
    hf = small_llama()
    state = hf.state_dict() | {"model.layers.1.self_attn.q_proj.bias": torch.ones(32)}
    hf.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match=r"holds model.layers.1.self_attn.q_proj.bias, by its config there is none"):
        LanguageModel.load(tmp_path)


def test_an_adapter_is_no_model(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter, no model; merge it"):
        LanguageModel.load(tmp_path)


def test_saes_in_a_folder_with_a_config_of_their_own_are_no_language_model(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"d_sae": 4}')
    (tmp_path / "model.safetensors").touch()
    assert model_in(tmp_path) is None
