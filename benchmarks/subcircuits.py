"""Which sub-circuit should a score use? The candidates on one pair: python -m benchmarks.subcircuits --help

A candidate says four things. What is an upstream latent without a kept edge set to: zero, or its mean? What has a
downstream latent without any kept edge: zero, what follows from ablated inputs, or its mean activation? Which latents
are active: those that the activation rule selects (assembled), or those of the full circuit (gated)? What does the
block's norm divide by: the size of the sub-circuit's own input (live), or that of the full circuit's (frozen)?
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from scalar_sae.corpora import load_corpus
from scalar_sae.explore.stage import Stage
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.outputs import kl
from scalar_sae.saes.store import load_saes
from scalar_sae.scoring.ablation import mean_ablated
from scalar_sae.scoring.config import ScoreConfig, counts_of, held_out
from scalar_sae.scoring.curve import kl_of_mean
from scalar_sae.scoring.pair import Pair, Prompt, read, with_site_mean
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.rankings.registry import rank
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import GlobalEdges
from scalar_sae.scoring.sweep.subcircuits import sweep
from scalar_sae.scoring.texts import Texts

LEVELS = (0.5, 0.8, 0.9)


@dataclass(frozen=True, eq=False)
class Frozen(Readout):
    """A readout whose norm multiplies every activation by the same factor, that of the full circuit at one token."""

    factor: Tensor

    def scale(self, x: Tensor) -> Tensor:
        return self.factor.expand(len(x), 1)


def pre_acts(pair: Pair, readout: Readout, prompt: Prompt, edges: GlobalEdges, n_counts: int, norm: str) -> Tensor:
    """Of every downstream latent, with ablated inputs where it has no edges: [count, token, n_down]."""
    if norm == "live":
        return torch.stack([sub.pre_acts.clone() for sub in sweep(pair, prompt, edges, n_counts, readout)])
    assert readout.to_hidden is not None
    assert readout.hidden_bias is not None
    tokens: list[Tensor] = []
    shared = {field.name: getattr(readout, field.name) for field in fields(Readout)}
    whole = pair.reconstruct(prompt.z, prompt)
    for t in range(len(prompt.z)):
        one = Stage(pair, prompt, readout).rows(slice(t, t + 1)).prompt
        frozen = Frozen(**shared, factor=readout.scale(whole[t : t + 1]))
        base = pair.base(one)
        features = frozen.activate(frozen.scale(base) * frozen.project(base) + readout.hidden_bias)
        empty = features @ readout.weights.T + readout.constant
        empty = empty if readout.skip is None else empty + base @ readout.skip.T
        found = [sub.pre_acts.clone() for sub in sweep(pair, one, edges, n_counts, frozen)]
        first = edges.keep_index.amin(0)
        found = [torch.where(first <= count, p, one.at_text(empty)) for count, p in enumerate(found)]
        tokens.append(torch.stack(found))
    return torch.cat(tokens, 1)


def candidates(pair: Pair, prompt: Prompt, edges: GlobalEdges, p: Tensor, mean: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Downstream activations at every count, by candidate: [count, token, n_down]."""
    active, rule = pair.full_circuit(prompt) > 0, pair.down.activation
    with_edges = (edges.keep_index.amin(0) <= torch.arange(len(p)).unsqueeze(1)).unsqueeze(1)
    for unconnected, selection in itertools.product(("zero", "ablated", "mean"), ("assembled", "gated")):
        known = p if unconnected == "ablated" else torch.where(with_edges, p, 0.0)
        acts = rule.select(known) if selection == "assembled" else known.relu() * active
        if unconnected == "mean":
            acts = torch.where(with_edges, acts, mean)
        yield f"{unconnected} | {selection}", prompt.at_text(acts)


@torch.no_grad()
def study(pair: Pair, texts: Texts, grid: str, norms: list[str]) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """KL(full model || sub-circuit) by candidate [prompt, count], the counts, and that of the mean at the site."""
    counts = counts_of(grid, pair.n_edges)
    found: dict[str, list[list[float]]] = {}
    of_mean: list[float] = []
    for ablation in ("zero", "mean"):
        ablated = mean_ablated(pair, texts.ranking) if ablation == "mean" else pair
        scores = rank(ablated, texts.ranking, "leave_one_out_with_prior", 0)
        edges, readout = GlobalEdges(keep_indices(scores, counts, 0)), Readout.of(pair)
        full = [ablated.full_circuit(prompt)[prompt.text] for prompt in read(ablated, texts.ranking)]
        mean = torch.cat(full).mean(0)
        for prompt in read(ablated, texts.scoring):
            own = pair.lm.logits(prompt.tokens).log_softmax(-1)
            if ablation == "mean":
                of_mean.append(float(kl_of_mean(pair, prompt, own)[0]))
            for norm in norms:
                p = pre_acts(ablated, readout, prompt, edges, len(counts), norm)
                for name, acts in candidates(ablated, prompt, edges, p, mean):
                    ends = (pair.log_probs(pair.decoded(one, prompt).unsqueeze(0), prompt) for one in acts)
                    curve = [float(prompt.mean(kl(own, end)[0])) for end in ends]
                    found.setdefault(f"{ablation} | {name} | {norm}", []).append(curve)
    return {name: np.array(curves) for name, curves in found.items()}, counts, float(np.mean(of_mean))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm", required=True)
    parser.add_argument("--saes", required=True)
    parser.add_argument("--method", default="topk")
    parser.add_argument("--block", required=True, help="a block without attention")
    parser.add_argument("--tokens", help="text to rank and score on; by default the model's own")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rank-prompts", type=int, default=32)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--edges", default="coarse")
    parser.add_argument("--norms", default="live,frozen")
    given = parser.parse_args()
    lm = LanguageModel.load(given.lm, dtype="float32")
    texts = held_out(
        load_corpus(given.tokens or given.lm, lm),
        ScoreConfig(rank_prompts=given.rank_prompts, prompts=given.prompts, context=given.context),
    )
    pair = with_site_mean(Pair.between(lm, given.block, load_saes(given.saes)[given.method]), texts.ranking)
    found, counts, of_mean = study(pair, texts, given.edges, given.norms.split(","))
    print(f"{given.block}: the site set to its mean costs {of_mean:.2f} nats\n")
    print("| ablated | without edges | active | norm | KL at n = 0 | worst KL | largest rise | "
          + " | ".join(f"faithful@{level:.0%}" for level in LEVELS) + " | floor |")  # fmt: skip
    print("|---" * (8 + len(LEVELS)) + "|")
    for name, curves in found.items():
        mean, rise = curves.mean(0), np.diff(curves, axis=1).max()
        reached = [(1 - mean / of_mean >= level) for level in LEVELS]
        at = [f"{counts[one.argmax()]:,}" if one.any() else "never" for one in reached]
        cells = [f"{mean[0]:.2f}", f"{mean.max():.2f}", f"{max(rise, 0):.2f}", *at, f"{mean[-1]:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
