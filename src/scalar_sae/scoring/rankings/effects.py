"""What one upstream latent does to every downstream latent: the raw material of the rankings.

An *ablation unit* is an upstream latent that is removed or added. At a block without attention it is a latent at one
token. At a block with attention it is a latent of the whole prompt, as an edge of a sub-circuit is. A batch of units,
each removed or added alone, is one batched pass of the block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_ad
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scalar_sae.kernels import linear
from scalar_sae.scoring.pair import Pair, Prompt

BATCH_BYTES = 2**22
"""Bytes for a batch of units: their effects in float32, or hidden layers of 4 d_model, whichever is larger."""
LEAST_ROWS = 512
"""The fewest tokens of a batch, whatever its bytes: a matrix product of fewer rows is slow with wide matrices."""
MEAN_BYTES = 2**28
"""Bytes for means over random orders and their squares. They are computed for as many downstream latents as fit."""
LABEL_BYTES = 2**26
"""Bytes for the log-probabilities of the labels that are drawn at a time."""


@dataclass(frozen=True, eq=False)
class AblationUnits:
    """Upstream latents whose effects are asked for, a row each."""

    latent: Int[Tensor, "unit token"]
    change: Float[Tensor, "unit token"]
    """What the latent adds along its decoder row; zero where there is nothing to remove."""

    @classmethod
    def of(cls, pair: Pair, prompt: Prompt) -> "AblationUnits":
        """The units of a prompt."""
        active = prompt.active
        if not pair.block.mixes_tokens:
            return cls(active.latent.T, active.change.T)
        latent = active.latent[active.used].unique()
        change = torch.zeros_like(prompt.z).scatter_add_(1, active.latent, active.change)
        return cls(latent.unsqueeze(1).expand(-1, len(prompt.z)), change.T[latent])

    def batches(self, pair: Pair, n_columns: int) -> Iterator["AblationUnits"]:
        """The units, a batch at a time."""
        n_token = self.latent.shape[1]
        n = max(LEAST_ROWS // n_token, BATCH_BYTES // (4 * n_token * max(n_columns, 4 * pair.lm.d_model)), 1)
        for latent, change in zip(self.latent.split(n), self.change.split(n), strict=True):
            yield AblationUnits(latent, change)

    def adds(self, pair: Pair) -> Float[Tensor, "unit token d_model"]:
        """The part of the upstream reconstruction that each unit adds."""
        return pair.added(self.latent, self.change)

    def touched(self, pair: Pair, prompt: Prompt) -> Bool[Tensor, "unit token"]:
        """The units and tokens where a unit changes something that counts.

        The token is ordinary, and the unit adds something there or, at a block with attention, at an earlier token.

        Elsewhere a computed effect would be rounding, and would count as an effect.
        """
        here = self.change != 0
        return (here.cumsum(1) > 0 if pair.block.mixes_tokens else here) & prompt.text

    def add_squares(
        self, total: Float[Tensor, "n_up n_col"], effect: Float[Tensor, "unit token n_col"], mixes_tokens: bool
    ) -> None:
        """Add the squared effects of the units, summed over tokens, to their latents' rows of `total`."""
        square = effect.square()
        if mixes_tokens:  # one latent a row
            total.index_add_(0, self.latent[:, 0], square.sum(1).double())
        else:
            total.index_add_(0, self.latent.flatten(), square.flatten(0, 1).double())


@torch.no_grad()
def of_removal(
    pair: Pair, prompt: Prompt, columns: slice
) -> Iterator[tuple[AblationUnits, Float[Tensor, "unit token n_col"], Float[Tensor, "unit token n_col"]]]:
    """The exact changes of each downstream latent when one unit is removed from the full circuit.

    The first is the change of its activation, after selection. The second is the change of its pre-activation, which
    moves whether or not the latent is selected.

    Only the latent's own pre-activation moves. The others stay what they are in the full circuit.
    """
    rule, start = pair.down.activation, pair.reconstruct(prompt.z, prompt)
    pre_acts = pair.pre_acts(start.unsqueeze(0), prompt)[0]
    competing_threshold, acts = rule.competing_threshold(pre_acts)[:, columns], rule.select(pre_acts)[:, columns]
    for some, changed in _changed(pair, prompt, start, pre_acts[:, columns], columns):
        yield (
            some,
            rule.activate_independently(changed, competing_threshold).sub_(acts),
            changed.sub_(pre_acts[:, columns]),
        )


def _changed(
    pair: Pair,
    prompt: Prompt,
    start: Float[Tensor, "token d_model"],
    pre_acts: Float[Tensor, "token n_col"],
    columns: slice,
) -> Iterator[tuple[AblationUnits, Float[Tensor, "unit token n_col"]]]:
    """Pre-activations when each unit is removed from `start`. Where nothing changes, they are those at `start`."""
    W, b = pair.down.W_enc[:, columns], pair.down.b_enc[columns]
    for some in AblationUnits.of(pair, prompt).batches(pair, W.shape[1]):
        where = some.touched(pair, prompt)
        y = pair.compute_at(where, start - some.adds(pair), prompt.up_skip)
        changed = pre_acts.repeat(len(where), 1, 1)
        changed[where] = linear(pair.down.normalize_input(y), W, b)
        yield some, changed


def narrowed(pair: Pair, prompt: Prompt, columns: slice) -> Iterator[slice]:
    """Downstream latents, as many at a time as `of_random_orders` has room for."""
    an_entry = 8 if pair.block.mixes_tokens else 16  # the mean and its square; summed over tokens at once, or not
    most = max(1, MEAN_BYTES // (an_entry * AblationUnits.of(pair, prompt).latent.numel()))
    width = most - most % 64 if most > 64 else most  # whole vectors: sums over tokens stay the same to the bit
    for start in range(columns.start, columns.stop, width):
        yield slice(start, min(start + width, columns.stop))


@torch.no_grad()
def of_random_orders(
    pair: Pair, prompt: Prompt, columns: slice, n_orders: int, generator: torch.Generator
) -> tuple[AblationUnits, Float[Tensor, "unit token n_col"]]:
    """Mean exact change of each latent's activation as the units enter one after the other, over random orders."""
    units, start = AblationUnits.of(pair, prompt), pair.with_active_ablated(prompt)
    n_unit, n_token = units.latent.shape
    mean = units.change.new_zeros(n_unit, n_token, len(range(*columns.indices(pair.down.d_sae))))
    for _ in range(n_orders):
        draws = torch.rand(n_unit, 1 if pair.block.mixes_tokens else n_token, generator=generator, device="cpu")
        order = draws.argsort(0).expand(-1, n_token).to(mean.device)
        entering = AblationUnits(units.latent.gather(0, order), units.change.gather(0, order))
        x = start.unsqueeze(0)
        acts = pair.down.activation.select(pair.pre_acts(x, prompt))[..., columns]
        place = order.unsqueeze(-1).expand(-1, -1, mean.shape[-1]).split(1)
        done = 0
        for some in entering.batches(pair, pair.down.d_sae):
            xs = x + some.adds(pair).cumsum(0)
            after = pair.down.activation.select(pair.pre_acts(xs, prompt))[..., columns]
            step = (after - torch.cat([acts, after[:-1]])) / n_orders
            mean.scatter_add_(0, torch.cat(place[done : done + len(step)]), step)
            x, acts, done = xs[-1:], after[-1:], done + len(step)
    return units, mean


def of_a_gradient(
    pair: Pair, prompt: Prompt, columns: slice, alphas: Sequence[float]
) -> Iterator[tuple[AblationUnits, Float[Tensor, "unit token n_col"]]]:
    """Change times gradient of relu(pre-activation), averaged over points base + alpha (x - base): forward mode.

    At `base` all active latents are ablated.

    The tangent of one unit gives its effect on every latent at every position.
    """
    W, b = pair.down.W_enc[:, columns], pair.down.b_enc[columns]
    base = pair.with_active_ablated(prompt)
    path = pair.reconstruct(prompt.z, prompt) - base
    for some in AblationUnits.of(pair, prompt).batches(pair, W.shape[1]):
        tangent = some.adds(pair)
        effect = tangent.new_zeros(*tangent.shape[:2], W.shape[1])
        for alpha in alphas:
            x = (base + alpha * path).expand_as(tangent).contiguous()
            with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():  # the fused kernels have no forward mode
                y = pair.down.normalize_input(pair.compute(forward_ad.make_dual(x, tangent), prompt.up_skip))
                value, slope = forward_ad.unpack_dual(y)
            positive = (value[0] @ W + b) > 0
            assert slope is not None
            effect += slope @ W * positive / len(alphas)
        yield some, prompt.at_text(effect)


def fisher(pair: Pair, prompt: Prompt, n_labels: int, generator: torch.Generator) -> Float[Tensor, "token n_down"]:
    """The sensitivity of the model's output to each downstream latent at each token.

    Fisher information of the output distribution along the latent's decoder row, at the full circuit: mean over sampled
    labels of the squared derivative of their log-probability. What is predicted at special tokens does not count.
    """
    with torch.no_grad():
        full = pair.decoded(pair.full_circuit(prompt), prompt)
    total = full.new_zeros(len(full), pair.down.d_sae)
    at_once = max(1, LABEL_BYTES // (4 * len(full) * max(pair.lm.d_vocab, pair.down.d_sae)))
    for done in range(0, n_labels, at_once):
        x = full.repeat(min(at_once, n_labels - done), 1, 1).requires_grad_()
        log_probs = pair.log_probs(x, prompt)
        labels = torch.multinomial(log_probs.detach().exp().flatten(0, 1).cpu(), 1, generator=generator).to(x.device)
        said = log_probs.flatten(0, 1).gather(1, labels).view(len(x), -1)
        (gradient,) = torch.autograd.grad(said[:, prompt.text].sum(), x)
        if pair.down.norm is not None:
            gradient = gradient * pair.down.norm.scale(prompt.x_down)
        total += (gradient @ pair.down.W_dec.T).square().sum(0)
    return total / n_labels


@torch.no_grad()
def at_every_token(pair: Pair, prompt: Prompt) -> Float[Tensor, "token active n_down"]:
    """The order of local edges: size of the exact change when an edge is removed at one token alone, in units of the
    model's activations (times the norm of the downstream latent's decoder row).

    An edge without an effect is below zero. These edges are ordered by the change of the latent's pre-activation: one
    that keeps a latent from being active has no effect as long as others do the same.

    At a block with attention a removal is felt at later positions too: root of the sum of squares over them.
    """
    norms = pair.down.W_dec.norm(dim=1)
    if not pair.block.mixes_tokens:
        (n_token, n_active), done = prompt.active.latent.shape, 0
        by_active = prompt.z.new_empty(n_active, n_token, pair.down.d_sae)
        for _, effect, drive in of_removal(pair, prompt, slice(0, pair.down.d_sae)):
            by_active[done : done + len(effect)] = _shown_or_likely(effect.abs_(), drive.abs_(), norms)
            done += len(effect)
        return by_active.transpose(0, 1)
    rule, start = pair.down.activation, pair.reconstruct(prompt.z, prompt)
    pre_acts = pair.pre_acts(start.unsqueeze(0), prompt)[0]
    competing_threshold, acts = rule.competing_threshold(pre_acts), rule.select(pre_acts)
    active = prompt.active
    n_token, n_active = active.latent.shape
    size = start.new_zeros(n_token * n_active, pair.down.d_sae)
    every = torch.arange(n_token * n_active, device=start.device)
    for rows in every.split(max(1, BATCH_BYTES // (4 * n_token * pair.down.d_sae))):
        token, entry = rows // n_active, rows % n_active
        x = start.repeat(len(rows), 1, 1)
        x[every[: len(rows)], token] -= pair.added(active.latent[token, entry], active.change[token, entry])
        changed = pair.pre_acts(x, prompt)
        drive = torch.linalg.vector_norm(changed - pre_acts, dim=1)
        effect = torch.linalg.vector_norm(rule.activate_independently(changed, competing_threshold) - acts, dim=1)
        size[rows] = _shown_or_likely(effect, drive, norms)
    return size.view(n_token, n_active, -1)


def _shown_or_likely(
    effect: Float[Tensor, "*many n_down"], drive: Float[Tensor, "*many n_down"], norms: Float[Tensor, " n_down"]
) -> Float[Tensor, "*many n_down"]:
    """Effects; where there is none, below zero, in the order of the change of the pre-activation."""
    return torch.where(effect > 0, effect * norms, -1 / (1 + drive * norms))
