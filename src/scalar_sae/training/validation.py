"""How SAEs in training do on text they never see: L0, FVU, cosine, cross-entropy, dead share."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from scalar_sae.lm.model import At, LanguageModel
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.trainee import Trainee
from scalar_sae.sites import Site


class Validation:
    """Fixed validation text with the model's activations on it."""

    @torch.no_grad()
    def __init__(
        self, lm: LanguageModel, tokens: Int[Tensor, "prompt token"], sites: list[Site], exclude: tuple[int, ...]
    ) -> None:
        self._lm, self._tokens = lm, tokens
        self._kept = ~torch.isin(tokens, torch.tensor(exclude, dtype=tokens.dtype))
        self._states = lm.states(tokens, sites)
        self._clean = self._cross_entropy(lm.logits(tokens))

    @torch.no_grad()
    def measure(self, trainee: Trainee) -> dict[str, dict[str, float]]:
        """Every SAE of a trainee as it would be exported now: site -> measure -> value."""
        return {str(site): self._one(trainee.sae(site), site, trainee.target(site)) for site in trainee.sites}

    @torch.no_grad()
    def spliced(self, trainees: list[Trainee]) -> float | None:
        """Increase of cross-entropy (nats) with all the SAEs at once, each reading what the earlier ones left.

        None for transcoders and off the residual stream, where a reconstruction does not decide all that comes after.
        """
        ends = [(site, trainee) for trainee in trainees for site in trainee.sites]
        if not all(site.on_residual_stream and trainee.target(site) == site for site, trainee in ends):
            return None
        ends.sort(key=lambda end: end[0])
        here = ends[0][0]
        x = self._states[here].x
        for site, trainee in ends:
            x = x if site == here else self._lm.run(here, site, x)
            x, here = self._put(x, trainee.sae(site)), site
        return self._cross_entropy(self._lm.logits_from(here, x)) - self._clean

    def _one(self, sae: SAE, site: Site, target: Site) -> dict[str, float]:
        x, y = self._states[site].x[self._kept], self._states[target].x[self._kept]
        acts = sae.encode(x)
        y_hat = sae.decode(acts)
        fired = acts > 0
        return {
            "l0": fired.sum(1).float().mean().item(),
            "loss": (y - y_hat).square().sum(1).mean().item(),
            "fvu": ((y - y_hat).square().sum() / (y - y.mean(0)).square().sum()).item(),
            "cosine": cosine_similarity(y, y_hat).mean().item(),
            "ce_increase": self._ce_increase(sae, site, target),
            "dead": 1 - fired.any(0).float().mean().item(),
        }

    def _ce_increase(self, sae: SAE, site: Site, target: Site) -> float:
        state: At = self._states[target]
        put = torch.where(self._kept.unsqueeze(-1), sae.decode(sae.encode(self._states[site].x)), state.x)
        return self._cross_entropy(self._lm.logits_from(target, put, state.skip)) - self._clean

    def _put(self, x: Float[Tensor, "prompt token d_model"], sae: SAE) -> Float[Tensor, "prompt token d_model"]:
        return torch.where(self._kept.unsqueeze(-1), sae.decode(sae.encode(x)), x)

    def _cross_entropy(self, logits: Float[Tensor, "prompt token d_vocab"]) -> float:
        return cross_entropy(logits[:, :-1].flatten(0, 1), self._tokens[:, 1:].flatten().long()).item()


def rounded(measures: dict[str, Any]) -> dict[str, Any]:
    """Five significant digits, for a log."""
    return {
        name: rounded(value) if isinstance(value, dict) else float(f"{value:.5g}") for name, value in measures.items()
    }
