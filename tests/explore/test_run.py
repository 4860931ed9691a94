"""A run directory in Python: its parts, names in place of sites and blocks, and mistakes."""

import pytest
import torch

import scalar_sae as ss
from scalar_sae.errors import UserError
from scalar_sae.lm.checks import as_prompts, encoded
from scalar_sae.saes.sources import Group
from scalar_sae.tokenizer import Ascii
from tests.helpers import random_sae, tiny_lm

PAIR = {ss.Site("resid_mid", 0): random_sae(16, 24, 4, 1), ss.Site("resid_post", 0): random_sae(16, 20, 4, 2)}


def test_a_group_of_saes_is_asked_by_any_name_of_a_place():
    saes = Group(PAIR)
    for name in ("resid_mid.0", "blocks.0.hook_resid_mid", ss.Site("resid_mid", 0)):
        assert saes[name] is PAIR[ss.Site("resid_mid", 0)]
    assert saes["resid_pre.1"] is PAIR[ss.Site("resid_post", 0)]
    with pytest.raises(UserError, match=r"no SAE at mlp_in.0; there are SAEs at resid_mid.0, resid_post.0"):
        saes["mlp_in.0"]
    with pytest.raises(UserError, match="unknown site"):
        saes["resid_nowhere.0"]


def test_names_do_where_sites_and_blocks_do():
    lm, tokens = tiny_lm(), torch.arange(10).view(1, 10)
    pair = ss.Pair.between(lm, "ff_block.0", PAIR)
    assert pair.block == ss.Block.parse("ff_block.0")
    site = ss.Site("resid_mid", 0)
    x = lm.activations(tokens, ["resid_mid.0"])["resid_mid.0"]
    assert torch.equal(x, lm.activations(tokens, [site])[site])
    y = lm.run("resid_mid.0", "resid_post.0", x)
    assert torch.equal(y, lm.run(site, ss.Site("resid_post", 0), x))
    torch.testing.assert_close(lm.logits_from("resid_post.0", y), lm.logits(tokens), atol=1e-5, rtol=1e-5)


def test_a_pair_skips_the_special_tokens_of_its_model_unless_told_otherwise():
    lm = tiny_lm()
    lm.special_tokens = (3, 5)
    assert ss.Pair.between(lm, "ff_block.0", PAIR).special == (3, 5)
    assert ss.Pair.between(lm, "ff_block.0", PAIR, special="count").special == ()
    assert ss.Pair.between(lm, "ff_block.0", PAIR, special=(7,)).special == (7,)


def test_a_text_becomes_tokens_that_the_model_reads():
    lm = tiny_lm(d_vocab=128)
    tokens = lm.tokens("def f(x)")
    assert tokens.tolist() == [list(b"def f(x)")]
    encoded_ids, _ = lm.tokenizer.encode("def f(x)")
    assert encoded_ids.dtype == torch.uint8
    assert torch.equal(lm.logits(encoded_ids.unsqueeze(0)), lm.logits(tokens))
    assert torch.equal(lm.logits(tokens), lm.hf(tokens).logits)
    for text, message in (("", "no tokens"), ("naïve ☃", "2 of its characters"), ("a" * 17, "reads at most 16")):
        with pytest.raises(UserError, match=message):
            lm.tokens(text)


def test_a_text_stands_behind_what_its_tokenizer_puts_in_front():
    assert encoded("ab", Ascii(start=(7, 1)), "tiny").tolist() == [[7, 1, *b"ab"]]


@pytest.mark.parametrize("tokens", [torch.zeros(1, 3), torch.zeros(3, dtype=torch.long), torch.ones(1, 3).bool()])
def test_tokens_of_another_kind_are_refused_in_one_line(tokens: torch.Tensor):
    with pytest.raises(UserError, match=r"expected integers of shape \[batch, token\].*lm\.tokens\(text\)"):
        as_prompts(tokens)


def test_tokens_outside_the_vocabulary_are_refused():
    for token, message in ((-1, "token ids begin at 0"), (32, "the vocabulary of tiny ends at 31")):
        with pytest.raises(UserError, match=message):
            tiny_lm().logits(torch.tensor([[token]]))


def test_objects_are_short_when_they_are_shown():
    lm = tiny_lm()
    sae = PAIR[ss.Site("resid_mid", 0)]
    assert repr(lm) == "LanguageModel(tiny: 2 layers, d_model 16, 32 tokens)"
    assert repr(sae) == "SAE(16 -> 24, TopK 4)"
    pair = ss.Pair.between(lm, "ff_block.0", PAIR)
    assert repr(pair) == "Pair(ff_block.0 of tiny: 24 x 20 latents)"
    assert repr(ss.mean_ablated(pair, torch.arange(10).view(1, 10))).endswith("mean ablation)")
    jump = random_sae(16, 3000, 4, 0, kind="jumprelu")
    assert repr(jump) == "SAE(16 -> 3,000, JumpReLU)"
