"""The direct effect of a latent on the logits: the tokens that its decoder direction promotes and suppresses.

The direct effect goes through the residual stream to the unembedding and bypasses all later layers. The final norm is
linearised at the model's own activations: J is the mean over some tokens of d logits / d x at the last residual stream.
The effect of latent i is

    W_dec[i] J     minus its mean over the vocabulary, which changes no probability

in logits per unit of activation.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import Rule, counted
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site

STREAM = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""Sites whose activations are in the residual stream or are added to it."""
TOKENS = 16
"""Number of tokens over which the final norm is linearised."""
_CELLS = 2**25
"""Number of logits held at once."""


@torch.no_grad()
def logit_effects(
    lm: LanguageModel, site: Site, sae: SAE, tokens: Int[Tensor, "prompt token"], special: Rule = "skip", n: int = 10
) -> dict[str, list[Any]]:
    """The tokens that each latent promotes and suppresses most; empty if the SAE does not write to the residual stream.

    Returns:
        Columns: `promoted` and `suppressed` (tokens, strongest first), `promoted_by` and `suppressed_by` (logits).
    """
    names = ("promoted", "promoted_by", "suppressed", "suppressed_by")
    if (sae.writes or site).kind not in STREAM:
        return {name: [np.empty(0, dtype=np.int32 if "_" not in name else np.float32)] * sae.d_sae for name in names}
    J = final_jacobian(lm, tokens, special)
    found: dict[str, list[Any]] = {name: [] for name in names}
    for some in sae.W_dec.split(max(1, _CELLS // lm.d_vocab)):
        effect = (some @ J).cpu()
        effect -= effect.mean(1, keepdim=True)
        for name, sign in (("promoted", 1), ("suppressed", -1)):
            best = (sign * effect).topk(min(n, lm.d_vocab), dim=1)
            found[name] += list(best.indices.int().numpy())
            found[f"{name}_by"] += list((sign * best.values).numpy())
    return found


def final_jacobian(
    lm: LanguageModel, tokens: Int[Tensor, "prompt token"], special: Rule = "skip"
) -> Float[Tensor, "d_model d_vocab"]:
    """Mean derivative of the logits with respect to the last residual stream, at the last ordinary tokens of the first
    prompts.
    """
    last = Site("resid_post", lm.n_layers - 1)
    there = counted(tokens, lm.special_ids(special))
    place = (there * torch.arange(tokens.shape[1])).argmax(1)
    some = there.any(1).nonzero()[:TOKENS, 0]
    x = lm.activations(tokens[some].to(lm.device), [last])[last][torch.arange(len(some)), place[some]]

    def logits(at: Tensor) -> Tensor:
        return lm.logits_from(last, at)

    rows: list[Tensor] = []
    for directions in torch.eye(lm.d_model, device=x.device).split(max(1, _CELLS // (len(x) * lm.d_vocab))):
        tangent = directions.unsqueeze(1).expand(-1, len(x), -1).contiguous()
        change = torch.func.jvp(logits, (x.expand_as(tangent).clone(),), (tangent,))[1]
        rows.append(change.mean(1))
    return torch.cat(rows)
