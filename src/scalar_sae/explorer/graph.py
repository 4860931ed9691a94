"""What a journey shows at a token, as an attribution graph that other viewers open.

The format is that of Neuronpedia's `graph-schema.json` (github.com/hijohnnylin/neuronpedia, apps/webapp/app/api/graph).
Layers are numbered by the ends of the pair: upstream features stand in layer 1, downstream features in layer 2, next
tokens in layer 3. A link to a downstream feature weighs what the edge adds to its activation. A link to a token weighs
what the feature adds to its logit.

The schema leaves open what front ends rely on. This is what was found by loading files in the front ends of
circuit-tracer, of Anthropic and of Neuronpedia:

- A token of the prompt is labelled only where a node of the type `embedding` stands. There is one at each token.
- Some find a node by `node_id`, others by `jsNodeId`. Both are the same here, so that pins and groups work in all.
- `slug` is the name of a file and a part of an address, and Neuronpedia admits only letters, digits and `_.-` in `slug`
  and `scan`. Two prompts have different slugs.
- Cards and names of features are looked up under `scan` and the number. A public model's name would bring cards of
  other features, and the names that somebody gave in another pair. Each pair is therefore a scan of its own.
- A group is drawn if its members are pinned.
- The label of a next token is cut at a quotation mark, and its probability is read behind the first `(p=`.
- Labels are put into the page as HTML. Other characters that look alike stand in for `<`, and in the label of a next
  token for `"` and `(`.
"""

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from scalar_sae._version import __version__
from scalar_sae.errors import UserError
from scalar_sae.explore.plain import LocalEdge, Outputs
from scalar_sae.report.text import token_text, visible

URL = "https://github.com/scalar-sae/scalar-sae"
TYPE = "cross layer transcoder"
"""What the format calls a feature."""
_INERT = str.maketrans({"<": "\uff1c"})
_QUOTED = str.maketrans({'"': "\uff02", "(": "\uff08"})


def graph(
    *,
    run: str,
    pair: str,
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
        run: the name of the run.
        pair: the key of the pair.
        model: the language model's name.
        prompt: the prompt.
        tokens: the text of each of its tokens.
        position: the token that the downstream features stand at.
        edges: what is shown.
        outputs: the next tokens, and what downstream features add to them.
        names: names of features such as `u12` and `d7`.
        pins: pinned features and edges, such as `u12` and `u12-d7`.
        groups: name and features of each group.

    Raises:
        UserError: no edge is shown. Front ends refuse a graph without features.
    """
    if not edges:
        raise UserError("no edge is shown at this token: move the slider before you save the graph")
    nodes: dict[str, dict[str, Any]] = {}
    at: dict[str, list[str]] = {}

    def add(end: str, layer: int, latent: int, token: int, activation: float) -> str:
        words = names.get(f"{end}{latent}", f"{'up' if end == 'u' else 'down'}stream {latent}")
        node = _node(layer, latent, token, TYPE, _inert(words))
        name = node["node_id"]
        if name not in nodes:
            nodes[name] = {**node, "activation": activation}
            at.setdefault(f"{end}{latent}", []).append(name)
        return name

    texts = [_inert(token_text(text)) for text in tokens]
    for place, text in enumerate(texts):
        node = _node("E", place, place, "embedding", f'Emb: "{text}"')
        nodes[node["node_id"]] = node
    links = [
        _link(
            add("u", 1, edge.up, edge.source, edge.up_activation),
            add("d", 2, edge.down, position, edge.down_activation),
            edge.effect,
        )
        for edge in edges
    ]
    predicted: list[str] = []
    for number, token in enumerate(outputs.predicted):
        text = _inert(token_text(token.text)).translate(_QUOTED)
        node = _node(3, token.token, position, "logit", f'Output "{text}" (p={token.p:.3f})')
        nodes[node["node_id"]] = {**node, "token_prob": token.p, "is_target_logit": number == 0}
        predicted.append(node["node_id"])
        links += [
            _link(f"2_{one.latent}_{position}", predicted[-1], one.logits[number])
            for one in outputs.latents
            if f"2_{one.latent}_{position}" in nodes
        ]
    about = f"{_inert(run)}: {_inert(pair)} in {_inert(model)}, token {position}"
    supernodes = _supernodes(groups, at)
    pinned = [name for pin in pins for end in pin.split("-") for name in at.get(end, [])]
    grouped = [name for _, *members in supernodes for name in members]
    return {
        "metadata": {
            "slug": _slug(run, pair, f"token {position}", _digest(run, pair, prompt)),
            "scan": _slug("scalar-sae", run, pair),
            "prompt": visible(prompt),
            "prompt_tokens": texts,
            "info": {
                "description": f"{about}. Every weight is the exact effect of a removal.",
                "generator": {"name": "scalar-sae", "version": __version__, "url": URL},
                "create_time_ms": int(1000 * time.time()),
            },
        },
        "qParams": {
            "linkType": "both",
            "pinnedIds": list(dict.fromkeys([*pinned, *grouped])),
            "clickedId": predicted[0] if predicted else "",
            "supernodes": supernodes,
            "sg_pos": "",
        },
        "nodes": list(nodes.values()),
        "links": links,
    }


def _supernodes(groups: Sequence[tuple[str, Sequence[str]]], at: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Name and nodes of each group that has any, under different names: front ends tell groups apart by them."""
    found: dict[str, list[str]] = {}
    for number, (name, members) in enumerate(groups):
        nodes, words = [node for member in members for node in at.get(member, [])], _inert(name)
        while words in found:
            words += f" ({number + 1})"
        if nodes:
            found[words] = nodes
    return [[name, *nodes] for name, nodes in found.items()]


def _node(layer: int | str, feature: int, token: int, kind: str, words: str) -> dict[str, Any]:
    name = f"{layer}_{feature}_{token}"
    return {
        "node_id": name,
        "feature": feature,
        "layer": str(layer),
        "ctx_idx": token,
        "feature_type": kind,
        "jsNodeId": name,
        "clerp": words,
        "influence": None,
        "activation": None,
    }


def _link(source: str, target: str, weight: float) -> dict[str, Any]:
    return {"source": source, "target": target, "weight": weight}


def _inert(text: str) -> str:
    """A text whose characters are all seen, and which does nothing where it is read as HTML."""
    return visible(text).translate(_INERT)


def _slug(*parts: str) -> str:
    """Some words in the characters of a name in an address, not longer than the name of a file may be."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part).strip("-")[:80] for part in parts)


def _digest(*parts: str) -> str:
    """Eight digits that other words do not have."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:8]
