"""Linear probes on labels, and what they say of SAEs: sparse probing, targeted perturbation, spurious correlations.

A label is a boolean a token (or an activation). Probes are logistic regressions, classes weighted alike, fitted to
convergence; the difference of means that ranks latents is in units of each latent's standard deviation.

    sparse_probe(acts, label)         sparse probing: do a few latents know the label?
    tpp(sae, x, labels)               targeted probe perturbation: do a label's latents affect that label alone?
    scr(sae, x, wanted, spurious)     spurious correlation removal: can a bias be cut out by its latents?

Even and odd rows are the two halves: latents and probes are chosen on the first, everything is scored on the second.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.saes.sae import SAE

Rows = Float[Tensor, "n width"]
Label = Bool[Tensor, " n"]


class Probe(NamedTuple):
    """A logistic regression: the label's log-odds are x w + b."""

    w: Float[Tensor, " width"]
    b: Float[Tensor, ""]

    def says(self, x: Float[Tensor, "n width"]) -> Label:
        """The label it predicts."""
        return x @ self.w + self.b > 0


def fit(x: Rows, label: Label, l2: float = 1e-3) -> Probe:
    """A logistic regression with both classes weighted alike.

    Raises:
        UserError: the label is never, or always, true.
    """
    check_label(label)
    scale = x.std(0).clamp_min(1e-8)
    rows, y = ((x - x.mean(0)) / scale).double(), label.double()
    weight = torch.where(label, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    parameters = torch.zeros(x.shape[1] + 1, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        odds = rows @ parameters[:-1] + parameters[-1]
        cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(odds, y, weight)
        total = cross_entropy + l2 * parameters[:-1].square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    w = (parameters.detach()[:-1] / scale).float()
    return Probe(w, (parameters.detach()[-1] - (x.mean(0) * w).sum()).float())


def check_label(label: Label) -> None:
    """Raise a UserError for a label that cannot be learned."""
    if not label.any():
        raise UserError("a label never occurs in the text: measure on more tokens, or take another label")
    if label.all():
        raise UserError("a label is true everywhere: there is nothing to tell apart")


def f1(said: Label, label: Label) -> float:
    """Harmonic mean of precision and recall."""
    right = (said & label).sum().item()
    return 2 * right / max(1, said.sum().item() + label.sum().item())


def balanced_accuracy(said: Label, label: Label) -> float:
    """Mean of the shares of both classes that are right."""
    return 0.5 * (said[label].float().mean() + (~said)[~label].float().mean()).item()


def difference(acts: Rows, label: Label) -> Float[Tensor, " width"]:
    """Mean with the label less mean without, in standard deviations of each column."""
    return (acts[label].mean(0) - acts[~label].mean(0)) / acts.std(0).clamp_min(1e-8)


def sparse_probe(acts: Rows, label: Label, ks: Sequence[int] = (1, 2, 5)) -> dict[int, float]:
    """Balanced accuracy of a probe on the k latents whose means differ most, by k.

    Raises:
        UserError: the label never occurs, or k exceeds the latents.
    """
    if max(ks) > acts.shape[1]:
        raise UserError(f"k = {max(ks)}: there are {acts.shape[1]} latents")
    check_label(label[::2])
    check_label(label[1::2])
    order = difference(acts[::2], label[::2]).abs().argsort(descending=True)
    found: dict[int, float] = {}
    for k in ks:
        some = acts[:, order[:k]]
        found[k] = balanced_accuracy(fit(some[::2], label[::2]).says(some[1::2]), label[1::2])
    return found


def tpp(
    sae: SAE,
    x: Rows,
    labels: Sequence[Label],
    ns: Sequence[int] = (2, 5, 20),
    probes: Sequence[Probe] | None = None,
) -> dict[int, float]:
    """Targeted probe perturbation by number of latents: own effect less effect on the others, mean over labels.

    For each label, the n latents with the largest difference of means times alignment of decoder and probe are
    set to zero, the reconstruction error kept; the effect is the fall of a probe's balanced accuracy. Between -1 and 1.

    Args:
        sae: what is measured.
        x: activations.
        labels: which should not imply each other.
        ns: latents that are set to zero.
        probes: of the labels, fitted on even rows; fitted here otherwise.

    Raises:
        UserError: fewer than two labels, or one that never occurs.
    """
    if len(labels) < 2:
        raise UserError("tpp compares labels: it needs two or more")
    probes = probes or [fit(x[::2], label[::2]) for label in labels]
    acts = sae.encode(x)
    clean = [balanced_accuracy(p.says(x[1::2]), label[1::2]) for p, label in zip(probes, labels, strict=True)]
    scores: dict[int, float] = dict.fromkeys(ns, 0.0)
    for i, (probe, label) in enumerate(zip(probes, labels, strict=True)):
        order = _latents_of(sae, acts[::2], label[::2], probe)
        for n in ns:
            without = _without(sae, x[1::2], acts[1::2], order[:n])
            falls = [
                c - balanced_accuracy(p.says(without), y[1::2]) for c, p, y in zip(clean, probes, labels, strict=True)
            ]
            others = (sum(falls) - falls[i]) / (len(labels) - 1)
            scores[n] += (falls[i] - others) / len(labels)
    return scores


def scr(sae: SAE, x: Rows, wanted: Label, spurious: Label, ns: Sequence[int] = (2, 5, 20)) -> dict[int, float] | None:
    """Spurious correlation removal: how much of what a bias costs comes back when its n latents are cut out.

    A probe for `wanted` is fitted where both labels agree, so it may as well read `spurious`; the score is
    (after - before) / (best - before) of its balanced accuracy, `best` being that of a probe fitted on all rows.

    Returns:
        The share by number of latents; None where the bias costs less than 0.001.

    Raises:
        UserError: two labels that never disagree.
    """
    if (wanted == spurious).all():
        raise UserError("scr needs labels that sometimes disagree")
    first = torch.arange(len(x)) % 2 == 0
    biased_rows = first & (wanted == spurious)
    biased = fit(x[biased_rows], wanted[biased_rows])
    best = balanced_accuracy(fit(x[first], wanted[first]).says(x[~first]), wanted[~first])
    before = balanced_accuracy(biased.says(x[~first]), wanted[~first])
    if best - before < 1e-3:
        return None
    acts = sae.encode(x)
    order = _latents_of(sae, acts[first], spurious[first], fit(x[first], spurious[first]))
    after = {n: biased.says(_without(sae, x[~first], acts[~first], order[:n])) for n in ns}
    return {n: (balanced_accuracy(said, wanted[~first]) - before) / (best - before) for n, said in after.items()}


def _latents_of(sae: SAE, acts: Rows, label: Label, probe: Probe) -> Int[Tensor, " d_sae"]:
    """All latents, those that push a probe towards its label first."""
    push = (acts[label].mean(0) - acts[~label].mean(0)) * (sae.W_dec @ probe.w)
    return push.argsort(descending=True)


def _without(sae: SAE, x: Rows, acts: Float[Tensor, "n _"], latents: Int[Tensor, " _"]) -> Rows:
    """The activation with some latents' contributions taken out."""
    return x - acts[:, latents] @ sae.W_dec[latents]
