"""A stream of activations: windows of text in random order through the language model, then shuffled token by token.

    for buffer in stream.buffers(): ...        # site, or gradient at a site -> [n_tokens, d_model]

The text is cut into windows without overlap, and every epoch visits them in a new order. One buffer holds many windows
and is shuffled token by token, so the tokens of a training batch come from all over the text. Buffer i depends on
(seed, i) alone, so a run can resume at any buffer. With several workers, each runs the model on a part of the windows
and receives the whole buffer. The text stays on the CPU; a buffer is on the model's device.

Special tokens are left out by id (lm/special.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from scalar_sae import distributed
from scalar_sae.activations.reading import Gradient
from scalar_sae.kernels import FastCPUOps
from scalar_sae.lm.model import LanguageModel, SiteState
from scalar_sae.lm.special import Special, counted
from scalar_sae.sites import Site

IGNORED = -100
"""Target of positions that are excluded from the loss."""

Buffer = dict[Site | Gradient, Float[Tensor, "_ d_model"]]


@dataclass(frozen=True)
class ActivationStream:
    """A reproducible stream of shuffled activations at several sites, read in one pass over the model."""

    lm: LanguageModel
    prompts: Int[Tensor, "n_windows context"]
    reads: Sequence[Site | Gradient]
    buffer_tokens: int
    seed: int
    lm_batch: int = 32
    """Windows per forward pass."""
    special: Special = ()
    """Tokens whose activations are left out and that are no targets of a gradient's loss."""

    @property
    def windows_per_buffer(self) -> int:
        """Windows in one buffer, at most as many as the text has."""
        return max(1, min(self.buffer_tokens // self.prompts.shape[1], self.prompts.shape[0]))

    @property
    def tokens_per_buffer(self) -> int:
        """Tokens in one buffer, including special ones."""
        return self.windows_per_buffer * self.prompts.shape[1]

    def buffers(self, start: int = 0) -> Iterator[Buffer]:
        """Yield buffers endlessly, from number `start` on."""
        per_epoch = self.prompts.shape[0] // self.windows_per_buffer
        index = start
        while True:
            epoch, place = divmod(index, per_epoch)
            order = self._order(self.prompts.shape[0], 2 * epoch)
            chosen = order[place * self.windows_per_buffer :][: self.windows_per_buffer]
            yield self._read(self.prompts[chosen], 2 * index + 1)
            index += 1

    def _read(self, prompts: Int[Tensor, "windows context"], salt: int) -> Buffer:
        prompts = prompts.to(self.lm.device)
        kept = counted(prompts, self.special)
        shuffle = self._order(int(kept.sum()), salt).to(prompts.device)
        buffer = {read: torch.zeros(len(shuffle), self.lm.d_model, device=prompts.device) for read in self.reads}
        batches, keeps = prompts.split(self.lm_batch), kept.split(self.lm_batch)
        places = shuffle.split([int(keep.sum()) for keep in keeps])
        for number in distributed.shard(len(batches)):
            for read, acts in read_all(self.lm, batches[number], self.reads, self.special).items():
                buffer[read][places[number]] = acts[keeps[number]]
        for acts in buffer.values():
            distributed.all_sum(acts)
        return buffer

    def _order(self, n: int, salt: int) -> Int[Tensor, " n"]:
        return torch.randperm(n, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + salt), device="cpu")


def read_all(
    lm: LanguageModel,
    tokens: Int[Tensor, "batch token"],
    reads: Sequence[Site | Gradient],
    special: Special = (),
) -> dict[Site | Gradient, Float[Tensor, "batch token d_model"]]:
    """All activations and gradients on a few windows, at every position. Special tokens are no targets of a gradient's
    loss.
    """
    sites = {read.site if isinstance(read, Gradient) else read for read in reads}
    with torch.no_grad(), FastCPUOps():
        states = lm.states(tokens, sorted(sites))
    target = tokens[:, 1:].long().masked_fill(~counted(tokens, special)[:, 1:], IGNORED)
    return {
        read: _gradient(lm, target, read.site, states[read.site]) if isinstance(read, Gradient) else states[read].x
        for read in reads
    }


def _gradient(
    lm: LanguageModel, target: Int[Tensor, "batch n_target"], site: Site, at: SiteState
) -> Float[Tensor, "batch token d_model"]:
    with torch.enable_grad():
        x = at.x.detach().requires_grad_()
        logits = lm.logits_from(site, x, at.skip)
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), target.flatten(), reduction="sum", ignore_index=IGNORED)
        return torch.autograd.grad(loss, x)[0]
