"""The curve of one prompt: how far is the model's output with a sub-circuit put in from the output without?"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.benchmark import published
from scalar_sae.benchmark.edges import Edges
from scalar_sae.benchmark.pair import Pair, Prompt
from scalar_sae.benchmark.readout import Readout
from scalar_sae.benchmark.subcircuits import SubCircuit, sweep
from scalar_sae.errors import UserError
from scalar_sae.results import Curves

LOGIT_BYTES = 2**25
"""Sub-circuits run on to the output so many at a time that their logits fit this."""


LogProbs = Float[Tensor, "one token d_vocab"]
SomeLogProbs = Float[Tensor, "batch token d_vocab"]


@runtime_checkable
class Conventions(Protocol):
    """How a sub-circuit's pre-activations become a divergence: ours, or the authors'."""

    def select(self, pair: Pair, pre_acts: Float[Tensor, "*batch n_down"]) -> Float[Tensor, "*batch n_down"]:
        """Downstream activations."""
        ...

    def full_circuit(self, pair: Pair, prompt: Prompt) -> Float[Tensor, "token n_down"]:
        """Downstream activations that `kl_circuit` is measured from."""
        ...

    def kl(self, p: LogProbs, q: SomeLogProbs) -> Float[Tensor, "batch token"]:
        """KL(p || q) in nats from log-probabilities."""
        ...

    last_is_full_circuit: bool
    """Whether n = N stands for the full circuit and is not computed as a sub-circuit."""


class Exact:
    """As benchmark/README.md defines it."""

    last_is_full_circuit = False

    def select(self, pair: Pair, pre_acts: Float[Tensor, "*batch n_down"]) -> Float[Tensor, "*batch n_down"]:
        """Down's activation rule."""
        return pair.down.activation.select(pre_acts)

    def full_circuit(self, pair: Pair, prompt: Prompt) -> Float[Tensor, "token n_down"]:
        """down.encode(F(up.decode(z)))."""
        return pair.full_circuit(prompt)

    def kl(self, p: LogProbs, q: SomeLogProbs) -> Float[Tensor, "batch token"]:
        """KL(p || q) in nats from log-probabilities."""
        return (p.exp() * (p - q)).sum(-1)


class AsPublished:
    """As the authors' code computes it (published.py)."""

    last_is_full_circuit = True

    def select(self, pair: Pair, pre_acts: Float[Tensor, "*batch n_down"]) -> Float[Tensor, "*batch n_down"]:
        """TopK without ReLU."""
        return published.select(pair, pre_acts)

    def full_circuit(self, pair: Pair, prompt: Prompt) -> Float[Tensor, "token n_down"]:
        """What their hooks leave."""
        return published.full_circuit(pair, prompt)

    def kl(self, p: LogProbs, q: SomeLogProbs) -> Float[Tensor, "batch token"]:
        """With their epsilon."""
        return published.kl(p, q)


CONVENTIONS: dict[str, Conventions] = {"exact": Exact(), "published": AsPublished()}


@torch.no_grad()
def measure(
    pair: Pair,
    prompt: Prompt,
    edges: Edges,
    n_counts: int,
    reaches_all: bool,
    conventions: Conventions,
    readout: Readout,
) -> Curves:
    """Sweep a prompt and compare the outputs.

    Args:
        pair: what is scored.
        prompt: where.
        edges: which edges each count keeps.
        n_counts: number of edge counts.
        reaches_all: whether the last of them is every possible edge.
        conventions: ours or the authors'.
        readout: the pair's.

    Raises:
        UserError: an output that is not finite.
    """
    model = pair.lm.logits(prompt.tokens).log_softmax(-1)
    whole = conventions.full_circuit(pair, prompt)
    circuit = pair.log_probs(pair.decoded(whole, prompt).unsqueeze(0), prompt)
    rows: list[Tensor] = []
    sub_circuits = sweep(pair, prompt, edges, n_counts, readout, lambda p: conventions.select(pair, p))
    done = 0
    for acts, live_edges in _batches(pair, prompt, sub_circuits):
        done += len(acts)
        if done == n_counts and reaches_all and conventions.last_is_full_circuit:
            acts[-1] = whole
        log_probs = pair.log_probs(pair.decoded(acts, prompt), prompt)
        columns = [
            conventions.kl(model, log_probs).mean(-1),
            conventions.kl(circuit, log_probs).mean(-1),
            live_edges,
            (acts != 0).sum(-1).float().mean(-1),
        ]
        rows.append(torch.stack(columns, -1))
    curves = torch.cat(rows).double().T.unsqueeze(-1).cpu().numpy()
    target = prompt.tokens[:, 1:].unsqueeze(-1)
    ce = [-log_probs[:, :-1].gather(-1, target).mean() for log_probs in (model, circuit)]
    floors = torch.stack([conventions.kl(model, circuit).mean(), ce[1] - ce[0]]).double().unsqueeze(-1).cpu().numpy()
    check_finite(prompt, curves, floors)
    return Curves(*curves, *floors)


def check_finite(prompt: Prompt, *measured: Float[np.ndarray, "..."]) -> None:
    """Raise a UserError if something measured on a prompt is not finite."""
    if not all(np.isfinite(values).all() for values in measured):
        raise UserError(f"prompt {prompt.number}: the model's output is not finite; check the language model's weights")


def _batches(
    pair: Pair, prompt: Prompt, sub_circuits: Iterator[SubCircuit]
) -> Iterator[tuple[Float[Tensor, "count token n_down"], Float[Tensor, " count"]]]:
    """Activations and live edges of a few counts at a time."""
    n_token, n_down = len(prompt.z), pair.down.d_sae
    size = max(1, LOGIT_BYTES // (4 * n_token * max(pair.lm.d_vocab, n_down)))
    acts: list[Tensor] = []
    live: list[Tensor] = []
    for sub in sub_circuits:
        acts.append(sub.acts)
        live.append(sub.live_edges.float().mean())
        if len(acts) == size:
            yield torch.stack(acts), torch.stack(live)
            acts, live = [], []
    if acts:
        yield torch.stack(acts), torch.stack(live)
