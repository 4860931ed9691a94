"""GGUF files: the model is the one that was written, and what transformers would pass over is refused."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from scalar_sae.errors import UserError
from scalar_sae.lm import gguf as ours
from scalar_sae.lm.model import LanguageModel
from tests.lm.gguf_files import as_gguf, digits_tokenizer, small_llama, write_gguf

TOKENS = torch.arange(40).view(2, 20)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCALAR_SAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, **changes: Any) -> Path:
    return write_gguf(path, small_llama(), digits_tokenizer(), **changes)


def test_a_file_of_float32_is_the_model_that_was_written(tmp_path: Path):
    lm = LanguageModel.load(write(tmp_path / "x.gguf"))
    with torch.no_grad():
        assert torch.equal(lm.logits(TOKENS), small_llama()(TOKENS).logits)
    assert lm.name == str(tmp_path / "x.gguf")
    assert LanguageModel.load(tmp_path / "x.gguf", dtype=torch.bfloat16).hf.dtype == torch.bfloat16


def test_quantised_weights_are_those_of_llama_cpps_own_dequantisation(tmp_path: Path, cache: Path):
    kind = gguf.GGMLQuantizationType.Q8_0
    lm = LanguageModel.load(write(tmp_path / "x.gguf", quantize=kind))
    written = as_gguf(small_llama())["blk.1.ffn_down.weight"]
    expected = gguf.dequantize(gguf.quantize(written, kind), kind)
    assert torch.equal(lm.hf.model.layers[1].mlp.down_proj.weight, torch.from_numpy(expected))
    assert not np.array_equal(expected, written)
    made_of = lm.hf.config.dequantized_from
    assert made_of["types"] == {"Q8_0": 15, "F32": 5}
    assert made_of["file"] == "x.gguf"
    lm.save(tmp_path / "saved")
    assert LanguageModel.load(tmp_path / "saved").hf.config.dequantized_from == made_of
    assert len(list((cache / "gguf").glob("[!.]*"))) == 1


def test_the_tokenizer_splits_digits_as_the_models_own_does(tmp_path: Path):
    text, own = "x =   3\n    y = 1999;  the  12 cats 12\n", digits_tokenizer()
    path = write(tmp_path / "x.gguf")
    ids = LanguageModel.load(path).tokenizer.encode(text)[0].tolist()
    assert ids == own(text).input_ids
    alone = AutoTokenizer.from_pretrained(tmp_path, gguf_file=str(path))
    assert alone(text).input_ids != ids, "transformers does it by itself now: _DIGITS_SPLIT is not needed any more"


def test_a_file_is_converted_once_and_again_when_its_content_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write(tmp_path / "x.gguf")
    first = LanguageModel.load(path).hf.name_or_path
    path.rename(tmp_path / "moved.gguf")
    with monkeypatch.context() as patch:
        patch.setattr(ours, "convert", None)
        assert LanguageModel.load(tmp_path / "moved.gguf").hf.name_or_path == first
    write(tmp_path / "moved.gguf", fields={"general.name": "other"})
    assert LanguageModel.load(tmp_path / "moved.gguf").hf.name_or_path != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": {"llama.rope.scaling.factor": 8.0}}, r"says llama.rope.scaling.factor = 8.0, which transformers"),
        ({"fields": {"llama.rope.scaling.type": "yarn"}}, "says llama.rope.scaling.type = yarn"),
        ({"fields": {"llama.attention.sliding_window": 16}}, "sliding_window = 16, transformers .* with None"),
        ({"fields": {"llama.attention.value_length": 4}}, "value_length = 4, transformers builds a model with 8"),
        ({"fields": {"llama.expert_count": 4}}, "says llama.expert_count = 4"),
        (
            {"tensors": {"rope_freqs.weight": np.ones(4, np.float32)}},
            r"28,196 weights, .* 28,192 .* no place for rope_freqs",
        ),
        ({"tensors": {"blk.0.attn_q.bias": np.ones(32, np.float32)}}, "weights, the model that transformers builds"),
        ({"leave_out": ("blk.1.ffn_up.weight",)}, "weights are missing: model.layers.1.mlp.up_proj.weight"),
        ({"architecture": "no-such"}, "transformers cannot .*no-such"),
        ({"fields": {"split.count": 3}}, "one of 3 parts; join them"),
        ({"fields": {"general.type": "adapter"}}, "holds no whole language model"),
        ({"fields": {"tokenizer.ggml.pre": "own-rule"}}, "splits text by the rule 'own-rule', which is not known"),
    ],
)
def test_what_transformers_would_pass_over_is_refused(
    tmp_path: Path, cache: Path, changes: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message) as caught:
        LanguageModel.load(write(tmp_path / "x.gguf", **changes))
    assert str(caught.value).startswith(f"{tmp_path / 'x.gguf'}: ")
    assert "\n" not in str(caught.value)
    assert not list((cache / "gguf").glob("[!.]*"))


def test_with_a_tokenizer_given_the_files_own_need_not_be_known(tmp_path: Path):
    path = write(tmp_path / "x.gguf", fields={"tokenizer.ggml.pre": "own-rule"})
    lm = LanguageModel.load(path, tokenizer=digits_tokenizer())
    assert lm.tokenizer.encode("x =   3")[0].tolist() == digits_tokenizer()("x =   3").input_ids
    with pytest.raises(UserError, match="own-rule"):
        LanguageModel.load(path)


def test_files_that_are_none(tmp_path: Path):
    path = write(tmp_path / "x.gguf")
    content = path.read_bytes()
    for cut in (0, 10, 1000, len(content) - 4000):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"x.gguf: (cannot be read as a GGUF file|holds no whole)"):
            LanguageModel.load(path)
    with pytest.raises(UserError, match=r"unknown language model .*none.gguf.: expected one of .*a GGUF file"):
        LanguageModel.load(tmp_path / "none.gguf")


def test_a_config_or_tokenizer_beside_the_file_is_not_read(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    lm = LanguageModel.load(write(tmp_path / "x.gguf"))
    assert lm.hf.config.model_type == "llama"
    assert lm.tokenizer.encode("x =   3")[0].tolist() == digits_tokenizer()("x =   3").input_ids
