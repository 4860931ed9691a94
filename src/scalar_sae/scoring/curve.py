"""The curve of one prompt: how far is the model's output with a sub-circuit put in from the output without?"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.kernels import FastCPUOps
from scalar_sae.lm.outputs import compare, kl, log_probs
from scalar_sae.records.results import Curves
from scalar_sae.scoring.conventions import Conventions, LogProbs
from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import Edges
from scalar_sae.scoring.sweep.subcircuits import sweep

PASS_BYTES = 2**25
"""Sub-circuits run on to the end of the model so many at a time that their widest activation fits this."""


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
    lm, whole = pair.lm, conventions.full_circuit(pair, prompt)
    with FastCPUOps():
        own = lm.states(prompt.tokens, [lm.end])[lm.end].x
    full = pair.run_on(pair.decoded(whole, prompt).unsqueeze(0), prompt)
    references = [log_probs(lm, own), log_probs(lm, full)]
    live_edges: list[Tensor] = []

    def sub_circuits() -> Iterator[Float[Tensor, "token n_down"]]:
        for sub in sweep(pair, prompt, edges, n_counts, readout, conventions):
            live_edges.append(prompt.mean(sub.live_edges.float()))
            is_all = len(live_edges) == n_counts and reaches_all
            yield whole if is_all and conventions.last_is_full_circuit else sub.acts

    rows: list[Tensor] = []
    for acts, times in _distinct(sub_circuits(), _at_once(pair, prompt)):
        end = pair.run_on(pair.decoded(acts, prompt), prompt)
        divergence = prompt.mean(compare(lm, end, references, prompt.tokens, conventions.kl).kl)
        row = torch.stack([*divergence, prompt.mean((acts != 0).sum(-1).float())], -1)
        rows.append(row.repeat_interleave(times, dim=0))
    kl_model, kl_circuit, l0_down = torch.cat(rows).double().T.unsqueeze(-1).cpu().numpy()
    live = torch.stack(live_edges).double().unsqueeze(-1).cpu().numpy()
    of_model, of_circuit = (compare(lm, end, references[:1], prompt.tokens, conventions.kl) for end in (own, full))
    floors = torch.cat([prompt.mean(of_circuit.kl[0]), prompt.mean_of_targets(of_circuit.ce - of_model.ce)])
    floor_kl, floor_ce = floors.double().unsqueeze(-1).cpu().numpy()
    kl_mean = kl_of_mean(pair, prompt, references[0], conventions.kl)
    check_finite(prompt, kl_model, kl_circuit, floors.cpu().numpy())
    return Curves(kl_model, kl_circuit, live, l0_down, floor_kl, floor_ce, kl_mean, *sizes(prompt))


def kl_of_mean(
    pair: Pair, prompt: Prompt, own: LogProbs, divergence: Callable[[Tensor, Tensor], Tensor] = kl
) -> Float[np.ndarray, " one"]:
    """KL(full model || downstream site set to its mean), nats, mean over positions; NaN where the mean is not known.

    It depends on the model, the site and the text, and on no SAE.

    Args:
        pair: what is scored.
        prompt: where.
        own: the model's own log-probabilities on the prompt.
        divergence: how they are compared.

    Raises:
        UserError: an output that is not finite.
    """
    if pair.site_mean is None:
        return np.array([np.nan])
    x = prompt.with_own(pair.site_mean.expand_as(prompt.x_spliced), prompt.x_spliced)
    found = compare(pair.lm, pair.run_on(x, prompt), [own], prompt.tokens, divergence)
    mean = prompt.mean(found.kl[0]).double().cpu().numpy()
    check_finite(prompt, mean)
    return mean


def sizes(prompt: Prompt) -> Float[np.ndarray, "two one"]:
    """How many tokens of a prompt count, and how many of those are predicted."""
    text = prompt.text.cpu().numpy()
    return np.array([[text.sum()], [text[1:].sum()]], dtype=float)


def check_finite(prompt: Prompt, *measured: Float[np.ndarray, "..."]) -> None:
    """Raise a UserError if something measured on a prompt is not finite."""
    if not all(np.isfinite(values).all() for values in measured):
        raise UserError(f"prompt {prompt.number}: the model's output is not finite; check the language model's weights")


def _at_once(pair: Pair, prompt: Prompt) -> int:
    """How many sub-circuits run on to the end of the model at a time."""
    return max(1, PASS_BYTES // (4 * len(prompt.z) * max(8 * pair.lm.d_model, pair.down.d_sae)))


def _distinct(
    sub_circuits: Iterator[Float[Tensor, "token n_down"]], size: int
) -> Iterator[tuple[Float[Tensor, "some token n_down"], Int[Tensor, " some"]]]:
    """Some different sub-circuits at a time, and for how many counts each of them stands: the next counts of a sweep
    often change nothing at the tokens of a prompt.
    """
    some: list[Tensor] = []
    times: list[int] = []
    for acts in sub_circuits:
        if some and torch.equal(some[-1], acts):
            times[-1] += 1
            continue
        if len(some) == size:
            yield torch.stack(some), torch.tensor(times, device=acts.device)
            some, times = [], []
        some.append(acts)
        times.append(1)
    yield torch.stack(some), torch.tensor(times, device=some[0].device)
