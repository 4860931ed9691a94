"""Which tokens are special: what the tokenizer says, and where the model's configuration is believed."""

from typing import Any

import pytest
import torch
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Fast
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scalar_sae import console
from scalar_sae.corpora import Corpus
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import counted, parse_rule, remark
from scalar_sae.tokenizer import Ascii, Pretrained
from tests.helpers import tiny_lm
from tests.lm.test_hooked import StandIn

LETTERS = {chr(97 + i): i for i in range(26)}


def tokenizer(*marks: str | AddedToken, vocabulary: dict[str, int] = LETTERS, **named: str) -> Pretrained:
    """A tokenizer of letters; `marks` are special tokens with ids behind the vocabulary's."""
    inner = Fast(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.add_special_tokens(list(marks))
    return Pretrained(PreTrainedTokenizerFast(tokenizer_object=inner, **named), "letters")


def llama(text: Pretrained | None, vocab_size: int = 32, **config: Any) -> LanguageModel:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    hf = LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, max_position_embeddings=32, **sizes, **config))
    return LanguageModel(hf, "llama", text)


def test_the_defaults_of_a_configuration_do_not_make_text_special():
    lm = llama(tokenizer())
    assert (lm.hf.config.bos_token_id, lm.hf.config.eos_token_id) == (1, 2)
    assert lm.tokenizer.decode([1, 2]).split() == ["b", "c"]
    assert lm.special_tokens == ()


def test_the_tokenizer_names_special_tokens_by_role_and_by_flag():
    """As Llama 3: a beginning, an end, and marks of turns that no role names."""
    lm = llama(tokenizer("<bos>", "<eos>", "<turn>", bos_token="<bos>", eos_token="<eos>"))
    assert lm.tokenizer.decode([28]) == "<turn>"
    assert lm.special_tokens == (26, 27, 28)


def test_padding_that_is_the_end_counts_once():
    assert llama(tokenizer("<eos>", eos_token="<eos>", pad_token="<eos>")).special_tokens == (26,)


@pytest.mark.parametrize("where", ["config", "generation"])
def test_several_ends_are_believed_where_the_tokenizer_has_no_text_for_them(where: str):
    lm = llama(tokenizer(), bos_token_id=None, eos_token_id=[3, 27, 40] if where == "config" else None)
    if where == "generation":
        lm.hf.generation_config = GenerationConfig(eos_token_id=[3, 27, 40])
    assert lm.special_tokens == (27,)  # 3 is the letter d, 40 lies beyond the vocabulary


@pytest.mark.parametrize("mark", ["<s>", "<|endoftext|>", "[PAD]"])
def test_a_mark_that_is_an_ordinary_entry_of_the_vocabulary_is_special_where_the_configuration_names_it(mark: str):
    vocabulary = {mark: 0, **{letter: number + 1 for letter, number in LETTERS.items()}}
    named = {"bos_token_id": 0, "eos_token_id": 2}
    assert llama(tokenizer(vocabulary=vocabulary), **named).special_tokens == (0,)
    assert llama(tokenizer(vocabulary=vocabulary), bos_token_id=None, eos_token_id=None).special_tokens == ()


def test_ids_that_stand_for_nothing_are_left_out():
    lm = llama(tokenizer(), bos_token_id=-1, eos_token_id=None, pad_token_id=31)
    assert lm.special_tokens == (31,)


def test_ascii_text_has_no_special_tokens_whatever_the_configuration_says():
    hf = tiny_lm().hf
    hf.config.bos_token_id, hf.config.eos_token_id = 5, [7, 8]
    assert LanguageModel(hf, "tiny", Ascii()).special_tokens == ()


def test_without_a_tokenizer_the_configuration_is_believed_and_that_is_said(capsys: pytest.CaptureFixture[str]):
    console.say_once.cache_clear()  # another test may have had the same said
    lm = llama(None)
    assert lm.special_tokens == lm.special_tokens == (1, 2)
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("no tokenizer says which tokens are special") == 1
    assert "count as special: ids 1, 2" in said
    assert llama(None, bos_token_id=None, eos_token_id=None).special_tokens == ()
    assert "so none is special" in capsys.readouterr().err.replace("\n", " ")


def test_a_hooked_models_tokenizer_is_asked():
    hooked = StandIn()
    hooked.tokenizer = tokenizer("<eos>", eos_token="<eos>").inner
    assert LanguageModel.load(hooked).special_tokens == (26,)


def test_a_rule_says_which_ids_are_left_out():
    lm = llama(tokenizer("<bos>", bos_token="<bos>"))
    assert lm.special_ids("skip") == lm.special_tokens == (26,)
    assert lm.special_ids("count") == ()
    assert lm.special_ids((7, 3)) == (3, 7)
    assert lm.special_ids("first") == ("first", 26)
    assert lm.special_ids((7, "first", 3)) == ("first", 3, 7)
    with pytest.raises(UserError, match="special token 32: the vocabulary of llama ends at 31"):
        lm.special_ids((3, 32))


def test_rules_are_read_as_they_are_written():
    assert [parse_rule(text) for text in ("skip", "count", "7", "3, 0,3")] == ["skip", "count", (7,), (0, 3)]
    assert [parse_rule(text) for text in ("first", "2,first,0")] == ["first", ("first", 0, 2)]
    for text in ("", "skp", "-1", "1,x", "skip,0", "frist"):
        with pytest.raises(UserError, match="rule for special tokens"):
            parse_rule(text)
    with pytest.raises(UserError, match=r"^special token 99999999999999999999: larger than the id of any token"):
        parse_rule("0,99999999999999999999")


def test_what_is_left_out_is_counted_and_said():
    tokens = torch.tensor([[0, 4, 5, 0], [0, 6, 0, 7]])
    assert counted(tokens, (0,)).tolist() == [[False, True, True, False], [False, True, False, True]]
    said = remark(tokens, (0, 9))
    assert said is not None
    assert said.startswith("4 of 8 positions hold special tokens (ids 0, 9)")
    assert remark(tokens, (9,)) is remark(tokens, ()) is None
    assert counted(tokens, ("first", 0)).tolist() == [[False, True, True, False], [False, True, False, True]]
    assert counted(tokens, ("first",)).tolist() == [[False, True, True, True]] * 2
    said = remark(tokens, ("first", 5))
    assert said is not None
    assert said.startswith("3 of 8 positions hold special tokens (the first token of every prompt, ids 5)")
    many = remark(tokens, range(20))
    assert many is not None
    assert "0, 1, 2, 3, 4, 5, 6, 7 and 12 more" in many


def test_a_special_token_beyond_the_embedding_is_named():
    """The end of a text that fine-tuning added to the tokenizer and not to the model; the beginning of a prompt."""
    lm = llama(tokenizer("<bos>", *(f"<{n}>" for n in range(5)), "<eos>", eos_token="<eos>", bos_token="<bos>"))
    assert (lm.tokenizer.eos, lm.d_vocab, lm.special_tokens) == (32, 32, tuple(range(26, 32)))
    remedy = r"\(<eos>, a special token of its tokenizer\): the vocabulary of llama ends at 31; take the tokenizer that"
    with pytest.raises(UserError, match=rf"token 32 {remedy}"):
        lm.check_tokens(torch.tensor([[3, 32]]))
    with pytest.raises(UserError, match=r"token 40: .* made with another model's tokenizer"):
        lm.check_tokens(torch.tensor([[3, 40]]))
    nothing = torch.zeros(0, dtype=torch.int16)
    assert Corpus("text", nothing, torch.tensor([3, 4]), lm.tokenizer.fingerprint, start=(32,)).extremes == (0, 32)
