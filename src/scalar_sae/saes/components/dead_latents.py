"""Dead latents: tokens since each latent last fired, and the auxiliary loss that revives dead ones.

A latent is *dead* when it has not fired for a number of tokens, whatever the batch size. If a method does not set the
number, it is 10 million or a tenth of the run, whichever is less.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scalar_sae import distributed
from scalar_sae.kernels import linear
from scalar_sae.saes.methods.base import Weights

DEAD_TOKENS = 10_000_000
"""The default number of tokens without firing after which a latent is dead in a long run."""


def window(dead_tokens: int | None, tokens: int) -> int:
    """The number of tokens without firing after which a latent is dead.

    It is `dead_tokens` if a method sets it, else 10 million or a tenth of the run's `tokens`, whichever is less.
    """
    return min(DEAD_TOKENS, tokens // 10) if dead_tokens is None else dead_tokens


class DeadLatents(nn.Module):
    """Tokens since each latent of a dictionary last fired, and the window after which it is dead."""

    tokens_since_fired: Tensor

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        self.window = DEAD_TOKENS
        self.register_buffer("tokens_since_fired", torch.zeros(d_sae, dtype=torch.int64))

    @torch.no_grad()
    def record(self, fired: Bool[Tensor, " d_sae"], tokens: int) -> None:
        """Record which latents fired on any of a batch of `tokens` tokens, over all workers."""
        self.tokens_since_fired.add_(tokens * distributed.world_size()).masked_fill_(distributed.all_any(fired), 0)

    def mask(self) -> Bool[Tensor, " d_sae"]:
        """Mask of the latents that have not fired during the window."""
        return self.tokens_since_fired >= self.window


def auxk_loss(
    weights: Weights,
    x: Float[Tensor, "batch d_in"],
    residual: Float[Tensor, "batch d_out"],
    chosen: Bool[Tensor, " d_sae"],
    k: int,
) -> Float[Tensor, ""]:
    """AuxK loss (Gao et al. §A.2): reconstruct the residual from the `k` largest of the chosen latents.

    The loss is ‖sg(e) - ReLU(top-k of the chosen u) W_dec‖² / var(e), where e is the residual and sg stops gradients.
    The decoder bias is not used. Gradients reach the encoder and decoder rows of the chosen latents, and `centre` if
    the encoder has one. The loss is 0 if no latent is chosen or the residual has no variance.
    """
    rows = chosen.nonzero().squeeze(1)
    residual = residual.detach()
    spread = distributed.all_mean((residual - distributed.all_mean(residual.mean(0))).square().mean())
    if rows.numel() == 0 or not bool(spread > 0):
        return residual.new_zeros(())
    encoder = weights._replace(W_enc=weights.W_enc.index_select(1, rows), b_enc=weights.b_enc[rows])
    u = encoder.pre_acts(x)
    if k < rows.numel():
        kept = u.topk(k, dim=1, sorted=False)
        u = torch.zeros_like(u).scatter(1, kept.indices, kept.values)
    return (residual - linear(u.relu(), weights.W_dec.index_select(0, rows))).square().mean() / spread
