"""What a journey shows at a token, as an attribution graph that other viewers open.

The format is that of Neuronpedia's `graph-schema.json` (github.com/hijohnnylin/neuronpedia, apps/webapp/app/api/graph).
Layers are numbered by the ends of the pair: upstream features stand in layer 1, downstream features in layer 2, next
tokens in layer 3. A link to a downstream feature weighs what the edge adds to its activation. A link to a token weighs
what the feature adds to its logit.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from scalar_sae._version import __version__
from scalar_sae.explore.plain import LocalEdge, Outputs
from scalar_sae.report.text import visible

URL = "https://github.com/scalar-sae/scalar-sae"
TYPE = "cross layer transcoder"
"""What the format calls a feature."""


def graph(
    *,
    title: str,
    model: str,
    prompt: str,
    tokens: Sequence[str],
    position: int,
    edges: Sequence[LocalEdge],
    outputs: Outputs,
    names: Mapping[str, str],
    pins: Sequence[str],
    groups: Sequence[tuple[str, Sequence[str]]],
) -> dict[str, Any]:
    """A graph of some local edges.

    Args:
        title: what is shown, in a few words.
        model: the language model's name.
        prompt: the prompt.
        tokens: the text of each of its tokens.
        position: the token that the downstream features stand at.
        edges: what is shown.
        outputs: the next tokens, and what downstream features add to them.
        names: names of features such as `u12` and `d7`.
        pins: pinned features and edges, such as `u12` and `u12-d7`.
        groups: name and features of each group.
    """
    nodes: dict[str, dict[str, Any]] = {}
    at: dict[str, list[str]] = {}

    def add(end: str, layer: int, latent: int, token: int, activation: float) -> str:
        name = f"{layer}_{latent}_{token}"
        if name not in nodes:
            words = visible(names.get(f"{end}{latent}", f"{'up' if end == 'u' else 'down'}stream {latent}"))
            nodes[name] = _node(name, latent, layer, token, TYPE, words) | {"activation": activation}
            at.setdefault(f"{end}{latent}", []).append(name)
        return name

    links = [
        _link(
            add("u", 1, edge.up, edge.source, edge.up_activation),
            add("d", 2, edge.down, position, edge.down_activation),
            edge.effect,
        )
        for edge in edges
    ]
    for number, token in enumerate(outputs.predicted):
        name, text = f"3_{token.token}_{position}", visible(token.text)
        shown = _node(name, token.token, 3, position, "logit", f'Output "{text}" (p={token.p:.3f})')
        nodes[name] = shown | {"token_prob": token.p, "is_target_logit": number == 0}
        links += [
            _link(f"2_{one.latent}_{position}", name, one.logits[number])
            for one in outputs.latents
            if f"2_{one.latent}_{position}" in nodes
        ]
    pinned = dict.fromkeys(name for pin in pins for end in pin.split("-") for name in at.get(end, []))
    return {
        "metadata": {
            "slug": title,
            "scan": model,
            "prompt": visible(prompt),
            "prompt_tokens": [visible(text) for text in tokens],
            "info": {
                "description": f"{title}. Every weight is the exact effect of a removal.",
                "generator": {"name": "scalar-sae", "version": __version__, "url": URL},
                "create_time_ms": int(1000 * time.time()),
            },
        },
        "qParams": {
            "linkType": "both",
            "pinnedIds": list(pinned),
            "clickedId": "",
            "supernodes": [
                [visible(name), *(node for member in members for node in at.get(member, []))]
                for name, members in groups
            ],
            "sg_pos": "",
        },
        "nodes": list(nodes.values()),
        "links": links,
    }


def _node(name: str, feature: int, layer: int, token: int, kind: str, words: str) -> dict[str, Any]:
    return {
        "node_id": name,
        "feature": feature,
        "layer": str(layer),
        "ctx_idx": token,
        "feature_type": kind,
        "jsNodeId": f"{name}-0",
        "clerp": words,
        "influence": None,
        "activation": None,
    }


def _link(source: str, target: str, weight: float) -> dict[str, Any]:
    return {"source": source, "target": target, "weight": weight}
