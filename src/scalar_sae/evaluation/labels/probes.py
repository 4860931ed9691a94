"""Linear probes on labels, and SAE evaluations that use them: sparse probing, TPP and SCR.

A label is one boolean per token (or activation). Probes are logistic regressions with equal class weights, fitted to
convergence. Latents are ranked by difference of means, in units of each latent's standard deviation.

    sparse_probe(acts, label)         sparse probing: do a few latents predict the label?
    tpp(sae, x, labels)               targeted probe perturbation: do a label's latents affect only that label?
    scr(sae, x, wanted, spurious)     spurious correlation removal: does ablating its latents remove a bias?

Even and odd rows are the two halves: latents and probes are chosen on the first, and everything is scored on the
second.
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
    """Fit a logistic regression with equal class weights.

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
    """Raise a UserError if a label is never, or always, true."""
    if not label.any():
        raise UserError("a label never occurs in the text: measure on more tokens, or take another label")
    if label.all():
        raise UserError("a label is true everywhere: there is nothing to tell apart")


def f1(said: Label, label: Label) -> float:
    """Harmonic mean of precision and recall."""
    right = (said & label).sum().item()
    return 2 * right / max(1, said.sum().item() + label.sum().item())


def balanced_accuracy(said: Label, label: Label) -> float:
    """Mean of the accuracies within both classes."""
    return 0.5 * (said[label].float().mean() + (~said)[~label].float().mean()).item()


def difference(acts: Rows, label: Label) -> Float[Tensor, " width"]:
    """Mean with the label minus mean without it, in standard deviations of each column."""
    return (acts[label].mean(0) - acts[~label].mean(0)) / acts.std(0).clamp_min(1e-8)


def sparse_probe(acts: Rows, label: Label, ks: Sequence[int] = (1, 2, 5)) -> dict[int, float]:
    """Balanced accuracy of a probe on the k latents with the largest difference of means, by k.

    Raises:
        UserError: the label never occurs, or k exceeds the number of latents.
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
    """Targeted probe perturbation by number of latents: own effect minus effect on the others, averaged over labels.

    For each label, latents are ranked by difference of means times alignment of decoder and probe. The first n are set
    to zero while the reconstruction error is kept. The effect is the fall of a probe's balanced accuracy. Scores are
    between -1 and 1.

    Args:
        sae: the SAE to measure.
        x: activations.
        labels: labels that do not imply each other.
        ns: numbers of latents set to zero.
        probes: probes of the labels, fitted on even rows; None fits them here.

    Raises:
        UserError: there are fewer than two labels, or one never occurs.
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
    """Spurious correlation removal: the share of a bias's cost that is regained by ablating n latents.

    A probe for `wanted` is fitted where both labels agree, so it may read `spurious` instead. The score is
    (after - before) / (best - before) in balanced accuracy, where `best` is that of a probe fitted on all rows.

    Returns:
        The score by number of latents; None if the bias costs less than 0.001.

    Raises:
        UserError: the two labels never disagree.
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
    """All latents, sorted so that those that push a probe most towards its label come first."""
    push = (acts[label].mean(0) - acts[~label].mean(0)) * (sae.W_dec @ probe.w)
    return push.argsort(descending=True)


def _without(sae: SAE, x: Rows, acts: Float[Tensor, "n _"], latents: Int[Tensor, " _"]) -> Rows:
    """The activation without the contributions of some latents."""
    return x - acts[:, latents] @ sae.W_dec[latents]
