"""Directions that come again between sites, and the labels that text carries."""

from dataclasses import replace

import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.evaluation.cross_layer import duplicates
from scalar_sae.evaluation.labels.labels import PARENTS, character_labels
from scalar_sae.sites import Site
from scalar_sae.tokenizer import Ascii
from tests.helpers import random_sae

SITES = [Site("resid_mid", 0), Site("resid_post", 0), Site("resid_post", 1)]


def test_relearned_directions_are_counted():
    first, other = random_sae(64, 20, 4, 0), random_sae(64, 20, 4, 1)
    later = replace(other, W_dec=torch.cat([3 * first.W_dec[5:10], other.W_dec[5:]]))
    found = duplicates("topk", {SITES[0]: first, SITES[2]: later, SITES[1]: other})
    assert [(d.first, d.later) for d in found] == [
        ("resid_mid.0", "resid_post.0"), ("resid_mid.0", "resid_post.1"), ("resid_post.0", "resid_post.1"),
    ]  # fmt: skip
    assert [d.share for d in found] == pytest.approx([0, 5 / 20, 15 / 20])
    assert {d.share_new for d in found} == {None}


def test_a_staircase_shares_its_rows_and_only_its_own_chunk_is_new():
    whole = random_sae(64, 30, 4, 0)
    first = replace(random_sae(64, 10, 4, 1), W_dec=whole.W_dec[:10], chunks=(10,))
    later = replace(whole, chunks=(10, 30))
    saes = {SITES[0]: first, SITES[1]: later}
    (found,) = duplicates("staircase", saes)
    assert (found.n, found.share) == (30, pytest.approx(1 / 3))
    assert (found.n_new, found.share_new) == (20, 0)
    relearned = replace(later, W_dec=torch.cat([whole.W_dec[:10], 2 * whole.W_dec[:5], whole.W_dec[15:]]))
    (found,) = duplicates("staircase", {SITES[0]: first, SITES[1]: relearned})
    assert (found.share, found.share_new) == pytest.approx((15 / 30, 5 / 20))
    with pytest.raises(UserError, match="cosines lie between"):
        duplicates("staircase", saes, threshold=1.5)


def test_labels_by_hand():
    text = "def Foo(x2):\n    return 7 # if\n"
    labels = {
        name: values[0].tolist() for name, values in character_labels(Ascii().encode(text)[0].long()[None]).items()
    }
    marked = {name: "".join(c for c, yes in zip(text, values, strict=True) if yes) for name, values in labels.items()}
    assert marked["letter"] == "defFooxreturnif"
    assert marked["vowel"] == "eooeui"
    assert marked["upper"] == "F"
    assert marked["digit"] == "27"
    assert marked["bracket"] == "()"
    assert marked["word"] == "defFoox2returnif"
    assert marked["keyword"] == "defreturnif"
    assert marked["identifier"] == "Foox2"
    assert marked["indentation"] == "    "
    for child, parent in PARENTS.items():
        assert all(labels[parent][i] for i, yes in enumerate(labels[child]) if yes)
