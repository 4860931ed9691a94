"""Tokenizers are what their `tokenizer.json` says, also where a class of `transformers` says otherwise."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from scalar_sae.lm.loading import Origin, load_tokenizer
from scalar_sae.tokenizer import Pretrained

TEXT = "In 1999 it cost 12345 dollars, in 2019 it cost 1234; isn't it so? " * 20


def write(folder: Path, tokenizer_class: str, *, digits: bool) -> Tokenizer:
    """A byte-level BPE with merges of digits, in the files of a Llama."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([TEXT], trainer)
    if digits:
        split = pre_tokenizers.Digits(individual_digits=True)
        inner.pre_tokenizer = pre_tokenizers.Sequence([split, inner.pre_tokenizer])
    inner.save(str(folder / "tokenizer.json"))
    end = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(end | {"tokenizer_class": tokenizer_class}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return inner


@pytest.mark.parametrize("tokenizer_class", ["GPT2Tokenizer", "GPTNeoXTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("digits", [True, False])
def test_numbers_are_split_as_the_file_says(
    tokenizer_class: str, digits: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    inner = write(tmp_path, tokenizer_class, digits=digits)
    found = load_tokenizer(Origin(str(tmp_path)), "small", 400)
    assert isinstance(found, Pretrained)
    assert found.encode(TEXT)[0].tolist() == inner.encode(TEXT, add_special_tokens=False).ids
    assert (found.special, found.eos, found.start) == ((0,), 0, ())
    said = capsys.readouterr().err
    own_rules = {
        "GPT2Tokenizer": digits,
        "GPTNeoXTokenizer": True,
        "PreTrainedTokenizerFast": False,
    }  # NeoX joins accents
    assert ("that is followed" in said) == own_rules[tokenizer_class]
    found.save(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "llama"}')
    again = load_tokenizer(Origin(str(tmp_path / "saved")), "small", 400)
    assert again.fingerprint == found.fingerprint


def test_letters_and_their_accents_are_joined_as_the_file_says(tmp_path: Path):
    inner = write(tmp_path, "GPT2Tokenizer", digits=False)
    inner.normalizer = normalizers.NFC()
    inner.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(Origin(str(tmp_path)), "small", 400)
    text = "cafe\u0301"
    assert found.encode(text)[0].tolist() == inner.encode(text, add_special_tokens=False).ids
