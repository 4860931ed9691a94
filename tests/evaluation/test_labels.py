"""Labels from the command line, and the first-letter task on a model whose absorption is known."""

from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from scalar_sae.errors import UserError
from scalar_sae.evaluation.labels.labelled import evaluate_labels
from scalar_sae.evaluation.labels.labels import FEWEST, character_labels, characters
from scalar_sae.evaluation.labels.spelling import first_letters, words_of
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.toy import toy_gpt
from scalar_sae.records.results import Results
from scalar_sae.report.page import render
from scalar_sae.saes.activation import ReLU
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import SaeCard, save_sae
from scalar_sae.sites import Site
from scalar_sae.tokenizer import Ascii, Pretrained, byte_pairs
from tests.helpers import random_sae, tiny_lm
from tests.test_study import scalar
from tests.test_tokenizer import gpt2  # noqa: F401

HERE = Site("resid_pre", 0)
D = 2 * 26
"""A dimension a letter, and one for a special word of each letter."""


@pytest.fixture(scope="module")
def tokenizer() -> Pretrained:
    g = torch.Generator().manual_seed(0)
    ends = torch.randint(26, (26, 40, 2), generator=g)
    words = ["".join(ascii_lowercase[i] for i in (first, *end)) for first in range(26) for end in ends[first].tolist()]
    return byte_pairs([" ".join(words)] * 20, 2500)


@pytest.fixture(scope="module")
def special(tokenizer: Pretrained) -> dict[str, list[int]]:
    """One word of each letter: a frequent child would be split off, not absorbed."""
    words = words_of(tokenizer)
    return {c: [i for i, word in words.items() if word.strip()[0].lower() == c][:1] for c in ascii_lowercase}


@pytest.fixture(scope="module")
def speller(tokenizer: Pretrained, special: dict[str, list[int]]) -> LanguageModel:
    """A model whose embedding says the first letter, and whether the word is special."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=tokenizer.d_vocab, n_positions=192, n_embd=D, n_layer=1, n_head=2, use_cache=False,
                        bos_token_id=None, eos_token_id=None)  # fmt: skip
    hf = GPT2LMHeadModel(config)
    embedding = torch.zeros(tokenizer.d_vocab, D)
    for token, word in words_of(tokenizer).items():
        embedding[token, ord(word.strip()[0].lower()) - ord("a")] = 1
    for number, tokens in enumerate(special.values()):
        embedding[tokens, 26 + number] = 1
    hf.transformer.wte.weight.data.copy_(embedding)
    hf.transformer.wpe.weight.data.zero_()
    return LanguageModel(hf, "speller", tokenizer)


def letters() -> SAE:
    """A latent a letter, a latent for each letter's special words."""
    eye = torch.eye(D)
    return SAE(eye, torch.zeros(D), eye, torch.zeros(D), ReLU())


def absorbing() -> SAE:
    """The same, but the letter is silent where its special latent fires, which writes it instead."""
    sae = letters()
    W_enc, W_dec = sae.W_enc.clone(), sae.W_dec.clone()
    for i in range(26):
        W_enc[26 + i, i] = -1
        W_dec[26 + i, i] = 1
    return SAE(W_enc, sae.b_enc, W_dec, sae.b_dec, ReLU())


def test_first_letter_absorption_is_the_share_of_absorbed_words(speller: LanguageModel, special: dict[str, list[int]]):
    everything = first_letters(speller, 1800)
    some = {letter: everything.labels[letter] for letter in "abcdef"}
    task = replace(everything, labels=some, parents=tuple((letter, None) for letter in some), classes=tuple(some))
    found = evaluate_labels(speller, {"letters": {HERE: letters()}, "absorbing": {HERE: absorbing()}}, task)
    by_key = {(record.method, record.thresholds): record for record in found.absorption}
    assert len(by_key) == 4
    good, bad = by_key["letters", "SAEBench code"], by_key["absorbing", "SAEBench code"]
    assert (good.share, good.cosine, good.most) == (0.4, 0.1, 3)
    assert good.fraction == good.full == 0
    asked = task.tokens.flatten()[task.rows][1::2]
    for parent in bad.parents:
        mine = task.labels[parent.parent][1::2]
        absorbed = torch.isin(asked, torch.tensor(special[parent.parent])) & mine
        assert parent.n == mine.sum()
        assert parent.main == [ascii_lowercase.index(parent.parent)]
        assert parent.fraction == pytest.approx(absorbed.sum().item() / mine.sum().item(), abs=1e-6)
        assert parent.full == pytest.approx(parent.fraction)
    assert len(bad.parents) == 6
    assert bad.fraction > 0
    assert by_key["absorbing", "SAEBench paper"].fraction >= bad.fraction - 1e-6
    for probes in found.probes:
        assert {label.dense for label in probes.labels} == {1.0}
    assert found.probes[0].labels[0].sparse[1] == 1
    assert found.probes[0].tpp[2] > 0.3


def test_a_spelling_prompt_is_what_the_tokenizer_makes_of_its_text(gpt2):  # noqa: F811
    lm = tiny_lm()
    lm.context, lm.d_vocab = 128, len(gpt2)
    lm._tokenizer = Pretrained(gpt2, "gpt2")
    task = first_letters(lm, 40)
    assert task.tokens.shape == (40, 10 * 8 + 2)
    for prompt in task.tokens.tolist():
        text = lm.tokenizer.decode(prompt)
        *examples, asked = text.split("\n")[1:]
        assert asked.strip().isalpha()
        for example in examples:
            word, _, answer = example.partition(" has the first letter: ")
            assert answer == word.strip()[0].upper()
        assert asked not in [example.partition(" has")[0] for example in examples]
        joined = lm.tokenizer.encode(text)[0].tolist()  # words with no space before them may merge with the newline
        assert joined == prompt or len(joined) <= len(prompt)
    label = task.labels[lm.tokenizer.decode([int(task.tokens[0, -1])]).strip()[0].lower()]
    assert label[0]


def test_characters_of_one_prompt_are_in_one_half():
    text = Ascii().encode("if Foo(x2): return [7]\n" * 40)[0].long()[:900].view(9, 100)
    task = characters(text, most=450)
    assert task.tokens.shape == (4, 100)
    prompts = task.rows // 100
    assert set(prompts[::2].tolist()) & set(prompts[1::2].tolist()) == set()
    assert set(prompts.tolist()) == {0, 1, 2, 3}
    for name, label in character_labels(task.tokens).items():
        assert torch.equal(task.labels[name], label.flatten()[task.rows])


def test_labels_that_never_occur_are_named():
    prompts = Ascii().encode("ab cd EF " * 100)[0].long().view(9, 100)
    task, missing = characters(prompts).usable()
    assert missing == ["digit", "bracket", "keyword", "indentation"]
    assert set(task.classes) == {"space", "letter"}
    assert task.crossed == (("vowel", "upper"), ("upper", "vowel"))
    assert ("not_space", "digit") not in task.parents
    with pytest.raises(UserError, match=f"none of the labels .* occurs {FEWEST} times in both halves of the 400"):
        characters(torch.full((4, 100), ord("."))).usable()
    with pytest.raises(UserError, match="two prompts"):
        characters(prompts[:1])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    LanguageModel(toy_gpt(), "toy").hf.save_pretrained(folder / "lm")
    sae = random_sae(64, 96, 8, 0)
    save_sae(sae, SaeCard.of(sae, "topk", "topk", HERE, {}), folder / "saes" / "topk" / str(HERE))
    (folder / "text.txt").write_text("def f(x1):\n    return [x1 for Y in (2, 33)]\n" * 60)
    return folder


def test_the_command(run: Path):
    arguments = ("measure", run, "--tokens", run / "text.txt", "--prompts", 16, "--context", 64)
    scalar(*arguments)
    assert Results.read(run / "results.json").probes == []
    done = scalar(*arguments, "--labels", "characters")
    assert "SAEBench paper" in done.stdout
    results = Results.read(run / "results.json")
    assert [record.thresholds for record in results.absorption] == ["SAEBench paper", "SAEBench code"]
    assert results.probes[0].labels[0].sparse.keys() == {1, 2, 5}
    assert results.probes[0].n_rows == 16 * 64
    page = render(results, {}, "run")
    for section in ("absorption", "probes"):
        assert f'<section id="{section}">' in page
    assert Results.model_validate_json(results.model_dump_json()) == results


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [("letters", "did you mean"), ("first-letters", "take --labels characters")],
)
def test_the_command_used_wrongly(run: Path, labels: str, complaint: str):
    done = scalar("measure", run, "--tokens", run / "text.txt", "--prompts", 4, "--labels", labels, check=False)
    assert done.returncode == 2
    assert complaint in done.stderr
