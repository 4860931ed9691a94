"""Which SAEs the strongest edges of a latent lead to."""

import torch

from scalar_sae.evaluation.features.edges import strongest_edges
from scalar_sae.sites import Site
from tests.helpers import random_sae
from tests.lm.families import family_lm

TOKENS = torch.arange(1, 25).view(2, 12)


def neighbours(family: str, *names: str) -> set[tuple[str, str]]:
    """Pairs of sites that have edges between them."""
    saes = {Site.parse(name): random_sae(16, 24, 4, seed) for seed, name in enumerate(names)}
    tables = strongest_edges(family_lm(family), saes, TOKENS, special="count")
    there = {(str(site), row["site"], row["side"]) for site, table in tables.items() for row in table.to_pylist()}
    assert {(b, a) for a, b, side in there if side == "up"} == {(a, b) for a, b, side in there if side == "down"}
    return {(a, b) for a, b, side in there if side == "down"}


def test_attention_and_mlp_side_by_side_both_lead_to_what_comes_after_them():
    found = neighbours("pythia", "resid_pre.0", "attn_out.0", "mlp_out.0", "resid_post.0")
    assert found == {
        ("resid_pre.0", "attn_out.0"),
        ("attn_out.0", "resid_post.0"),
        ("mlp_out.0", "resid_post.0"),
    }


def test_one_after_the_other_each_leads_to_the_next():
    found = neighbours("llama", "attn_out.0", "mlp_out.0", "resid_post.0")
    assert found == {("attn_out.0", "mlp_out.0"), ("mlp_out.0", "resid_post.0")}
