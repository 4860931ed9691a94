"""Tokenizers and corpora of a model that has its own: GPT-2's real vocabulary, built offline."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer

from scalar_sae.corpora import load_corpus, load_held_out, windows
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.tokenizer import Ascii, Pretrained, smallest_dtype
from tests.helpers import shared, tiny_lm

END = "<|endoftext|>"


def gpt2_bytes() -> list[str]:
    """The 256 byte symbols in GPT-2's order: printable ones first, the others as characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]


@pytest.fixture(scope="module")
def gpt2() -> GPT2Tokenizer:
    lines = shared("data", "gpt2_merges.txt").read_text(encoding="utf-8").splitlines()
    merges: Any = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    vocabulary = [*gpt2_bytes(), *("".join(pair) for pair in merges), END]
    return GPT2Tokenizer(vocab={token: number for number, token in enumerate(vocabulary)}, merges=merges)


def test_gpt2s_real_tokenizer(gpt2: GPT2Tokenizer):
    tokenizer = Pretrained(gpt2, "gpt2")
    assert (tokenizer.d_vocab, tokenizer.start) == (50_257, ())
    ids, replaced = tokenizer.encode("Hello world, naïve ☃")
    assert ids[:3].tolist() == [15496, 995, 11]  # as published for "Hello world,"
    assert replaced == 0
    assert ids.dtype == torch.int32
    assert tokenizer.decode(ids.tolist()) == "Hello world, naïve ☃"


def test_a_corpus_in_the_models_own_tokens(gpt2: GPT2Tokenizer, tmp_path: Path):
    text = shared("data", "wikitext2_valid.txt").read_text(encoding="utf-8")[:60_000]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    tokenizer = Pretrained(gpt2, "gpt2")
    corpus = load_corpus(str(tmp_path / "text.txt"), tokenizer)
    whole = load_held_out(str(tmp_path / "text.txt"), tokenizer)
    assert torch.equal(torch.cat([corpus.train, corpus.val]), whole.val)
    assert tokenizer.decode(whole.val.tolist()) == text
    assert (corpus.tokenizer, corpus.start, corpus.replaced) == (tokenizer.fingerprint, (), 0)
    assert len(text) / 6 < whole.val.numel() < len(text) / 3
    assert corpus.fingerprint != load_corpus(str(tmp_path / "text.txt"), Ascii()).fingerprint


def with_bos() -> PreTrainedTokenizerFast:
    """A tokenizer of characters that puts a token in front of a text, as Llama's and Gemma's do."""
    inner = Fast(models.BPE(vocab={"<s>": 0, **{chr(97 + i): i + 1 for i in range(26)}}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")


def test_every_prompt_starts_as_the_tokenizer_starts_a_text(tmp_path: Path):
    tokenizer = Pretrained(with_bos(), "characters")
    (tmp_path / "text.txt").write_text("abcdefghij" * 100)
    corpus = load_held_out(str(tmp_path / "text.txt"), tokenizer)
    assert corpus.start == (0,)
    assert 0 not in corpus.val
    rows = windows(corpus.val, 5, corpus.name, corpus.start)
    assert rows.shape == (250, 5)
    assert (rows[:, 0] == 0).all()
    assert torch.equal(rows[:, 1:].flatten(), corpus.val.long())


@pytest.mark.parametrize(
    ("template", "start"),
    [("[gMASK] <sop> $A", (27, 28)), ("<s> $A </s>", (0,)), ("$A </s>", ()), ("$A", ()), ("</s> $A", (29,))],
)
def test_all_that_a_tokenizer_puts_in_front_begins_every_prompt(template: str, start: tuple[int, ...], tmp_path: Path):
    """GLM-4's puts two tokens there; others one that is not called their BOS; what they put behind begins nothing."""
    ids = {"<s>": 0, "[gMASK]": 27, "<sop>": 28, "</s>": 29}
    inner = Fast(models.BPE(vocab={**ids, **{chr(97 + i): i + 1 for i in range(26)}}, merges=[]))
    inner.add_special_tokens(list(ids))
    inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(ids.items()))
    tokenizer = Pretrained(PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>"), "marks")
    assert tokenizer.start == start
    (tmp_path / "text.txt").write_text("abcdefghij" * 100)
    corpus = load_held_out(str(tmp_path / "text.txt"), tokenizer)
    own = 5 - len(start)
    rows = windows(corpus.val, 5, corpus.name, corpus.start)
    assert rows.tolist() == [[*start, *corpus.val[i : i + own].tolist()] for i in range(0, 1000 // own * own, own)]
    np.save(tmp_path / "rows.npy", rows.numpy())  # what such prompts begin with is not put there once more
    again = load_held_out(str(tmp_path / "rows.npy"), tokenizer)
    assert (again.start, again.length) == (start, 5)
    assert torch.equal(windows(again.val, 5, start=again.start), rows)
    if start:
        with pytest.raises(UserError, match=rf"every one begins with {len(start)} that the tokenizer puts in front"):
            windows(corpus.val, len(start), corpus.name, start)


def test_ids_take_no_more_room_than_the_vocabulary_needs():
    assert [smallest_dtype(n) for n in (128, 256, 257, 32_768, 32_769, 256_000)] == [
        torch.uint8, torch.uint8, torch.int16, torch.int16, torch.int32, torch.int32,
    ]  # fmt: skip


def test_a_model_finds_the_tokenizer_beside_its_weights(tmp_path: Path):
    lm = tiny_lm()
    lm.hf.save_pretrained(tmp_path / "lm")
    with pytest.raises(UserError, match="no tokenizer beside the weights"):
        _ = LanguageModel.load(tmp_path / "lm").tokenizer
    LanguageModel.load(tmp_path / "lm", tokenizer=with_bos()).save(tmp_path / "both")
    found = LanguageModel.load(tmp_path / "both").tokenizer
    assert found.encode("bad")[0].tolist() == [2, 1, 4]
    assert found.start == (0,)
    assert json.loads((tmp_path / "both" / "config.json").read_text())["model_type"] == "gpt2"
    (tmp_path / "both" / "tokenizer.json").write_text("{broken")
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        _ = LanguageModel.load(tmp_path / "both").tokenizer


def test_the_shipped_model_reads_ascii():
    assert LanguageModel.load("python-stdlib").tokenizer == Ascii()
