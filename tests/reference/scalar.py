"""SCALAR written once more from its definition (src/scalar_sae/scoring/README.md), slowly and plainly.

Nothing here comes from the package. The model is a GPT-2 of `transformers`: its own forward pass computes everything,
and hooks read and replace its activations. SAEs have neither a run-time norm nor a skip connection. The model and all
tensors are float64. A text is [prompt, token].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

Site = tuple[str, int]
"""A kind of place and a layer, such as ("resid_mid", 0)."""

# --- SAEs and the model ---


@dataclass(frozen=True)
class Dictionary:
    """An SAE. Nothing is subtracted from x before the encoder."""

    W_enc: Tensor  # [d_model, n]
    b_enc: Tensor  # [n]
    W_dec: Tensor  # [n, d_model]
    b_dec: Tensor  # [d_model]
    k: int | None = None  # TopK; None: JumpReLU
    threshold: Tensor | float = 0.0  # of JumpReLU; 0 is ReLU

    def pre_acts(self, x: Tensor) -> Tensor:
        return x @ self.W_enc + self.b_enc

    def select(self, u: Tensor, negative: bool = False) -> Tensor:
        """Latents from pre-activations. TopK has a ReLU before it, unless `negative`, and keeps ties with the k-th."""
        if self.k is None:
            return torch.where(u > self.threshold, u.relu(), 0)
        u = u if negative else u.relu()
        return torch.where(u >= u.topk(self.k).values.min(-1, keepdim=True).values, u, 0)

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.W_dec + self.b_dec


def run(hf: Any, tokens: Tensor, put: dict[Site, Tensor], batch: int = 1) -> tuple[Tensor, dict[Site, Tensor]]:
    """Logits [batch, token, vocabulary] and the activation at every site, where `put` replaces some of them."""
    seen: dict[Site, Tensor] = {}

    def at(site: Site, own: Tensor) -> Tensor:
        seen[site] = put.get(site, own)
        return seen[site]

    def hooks(n: int, layer: Any) -> list[Any]:
        def attention(_: Any, args: Any, out: Any) -> Any:  # the model adds the stream to it
            stream = seen["resid_pre", n]
            return (at(("resid_mid", n), stream + at(("attn_out", n), out[0])) - stream, *out[1:])

        return [
            layer.register_forward_pre_hook(lambda _, args: (at(("resid_pre", n), args[0]), *args[1:])),
            layer.attn.register_forward_hook(attention),
            layer.ln_2.register_forward_hook(lambda _, args, out: at(("mlp_in", n), out)),
            layer.mlp.register_forward_hook(lambda _, args, out: at(("mlp_out", n), out)),
            layer.register_forward_hook(lambda _, args, out: at(("resid_post", n), out)),
        ]

    handles = [hook for n, layer in enumerate(hf.transformer.h) for hook in hooks(n, layer)]
    try:
        return hf(tokens.expand(batch, -1)).logits, seen
    finally:
        for handle in handles:
            handle.remove()


# --- A pair and a prompt ---


@dataclass(frozen=True)
class Pair:
    """A block of the model with an SAE at each end."""

    hf: Any
    up_site: Site
    down_site: Site
    up: Dictionary
    down: Dictionary
    special: tuple[int, ...] = ()  # ids of the tokens that do not count
    first_is_special: bool = False  # whether the first token of a prompt does not count either
    ablated: Tensor | float = 0.0  # what ablated upstream latents are set to: zero, or their means [n_up]
    published: bool = False  # the conventions of the authors' code


class Prompt:
    """What the model itself does on the tokens [token] of a prompt, and the upstream latents there."""

    def __init__(self, pair: Pair, tokens: Tensor) -> None:
        self.tokens = tokens
        self.counts = ~torch.isin(tokens, torch.tensor(pair.special, dtype=tokens.dtype))
        self.counts[0] &= not pair.first_is_special
        self.logits, own = run(pair.hf, tokens, {})
        self.x_up, self.x_down = own[pair.up_site][0], own[pair.down_site][0]
        self.z = pair.up.select(pair.up.pre_acts(self.x_up)) * self.counts[:, None]


def read(pair: Pair, text: Tensor) -> list[Prompt]:
    return [Prompt(pair, tokens) for tokens in text]


def latent_means(pair: Pair, text: Tensor) -> Tensor:
    """What mean ablation sets upstream latents to."""
    return torch.cat([p.z[p.counts] for p in read(pair, text)]).mean(0)


def site_mean(pair: Pair, text: Tensor) -> Tensor:
    """Mean activation at the downstream site."""
    return torch.cat([p.x_down[p.counts] for p in read(pair, text)]).mean(0)


def pre_acts(pair: Pair, p: Prompt, z: Tensor) -> Tensor:
    """Downstream pre-activations [batch, token, n_down] when the upstream latents are z [batch, token, n_up]."""
    x = torch.where(p.counts[:, None], pair.up.decode(z), p.x_up)
    return pair.down.pre_acts(run(pair.hf, p.tokens, {pair.up_site: x}, len(z))[1][pair.down_site])


def latents(pair: Pair, p: Prompt, u: Tensor, negative: bool = False) -> Tensor:
    """Downstream latents from pre-activations [.., token, n_down]."""
    return pair.down.select(u, negative) * p.counts[:, None]


def spliced(pair: Pair, p: Prompt, x: Tensor) -> Tensor:
    """The model's logits with x [token, d_model] at the downstream site."""
    return run(pair.hf, p.tokens, {pair.down_site: torch.where(p.counts[:, None], x, p.x_down)[None]})[0]


# --- Circuits ---


def sub_circuit(pair: Pair, p: Prompt, kept: Tensor) -> Tensor:
    """Downstream latents [token, n_down] of the kept edges [token, n_up, n_down]: a pass for each latent j."""
    z = torch.where(kept, p.z[:, :, None], torch.as_tensor(pair.ablated)[..., None])  # [token, n_up, j]
    u = pre_acts(pair, p, z.permute(2, 0, 1)).diagonal(dim1=0, dim2=2)  # latent j of pass j
    u = torch.where(kept.any(1), u, 0) if pair.published else u
    return latents(pair, p, u, negative=pair.published)


def full_circuit(pair: Pair, p: Prompt) -> Tensor:
    """Downstream latents [token, n_down] when every edge is kept."""
    return latents(pair, p, pre_acts(pair, p, p.z[None])[0])


def published_full_circuit(pair: Pair, p: Prompt) -> Tensor:
    """What the hooks of the authors' code leave instead."""
    u = pre_acts(pair, p, p.z[None])[0]
    kinds = pair.up_site[0], pair.down_site[0]
    if kinds == (
        "resid_mid",
        "resid_post",
    ):  # they replace what the norm reads; the stream beside it is the model's own
        u = u + (p.x_up - pair.up.decode(p.z)) @ pair.down.W_enc
    if kinds == ("resid_pre", "resid_post"):  # they replace nothing
        u = pair.down.pre_acts(p.x_down)
    return latents(pair, p, u)


def n_live_edges(pair: Pair, text: Tensor) -> int:
    """Edges whose two latents are both active somewhere in a text."""
    up = torch.cat([p.z > 0 for p in read(pair, text)]).any(0)
    down = torch.cat([full_circuit(pair, p) > 0 for p in read(pair, text)]).any(0)
    return int(up.sum() * down.sum())


# --- Rankings: a score for every edge [n_up, n_down] ---


def root_mean_square(pair: Pair, text: Tensor, of: Callable[[Prompt], Tensor]) -> Tensor:
    """Of [n_up, token, n_down], over the tokens of a text that count."""
    prompts = read(pair, text)
    return (sum(of(p).square().sum(1) for p in prompts) / sum(p.counts.sum() for p in prompts)).sqrt()


def removals(pair: Pair, p: Prompt, at: Tensor) -> tuple[Tensor, Tensor]:
    """How latent j changes, and its pre-activation, when latent i is ablated at some tokens: [n_up, token, n_down]."""
    u = pre_acts(pair, p, p.z[None])[0]
    one = torch.eye(p.z.shape[1], dtype=torch.bool)[:, None] & at[:, None] & (p.z > 0)  # only where i is active
    changed = pre_acts(pair, p, torch.where(one, torch.as_tensor(pair.ablated), p.z))
    effect = torch.zeros_like(changed)
    for j in range(u.shape[1]):  # j is selected among the others as they are in the full circuit
        others = u.repeat(len(changed), 1, 1)
        others[..., j] = changed[..., j]
        effect[..., j] = (latents(pair, p, others) - latents(pair, p, u))[..., j]
    drive = (changed - u) * p.counts[:, None]
    return torch.where(effect.abs() < 1e-12, 0, effect), torch.where(drive.abs() < 1e-12, 0, drive)  # not rounding


def leave_one_out(pair: Pair, text: Tensor) -> Tensor:
    return root_mean_square(pair, text, lambda p: removals(pair, p, p.counts)[0])


def leave_one_out_with_prior(pair: Pair, text: Tensor) -> Tensor:
    norms = pair.down.W_dec.norm(dim=1)
    effect = leave_one_out(pair, text) * norms
    drive = root_mean_square(pair, text, lambda p: removals(pair, p, p.counts)[1]) * norms
    active = torch.cat([(full_circuit(pair, p) > 0)[p.counts] for p in read(pair, text)])
    prior = torch.where(effect > 0, 0, drive * (active.double().mean(0) + 1e-6).sqrt())
    return torch.where(effect > 0, effect, prior / prior.max() * effect[effect > 0].min() / 2)


def ig(pair: Pair, text: Tensor, steps: int = 8) -> Tensor:
    def of(p: Prompt) -> Tensor:
        path = p.z - torch.where(p.z > 0, torch.as_tensor(pair.ablated), 0)
        points = [p.z - (1 - (step + 0.5) / steps) * path for step in range(steps)]
        slopes = [jacobian(lambda z: pre_acts(pair, p, z[None])[0].relu(), z) for z in points]
        attributed = (sum(slopes) / steps * path).sum(2)  # [token, n_down, n_up], summed over source tokens
        return attributed.permute(2, 0, 1) * p.counts[:, None]

    return root_mean_square(pair, text, of)


def published(pair: Pair, text: Tensor, steps: int = 5) -> Tensor:
    def of(p: Prompt) -> Tensor:
        points = [step / (steps - 1) * p.z for step in range(steps)]
        slopes = [jacobian(lambda z: latents(pair, p, pre_acts(pair, p, z[None])[0]).sum(0), z) for z in points]
        return (sum(slopes) / steps * p.z.norm(dim=1)[:, None]).permute(2, 1, 0)  # [n_up, source token, n_down]

    return root_mean_square(pair, text, of)


def random(pair: Pair, text: Tensor) -> Tensor:
    return torch.zeros(len(pair.up.b_enc), len(pair.down.b_enc))


def local_places(pair: Pair, p: Prompt) -> Tensor:
    """Place of each edge in the order of each token: [token, n_up, n_down].

    A latent that is not active at a token is not ablated there: its place comes before all others.
    """
    norms = pair.down.W_dec.norm(dim=1)
    places = torch.full((len(p.tokens), p.z.shape[1], len(norms)), -1)
    for token, z in enumerate(p.z):
        here = torch.arange(len(p.tokens)) == token
        effect, drive = (change.norm(dim=1) * norms for change in removals(pair, p, here))
        scores = torch.where(effect > 0, effect, -1 / (1 + drive)).float()
        edges = [(int(i), j) for i in z.nonzero()[:, 0] for j in range(len(norms))]
        for place, edge in enumerate(sorted(edges, key=lambda edge: -float(scores[edge]))):
            places[token][edge] = place
    return places


# --- Which edges, which prompts, how many ---


def strongest(scores: Tensor, n: int, seed: int) -> Tensor:
    """The first n edges [n_up, n_down], in descending order of the float32 score, then of a seeded hash."""
    offset = int(np.random.default_rng(seed).integers(2**32))

    def shuffled(edge: int) -> int:  # the finaliser of MurmurHash3
        h = (edge + offset) % 2**32
        h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
        h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
        return h ^ h >> 16

    flat = scores.float().flatten().tolist()
    order = sorted(range(len(flat)), key=lambda edge: (flat[edge], shuffled(edge)), reverse=True)
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[order[:n]] = True
    return kept.view(scores.shape)


def edge_counts(n_edges: int, halvings: int = 2) -> list[int]:
    """The grid `full`; `coarse` with one halving."""
    powers = [int(2.0 ** (m / halvings)) for m in range(64 * halvings)]
    return sorted({0, 1, min(2**18, n_edges), n_edges, *(n for n in powers if n < n_edges)})


def spread(n: int, seed: int) -> list[int]:
    """The order in which n prompts are taken."""
    bits, offset = max(1, (n - 1).bit_length()), float(np.random.default_rng(seed).random())
    van_der_corput = [int(f"{m:0{bits}b}"[::-1], 2) / 2**bits for m in range(2**bits)]
    return list(dict.fromkeys(min(int((place + offset) % 1 * n), n - 1) for place in van_der_corput))


# --- The curve and its scores ---


@dataclass
class Curves:
    """Means over the tokens of each prompt that count. The first four are [count, prompt], the others [prompt]."""

    kl_model: np.ndarray  # KL(full model || sub-circuit), nats
    kl_circuit: np.ndarray  # KL(full circuit || sub-circuit), nats
    live_edges: np.ndarray  # kept edges per token whose two latents are active
    l0_down: np.ndarray  # downstream latents per token that are not zero
    floor_kl: np.ndarray  # KL(full model || full circuit), nats
    floor_ce: np.ndarray  # increase of the next-token cross-entropy with the full circuit, nats
    kl_mean: np.ndarray  # KL(full model || downstream site set to its mean), nats
    n_tokens: np.ndarray  # tokens that count
    n_targets: np.ndarray  # those of them that follow another token


Edges = Callable[[Prompt, int], Tensor]
"""The first n edges at a prompt: [token, n_up, n_down], or [1, n_up, n_down] for all tokens."""


def measure(pair: Pair, text: Tensor, counts: Sequence[int], edges: Edges, mean: Tensor) -> Curves:
    """The curves of a text; `mean` is that of the downstream site."""
    epsilon = 1e-8 if pair.published else 0.0

    def kl(p: Prompt, of: Tensor, to: Tensor) -> float:
        P, Q = of[0].softmax(-1), to[0].softmax(-1)
        return float((P * ((P + epsilon) / (Q + epsilon)).log()).sum(-1)[p.counts].mean())

    def cross_entropy(p: Prompt, logits: Tensor) -> float:
        targets = p.counts[1:]
        return float(torch.nn.functional.cross_entropy(logits[0, :-1][targets], p.tokens[1:][targets]))

    points: list[list[list[float]]] = []
    ends: list[list[float]] = []
    for p in read(pair, text):
        full = published_full_circuit(pair, p) if pair.published else full_circuit(pair, p)
        full_logits = spliced(pair, p, pair.down.decode(full))
        points.append([])
        for n in counts:
            kept = edges(p, n).expand(len(p.tokens), -1, -1)
            acts = sub_circuit(pair, p, kept)
            live = kept & (p.z > 0)[:, :, None] & (acts > 0)[:, None, :]
            acts = full if pair.published and n == kept[0].numel() else acts
            logits = spliced(pair, p, pair.down.decode(acts))
            per_token = [float(some.sum() / p.counts.sum()) for some in (live, acts != 0)]
            points[-1].append([kl(p, p.logits, logits), kl(p, full_logits, logits), *per_token])
        at_mean = spliced(pair, p, mean.expand_as(p.x_down))
        ce = cross_entropy(p, full_logits) - cross_entropy(p, p.logits)
        sizes = [float(p.counts.sum()), float(p.counts[1:].sum())]
        ends.append([kl(p, p.logits, full_logits), ce, kl(p, p.logits, at_mean), *sizes])
    return Curves(*np.array(points).transpose(2, 1, 0), *np.array(ends).T)


def area(x: np.ndarray, y: np.ndarray, end: float) -> float:
    """Trapezoids from the first x to `end`. Beyond its last point the curve stays as it is."""
    inside = np.append(x[x < end], end)
    return float(np.trapezoid(np.interp(inside, x, y), inside))


def scores(counts: Sequence[int], curves: Curves, n_edges: int, n_live_edges: int) -> dict[str, float | None]:
    """Every score by its name in a record; None for a level that is never reached."""

    def mean(values: np.ndarray, weights: np.ndarray = curves.n_tokens) -> Any:
        return np.average(values, axis=-1, weights=weights)

    def reaching(level: float, curve: np.ndarray, values: np.ndarray) -> float | None:
        """`values` where the curve first reaches a level, on a straight line between two counts."""
        at = int((curve >= level).argmax())
        if curve[at] < level:
            return None
        share = (level - curve[at - 1]) / (curve[at] - curve[at - 1]) if at > 0 else 1.0
        return float((1 - share) * values[at - 1] + share * values[at])

    def log_area(curve: np.ndarray, end: int) -> float:
        return area(log_n[1:], 1 - curve[1:], np.log(end)) / np.log(end)

    n, log_n, last = np.array(counts), np.log(np.maximum(counts, 1)), min(2**18, n_edges)
    kl_model, kl_circuit, live = mean(curves.kl_model), mean(curves.kl_circuit), mean(curves.live_edges)
    faithful, recovery = 1 - kl_model / mean(curves.kl_mean), 1 - kl_circuit / kl_circuit[0]
    rises = np.diff(curves.kl_model, axis=0).max(0).clip(min=0)
    found: dict[str, float | None] = {
        "floor.kl": mean(curves.floor_kl),
        "floor.ce_increase": mean(curves.floor_ce, curves.n_targets),
        "kl_mean": mean(curves.kl_mean),
        "largest_rise.mean": rises.mean(),
        "largest_rise.most": rises.max(),
        "lowest_recovery": recovery[1:].min(),
        "unfaithful_area": log_area(faithful, 2**18),
        "log_area": log_area(recovery, max(n_live_edges, 2)),
        "absolute": area(n[1:], kl_model[1:], last),
        "relative": area(n[1:], kl_model[1:], last) / n_edges,
        "pure": area(n[1:], kl_circuit[1:], last),
    }
    for q in (50, 80, 90):
        at, stays = reaching(q / 100, faithful, log_n), [k for k in range(len(n)) if (faithful[k:] >= q / 100).all()]
        found[f"faithful_at.{q}"] = None if at is None else float(np.exp(at))
        found[f"faithful_live_at.{q}"] = reaching(q / 100, faithful, live)
        found[f"faithful_from.{q}"] = float(n[stays[0]]) if stays else None
    for q in (50, 90, 99):
        at, reached = reaching(q / 100, recovery, log_n), np.maximum.accumulate(recovery) >= q / 100
        found[f"edges_at.{q}"] = None if at is None else float(np.exp(at))
        found[f"live_edges_at.{q}"] = reaching(q / 100, recovery, live)
        found[f"dip.{q}"] = float(np.where(reached, q / 100 - recovery, 0).max().clip(min=0))
    return found
