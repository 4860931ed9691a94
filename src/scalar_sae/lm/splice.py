"""Run the model with its activations replaced at some sites, and measure the effect on its output.

    splice = Splice(lm, tokens, keep, states)
    splice.losses(splice.end({site: lambda x: new}))   # cross-entropy and KL at every token

A replacement is a function of the current activation, so a later site sees the effect of earlier replacements. Special
tokens keep the model's own activation at every site and are not counted (lm/special.py).
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scalar_sae.kernels import FastCPUOps
from scalar_sae.lm.model import LanguageModel, Replacement, SiteState
from scalar_sae.lm.outputs import compare, log_probs
from scalar_sae.sites import Site


class Losses(NamedTuple):
    """The losses with replaced activations, in nats; zero where a token is not counted."""

    ce: Float[Tensor, "prompt token_1"]
    """Next-token cross-entropy at all tokens but the last."""
    kl: Float[Tensor, "prompt token"]
    """KL(model || model with replaced activations)."""


class Splice:
    """Some prompts, the model's own states at some sites, and its output distributions."""

    @torch.no_grad()
    def __init__(
        self,
        lm: LanguageModel,
        tokens: Int[Tensor, "prompt token"],
        keep: Bool[Tensor, "prompt token"],
        states: Mapping[Site, SiteState],
    ) -> None:
        """Run the model from the last of the states to its output.

        Args:
            lm: the model.
            tokens: the prompts.
            keep: mask of the tokens that count; false at special tokens.
            states: the model's own state at every site that will be replaced.
        """
        self._lm, self._tokens, self._keep, self._states = lm, tokens.long(), keep, states
        last = max(states)
        self._clean = log_probs(lm, self.end_from(last, states[last]))

    def state(self, replace: Mapping[Site, Replacement]) -> SiteState:
        """The state at the last of the replaced sites."""
        with FastCPUOps():
            return self._lm.spliced(
                self._states[min(replace)], {site: self._at_counted(site, new) for site, new in replace.items()}
            )

    def end_from(self, site: Site, state: SiteState) -> Float[Tensor, "_ token d_model"]:
        """The residual stream after the last layer when the model runs from a state."""
        with FastCPUOps():
            return self._lm.run(site, self._lm.end, *state)

    def end(self, replace: Mapping[Site, Replacement]) -> Float[Tensor, "prompt token d_model"]:
        """The residual stream after the last layer with these activations replaced."""
        return self.end_from(max(replace), self.state(replace))

    def clean_ce(self) -> Float[Tensor, "prompt token_1"]:
        """The model's own next-token cross-entropy in nats; zero where the next token is special."""
        target = self._tokens[:, 1:].unsqueeze(-1)
        return -self._clean[:, :-1].gather(-1, target).squeeze(-1) * self._keep[:, 1:]

    def losses(self, end: Float[Tensor, "_ token d_model"]) -> Losses:
        """The losses that follow from a residual stream after the last layer. A single row stands for all prompts."""
        found = compare(self._lm, end, [self._clean], self._tokens)
        return Losses(found.ce * self._keep[:, 1:], found.kl[0] * self._keep)

    def _at_counted(self, site: Site, new: Replacement) -> Replacement:
        """A replacement that leaves special tokens unchanged."""
        own, keep = self._states[site].x, self._keep.unsqueeze(-1)
        return lambda x: torch.where(keep, new(x), own)
