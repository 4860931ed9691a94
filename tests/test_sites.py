"""Names of places and blocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalar_sae.errors import UserError
from scalar_sae.sites import KINDS, Block, Site

sites = st.builds(Site, st.sampled_from(KINDS), st.integers(0, 9))


@given(sites)
def test_a_name_reads_back(site: Site):
    assert Site.parse(str(site)) == site


@given(sites, sites)
def test_blocks_read_back_and_run_forward_only(a: Site, b: Site):
    if a.depth < b.depth:
        assert Block.parse(str(Block(a, b))) == Block(a, b)
        assert Block.parse(f"{a}->{b}") == Block(a, b)
    else:
        with pytest.raises(UserError, match="must come before"):
            Block(a, b)


def test_one_place_has_two_names():
    assert Site("resid_post", 0).same_place(Site("resid_pre", 1))
    assert not Site("resid_post", 0).same_place(Site("resid_pre", 2))


@pytest.mark.parametrize(
    ("lens", "ours"),
    [
        ("blocks.2.hook_resid_mid", "resid_mid.2"),
        ("blocks.0.ln2.hook_normalized", "mlp_in.0"),
        ("blocks.11.hook_attn_out", "attn_out.11"),
    ],
)
def test_transformer_lens_names_are_aliases(lens: str, ours: str):
    assert str(Site.parse(lens)) == ours


@pytest.mark.parametrize(
    ("block", "mixes"),
    [
        ("ff_layer.1", False),
        ("ff_block.0", False),
        ("attn_block.1", True),
        ("transformer_block.0", True),
        ("resid_mid.0->resid_pre.1", False),
        ("resid_mid.0->resid_mid.1", True),
        ("attn_out.0->mlp_out.0", False),
    ],
)
def test_attention_between_the_sites_mixes_tokens(block: str, mixes: bool):
    assert Block.parse(block).mixes_tokens == mixes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resid_mod.0", "did you mean 'resid_mid.N'"),
        ("resid_mid", "expected a layer number"),
        ("resid_mid.x", "expected a layer number"),
    ],
)
def test_a_wrong_site_is_explained(text: str, message: str):
    with pytest.raises(UserError, match=message):
        Site.parse(text)


@pytest.mark.parametrize(
    ("text", "message"), [("ff_blok.0", "did you mean 'ff_block.N'"), ("ff_block", "layer number")]
)
def test_a_wrong_block_is_explained(text: str, message: str):
    with pytest.raises(UserError, match=message):
        Block.parse(text)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("model.layers.3.output", "resid_post.3"),
        ("layers.10", "resid_post.10"),
        ("model.layers.0.input", "resid_pre.0"),
        ("transformer.h.3.mlp", "mlp_out.3"),
        ("h.3.mlp.input", "mlp_in.3"),
        ("gpt_neox.layers.2.attention", "attn_out.2"),
        ("transformer.h.1.ln_2", "mlp_in.1"),
        ("model.layers.3.pre_feedforward_layernorm.output", "mlp_in.3"),
        ("blocks.2.mlp.hook_in", "mlp_in.2"),
        ("blocks.2.hook_mlp_in", "resid_mid.2"),
    ],
)
def test_names_of_other_libraries(name: str, site: str):
    assert str(Site.parse(name)) == site
    assert Site.parse(Site.parse(name).transformer_lens) == Site.parse(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resid_mid.2", "resid_mid.2"),
        ("blocks.2.hook_resid_mid", "resid_mid.2"),
        ("blocks.2.ln1.hook_normalized", "blocks.2.ln1.hook_normalized"),
        ("blocks.2.ln2.hook_normalized", "blocks.2.ln2.hook_normalized"),
        ("model.layers.3.mlp", "blocks.3.mlp.hook_out"),
        ("h.3.attn", "blocks.3.attn.hook_out"),
        ("blocks.2.mlp.hook_in", "mlp_in.2"),
        ("model.layers.3", "resid_post.3"),
    ],
)
def test_what_a_name_says_beside_the_place_is_kept(name: str, words: str):
    site, again = Site.parse(name), Site.parse(words)
    assert site.words == words
    assert (again, again.of_module, again.normalized) == (site, site.of_module, site.normalized)


@pytest.mark.parametrize(
    "name", ["model.layers.3.self_attn.o_proj.input", "blocks.2.attn.hook_z", "layers.x", "h.3.moe"]
)
def test_places_that_are_no_sites(name: str):
    with pytest.raises(UserError, match="unknown site"):
        Site.parse(name)
