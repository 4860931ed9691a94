"""Activations on the fly: shuffled windows of text through the language model, tokens shuffled across windows.

    for buffer in stream.buffers(): ...        # site -> [n_tokens, d_model]

The text is cut into windows without overlap; every epoch visits them in a new order. One buffer holds many windows
and is shuffled token by token, so the tokens of a training batch come from all over the text. Buffer i depends on
(seed, i) alone: whoever knows i can go on from there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.lm.model import LanguageModel
from scalar_sae.sites import Site

Buffer = dict[Site, Float[Tensor, "_ d_model"]]


@dataclass(frozen=True)
class ActivationStream:
    """A reproducible stream of shuffled activations at several sites, one pass over the model for all of them."""

    lm: LanguageModel
    prompts: Int[Tensor, "n_windows context"]
    sites: list[Site]
    buffer_tokens: int
    seed: int
    lm_batch: int = 32
    """Windows per forward pass."""

    @property
    def windows_per_buffer(self) -> int:
        """Windows in one buffer: no more than the text has."""
        return max(1, min(self.buffer_tokens // self.prompts.shape[1], self.prompts.shape[0]))

    @property
    def tokens_per_buffer(self) -> int:
        """Tokens in one buffer."""
        return self.windows_per_buffer * self.prompts.shape[1]

    def buffers(self, start: int = 0) -> Iterator[Buffer]:
        """Yield buffers without end, from number `start` on."""
        per_epoch = self.prompts.shape[0] // self.windows_per_buffer
        index = start
        while True:
            epoch, place = divmod(index, per_epoch)
            order = torch.randperm(self.prompts.shape[0], generator=self._generator(2 * epoch))
            chosen = order[place * self.windows_per_buffer :][: self.windows_per_buffer]
            yield self._read(self.prompts[chosen], self._generator(2 * index + 1))
            index += 1

    @torch.no_grad()
    def _read(self, prompts: Int[Tensor, "windows context"], generator: torch.Generator) -> Buffer:
        shuffle = torch.randperm(prompts.numel(), generator=generator)
        buffer = {site: torch.empty(prompts.numel(), self.lm.d_model) for site in self.sites}
        done = 0
        for batch in prompts.split(self.lm_batch):
            for site, acts in self.lm.activations(batch, self.sites).items():
                buffer[site][shuffle[done : done + batch.numel()]] = acts.flatten(0, 1)
            done += batch.numel()
        return buffer

    def _generator(self, salt: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + salt)
