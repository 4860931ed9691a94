"""How the pre-activations of a sub-circuit are made and become a divergence: our definitions, or the authors'."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.lm.outputs import kl
from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.scoring.rankings import published

LogProbs = Float[Tensor, "*#batch d_vocab"]


@runtime_checkable
class Conventions(Protocol):
    """How a sub-circuit's pre-activations become a divergence: ours, or the authors'."""

    def select(self, pair: Pair, pre_acts: Float[Tensor, "*batch n_down"]) -> Float[Tensor, "*batch n_down"]:
        """Downstream activations."""
        ...

    def full_circuit(self, pair: Pair, prompt: Prompt) -> Float[Tensor, "token n_down"]:
        """Downstream activations that `kl_circuit` is measured from."""
        ...

    def kl(self, p: LogProbs, q: LogProbs) -> Float[Tensor, "*batch"]:
        """KL(p || q) in nats from log-probabilities."""
        ...

    def without_edges(self, ablated: Float[Tensor, "token n_down"]) -> Float[Tensor, "token n_down"]:
        """Pre-activations of latents without a kept edge, given what they are when every upstream latent is ablated."""
        ...

    last_is_full_circuit: bool
    """Whether n = N stands for the full circuit and is not computed as a sub-circuit."""


class Exact:
    """As scoring/README.md defines it."""

    last_is_full_circuit = False

    def select(self, pair: Pair, pre_acts: Float[Tensor, "*batch n_down"]) -> Float[Tensor, "*batch n_down"]:
        """Down's activation rule."""
        return pair.down.activation.select(pre_acts)

    def without_edges(self, ablated: Float[Tensor, "token n_down"]) -> Float[Tensor, "token n_down"]:
        """What they are when all their edges are ablated."""
        return ablated

    def full_circuit(self, pair: Pair, prompt: Prompt) -> Float[Tensor, "token n_down"]:
        """down.encode(F(up.decode(z)))."""
        return pair.full_circuit(prompt)

    def kl(self, p: LogProbs, q: LogProbs) -> Float[Tensor, "*batch"]:
        """KL(p || q) in nats from log-probabilities."""
        return kl(p, q)


class AsPublished:
    """As the authors' code computes it (published.py)."""

    last_is_full_circuit = True

    def select(self, pair: Pair, pre_acts: Float[Tensor, "*batch n_down"]) -> Float[Tensor, "*batch n_down"]:
        """TopK without ReLU."""
        return published.select(pair, pre_acts)

    def without_edges(self, ablated: Float[Tensor, "token n_down"]) -> Float[Tensor, "token n_down"]:
        """Zero."""
        return torch.zeros_like(ablated)

    def full_circuit(self, pair: Pair, prompt: Prompt) -> Float[Tensor, "token n_down"]:
        """What their hooks leave."""
        return published.full_circuit(pair, prompt)

    def kl(self, p: LogProbs, q: LogProbs) -> Float[Tensor, "*batch"]:
        """With their epsilon."""
        return published.kl(p, q)


EXACT = Exact()
CONVENTIONS: dict[str, Conventions] = {"exact": EXACT, "published": AsPublished()}
