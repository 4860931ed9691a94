"""The graph of a journey, as front ends for attribution graphs read it."""

import re
from typing import Any

import pytest

from scalar_sae.errors import UserError
from scalar_sae.explore.plain import LatentEffect, LocalEdge, NextToken, Outputs
from scalar_sae.explorer.graph import graph


def a_graph(**changes: Any) -> dict[str, Any]:
    """A graph of two local edges."""
    edges = [
        LocalEdge(up=up, down=7, source=source, up_activation=1.0, down_activation=1.0, effect=0.5, size=0.5)
        for up, source in ((3, 0), (4, 1))
    ]
    predicted = tuple(NextToken(token=token, text=text, logit=1.0, p=0.25) for token, text in ((5, "x"), (6, "y")))
    outputs = Outputs(
        position=1, predicted=predicted, latents=(LatentEffect(latent=7, activation=1, kl=0, logits=(1, -1)),)
    )
    about: dict[str, Any] = {"run": "run", "pair": "topk/ff_block.0", "model": "gemma-2-2b", "prompt": "ab"}
    about |= {"tokens": ["a", "b"], "position": 1, "edges": edges, "outputs": outputs}
    return graph(**{**about, "names": {}, "pins": [], "groups": [], **changes})


def test_front_ends_of_attribution_graphs_load_a_graph_and_draw_all_of_it():
    """Each line is what a front end does with a file: circuit-tracer's (d797c82), Anthropic's (18ed0d6), Neuronpedia's
    (ebb8426).
    """
    found = a_graph(pins=["u3"], groups=[("a", ["d7"]), ("a", ["u4"]), ("none of these", ["u9"])])
    nodes = {node["node_id"]: node for node in found["nodes"]}
    labelled = [node["ctx_idx"] for node in found["nodes"] if node["feature_type"] == "embedding"]
    assert labelled == [0, 1]  # labels only tokens where an embedding stands
    assert {node["layer"] for node in found["nodes"] if node["feature_type"] == "embedding"} == {"E"}
    assert [node["jsNodeId"] for node in found["nodes"]] == list(nodes)  # looks up pins under either name
    assert len(nodes) == len(found["nodes"])
    layers = [int(node["layer"]) for node in nodes.values() if node["feature_type"] == "cross layer transcoder"]
    assert set(layers) == {1, 2}  # puts layer 0 on the row of the embeddings; refuses a graph that has no layer above
    assert {node["layer"] for node in nodes.values() if node["feature_type"] == "logit"} == {"3"}  # the layer above
    assert all(node["influence"] is None for node in nodes.values())  # hides nodes by it
    assert "node_threshold" not in found["metadata"]
    for name in ("slug", "scan"):
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", found["metadata"][name])  # Neuronpedia's rule; a path in the others
        assert len(a_graph(run="r" * 300)["metadata"][name]) < 240
    assert found["metadata"]["scan"].startswith("scalar-sae-")  # finds cards and names of features under it
    assert found["qParams"]["clickedId"] == "3_5_1"  # draws no link before a node is clicked
    assert found["qParams"]["pinnedIds"] == ["1_3_0", "2_7_1", "1_4_1"]  # draws a group if its members are pinned
    assert found["qParams"]["supernodes"] == [["a", "2_7_1"], ["a (2)", "1_4_1"]]  # tells groups apart by their names
    for node in (one for one in found["nodes"] if one["feature_type"] == "logit"):
        assert float(node["clerp"].split("(p=")[1].split(")")[0]) == 0.25
        assert node["clerp"].split('"')[1] in ("x", "y")
    with pytest.raises(UserError, match="no edge is shown"):
        a_graph(edges=[])  # refuses a graph without features


def test_graphs_of_two_prompts_or_pairs_are_not_taken_for_one_another():
    slugs = [
        a_graph(**change)["metadata"]["slug"]
        for change in (
            {},
            {"prompt": "a b"},
            {"position": 0},
            {"pair": "topk/ff_block.1"},
            {"run": "ruń"},
            {"run": "ruş"},
        )
    ]
    assert len(set(slugs)) == len(slugs)
    assert a_graph(pair="topk/ff_block.1")["metadata"]["scan"] != a_graph()["metadata"]["scan"]


def test_no_text_of_a_graph_acts_where_a_front_end_reads_it_as_html():
    """Front ends put labels and the texts of tokens into their pages as HTML, and take labels of next tokens apart."""
    hostile = '<img src=x onerror="run()">(p=9)\x00\n'
    token = NextToken(token=5, text=hostile, logit=1.0, p=0.25)
    outputs = Outputs(position=1, predicted=(token,), latents=())
    found = a_graph(
        tokens=[hostile, "b"], names={"u3": hostile}, outputs=outputs, groups=[(hostile, ["u3"])], run=hostile
    )
    words = [node["clerp"] for node in found["nodes"]] + found["metadata"]["prompt_tokens"]
    words += [found["qParams"]["supernodes"][0][0], found["metadata"]["info"]["description"]]
    assert not any(character in text for text in words for character in "<\x00")
    (label,) = (node["clerp"] for node in found["nodes"] if node["feature_type"] == "logit")
    assert label.count('"') == 2
    assert float(label.split("(p=")[1].split(")")[0]) == 0.25
