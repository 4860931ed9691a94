"""What is said of single latents against the SAE's own activations, and a run directory in Python."""

import re
from pathlib import Path

import pytest
import torch

import scalar_sae as ss
from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.features import read_features
from scalar_sae.evaluation.features.tables import SCHEMAS
from tests.helpers import random_sae, tiny_lm

TOKENS = torch.randint(32, 127, (6, 12), generator=torch.Generator().manual_seed(0))
SAE = random_sae(16, 20, 4, 1)


@pytest.fixture(scope="module")
def lm() -> ss.LanguageModel:
    return tiny_lm(d_vocab=128)


def test_the_strongest_examples_are_those_of_the_sae(lm: ss.LanguageModel):
    features = ss.Features.of(lm, "resid_mid.0", SAE, TOKENS, n_examples=4)
    site = ss.Site("resid_mid", 0)
    acts = SAE.encode(lm.activations(TOKENS, [site])[site])
    shown = 0
    for latent in range(20):
        values, place = acts[..., latent].flatten().sort(descending=True)
        rows = features.examples(latent, n=3)
        assert [row["activation"] for row in rows] == pytest.approx(values[values > 0][:3].tolist())
        for row, at in zip(rows, place.tolist(), strict=False):
            prompt, position = at // 12, at % 12
            assert (row["prompt"], row["position"]) == (prompt, position)
            text = "".join(map(chr, TOKENS[prompt].tolist()))
            assert row["text"] == f"{text[:position]}«{text[position]}»{text[position + 1 : position + 9]}"
            shown += 1
        strongest = [chr(int(TOKENS.flatten()[at])) for at in place[values > 0][:4]]
        assert features.tokens(latent, n=4) == list(dict.fromkeys(strongest))
    assert shown > 20
    assert repr(features) == f"Features(20 latents, {int((acts > 0).flatten(0, 1).any(0).sum())} of them fire)"


def test_promoted_tokens_are_those_of_the_linearised_unembedding(lm: ss.LanguageModel):
    features, last = ss.Features.of(lm, "resid_post.1", SAE, TOKENS), "resid_post.1"
    x = lm.activations(TOKENS, [last])[last][:, -1].double()
    hf = tiny_lm(d_vocab=128).hf.double()
    of_last = torch.func.jacrev(lambda at: hf.lm_head(hf.transformer.ln_f(at)).sum(0))(x)  # [token, prompt, d_model]
    effect = SAE.W_dec.double() @ (of_last.sum(1) / len(x)).T
    for latent in range(20):
        order = effect[latent].argsort(descending=True).tolist()
        assert features.promotes(latent, n=5) == list(map(chr, order[:5]))
        assert features.suppresses(latent, n=5) == list(map(chr, order[::-1][:5]))


def test_tables_on_disk_say_the_same(lm: ss.LanguageModel, tmp_path: Path):
    made = ss.Features.of(lm, "resid_mid.0", SAE, TOKENS)
    read_features(lm, ss.Site("resid_mid", 0), SAE, TOKENS, tmp_path / "sae")
    found = ss.Features.read(tmp_path / "sae")
    assert found.table() == made.table()
    assert found.examples(3, n=50, kind="random") == made.examples(3, n=50, kind="random")
    assert len(found.table()) == found.n_latents == 20


def test_latents_label_the_edges_between_them(lm: ss.LanguageModel):
    pair = ss.Pair.between(lm, "ff_block.0", {ss.Site("resid_mid", 0): SAE, ss.Site("resid_post", 0): SAE})
    up, down = (ss.Features.of(lm, site, SAE, TOKENS) for site in ("resid_mid.0", "resid_post.0"))
    edges = ss.rank_edges(pair, TOKENS)
    plain, labelled = edges.top(9), edges.top(9, up, down)
    for short, row in zip(plain, labelled, strict=True):
        assert {name: row[name] for name in short} == short
        assert row["up_tokens"] == up.tokens(row["up"])
        assert row["up_promotes"] == up.promotes(row["up"])
        assert row["down_tokens"] == down.tokens(row["down"])
        assert row["down_promotes"] == down.promotes(row["down"])
    other = ss.Features.of(lm, "resid_mid.0", random_sae(16, 24, 4, 1), TOKENS)
    with pytest.raises(UserError, match="24 latents; the pair's SAE has 20"):
        edges.top(9, up=other)


def test_a_latent_that_an_sae_does_not_have_is_refused(lm: ss.LanguageModel):
    features = ss.Features.of(lm, "resid_mid.0", SAE, TOKENS)
    for ask in (features.examples, features.tokens, features.promotes, features.suppresses):
        with pytest.raises(UserError, match="latent 20: the SAE has 20"):
            ask(20)


def test_every_column_of_the_tables_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "measures.md").read_text()
    for name, columns in SCHEMAS.items():
        _, _, behind = page.partition(f"`{name}.parquet` has")
        table = behind.split("\n\n")[1]
        assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", table, re.MULTILINE)))) == set(columns)
