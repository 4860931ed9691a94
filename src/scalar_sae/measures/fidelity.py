"""How well each SAE stands in for the activation it reads: L0, loss, FVU, increase of cross-entropy, dead share."""

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.lm.model import At, LanguageModel
from scalar_sae.results import SaeFidelity
from scalar_sae.runs import Bar
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site


@torch.no_grad()
def fidelity(
    lm: LanguageModel, saes: dict[str, dict[Site, SAE]], tokens: Int[Tensor, "prompt token"]
) -> list[SaeFidelity]:
    """Measure every SAE on the same prompts, one pass over the model for all of them."""
    sites = sorted({site for group in saes.values() for site in group})
    states = lm.states(tokens, sites)
    clean = _cross_entropy(lm.logits(tokens), tokens)
    todo = [(method, site, sae) for method, group in saes.items() for site, sae in sorted(group.items())]
    found: list[SaeFidelity] = []
    with Bar("measure SAEs", len(todo)) as bar:
        for method, site, sae in todo:
            found.append(_one(lm, method, site, sae, states[site], tokens, clean))
            bar.step()
    return found


def _one(
    lm: LanguageModel,
    method: str,
    site: Site,
    sae: SAE,
    state: At,
    tokens: Int[Tensor, "prompt token"],
    clean: float,
) -> SaeFidelity:
    x = state.x
    acts = sae.encode(x)
    x_hat = sae.decode(acts)
    error = (x - x_hat).square().sum()
    variance = (x - x.mean((0, 1))).square().sum()
    fired = (acts > 0).flatten(0, 1).float()
    chunks = [0, *(sae.chunks or (sae.d_sae,))]
    return SaeFidelity(
        method=method,
        site=str(site),
        d_sae=sae.d_sae,
        activation=str(sae.activation),
        l0=fired.sum(1).mean().item(),
        loss=(error / tokens.numel()).item(),
        fvu=(error / variance).item(),
        ce_increase=_cross_entropy(lm.logits_from(site, x_hat, state.skip), tokens) - clean,
        dead=(fired.amax(0) == 0).float().mean().item(),
        l0_per_chunk=[fired[:, start:end].sum(1).mean().item() for start, end in pairwise(chunks)],
        n_tokens=tokens.numel(),
    )


def _cross_entropy(logits: Float[Tensor, "prompt token d_vocab"], tokens: Int[Tensor, "prompt token"]) -> float:
    """Mean next-token cross-entropy in nats."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()
