"""Gradient SAEs, g-SAE (Olmo et al., arXiv 2411.10397): TopK that prefers latents which matter to the model's loss.

Our reading: the paper's body was not available to us, only its abstract and a summary with formulas. A token keeps the
k latents with the largest z_i (1 + beta |g W_dec_i|). Their activations are z_i = ReLU(u_i). g is the gradient of the
model's loss in the activation that is reconstructed, in the trained scale (the chain rule divides by the scale) and
detached. Guesses are fields of the config: the sum or the product alone, beta, and that g is rescaled to mean norm 1
over a batch. The rest is TopK (topk.py), with the same fields. With beta = 0 this is TopK, bit for bit.

The last position of a window predicts nothing that the loss counts, so its gradient is exactly 0. Training leaves such
tokens out: with `product` they would select arbitrary latents.

At inference this is plain TopK: a gradient needs the next token, which no deployed SAE has. The paper's claim of a
lower loss may be about selection with gradients. So validations measure both (`as_trained` in the log). There, tokens
without a gradient are selected by z.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.activations.reading import Gradient
from scalar_sae.errors import UserError
from scalar_sae.saes.components.sparse import Coded, chosen, largest, pre_acts
from scalar_sae.saes.methods.base import Acts, Name, Progress, TrainableSAEs
from scalar_sae.saes.methods.dictionary import SitePair
from scalar_sae.saes.methods.topk import TokenSelection, TopKTrainee
from scalar_sae.sites import Site


class GSAEConfig(TokenSelection, frozen=True):
    """Independent g-SAEs."""

    method: Literal["g_sae"] = "g_sae"
    name: Name = "g_sae"
    """Folder of these SAEs in a run."""
    beta: float = Field(default=1.0, ge=0)
    """Weight of the gradient in the selection."""
    combine: Literal["sum", "product"] = "sum"
    """Select by z (1 + beta |g W_dec|), or by z |g W_dec| alone."""
    rescale: bool = True
    """Rescale gradients to mean norm 1 over a batch; their own size depends on how the loss is averaged."""

    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """Create a g-SAE for training."""
        return GSAETrainee(self, place, seed)


class GSAETrainee(TopKTrainee):
    """One g-SAE in training."""

    def __init__(self, config: GSAEConfig, place: SitePair, seed: int) -> None:
        super().__init__(config, place, seed)
        self._selection = config
        self._k, self._multi = config.k, config.multi
        self._gradient = Gradient(place.target)

    @property
    def reads(self) -> tuple[Site | Gradient, ...]:
        """The gradient at what is reconstructed, too."""
        return (*super().reads, self._gradient)

    def prepare(self, acts: Acts) -> None:
        """As TopK.

        Raises:
            UserError: no token has a gradient.
        """
        super().prepare(acts)
        if not acts[self._gradient].any():
            raise UserError(f"{self._gradient} is 0 at every token of the first buffer; give a context of at least 2")

    def loss(
        self, x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_model"], acts: Acts, progress: Progress
    ) -> Float[Tensor, ""]:
        """TopK's loss of the code that gradients select, over the tokens that have a gradient.

        It is the mean over those of all workers, but the variance in AuxK is the mean of each worker's.
        """
        g = acts[self._gradient] / self.scale[1]
        n_batch, some = len(x), g.any(1)
        some = some | ~some.any()  # a part of a batch that has no such token counts whole
        x, y, g = x[some], y[some], g[some]
        code = self.selected(x, g)
        self.dead_latents.record(code.first(self._k).fired(), n_batch)
        n = torch.tensor(float(len(x)), device=x.device)
        return self.objective(code, x, y) * (n / distributed.all_mean(n))

    def selected(self, x: Float[Tensor, "batch d_model"], g: Float[Tensor, "batch d_model"]) -> Coded:
        """The latents that x and gradients g select, both in the trained scale; graph gradients reach the weights."""
        config, weights = self._selection, self.weights()
        some = g.any(1, keepdim=True)
        if config.rescale:
            total, n = distributed.all_mean(torch.stack([g.norm(dim=1).sum(), some.sum().to(g)]))
            g = g / (total / n.clamp_min(1)).clamp_min(1e-12)
        u = pre_acts(weights, x)
        pull = (g @ weights.W_dec.detach().T).abs()
        score = u * (1 + config.beta * pull if config.combine == "sum" else pull)
        latents = largest(score.where(some, u), self._k * self._multi, ordered=self._multi > 1)
        return Coded(weights, chosen(weights, x, u, latents).relu(), latents)

    @torch.no_grad()
    def as_trained(self, site: Site, acts: Acts) -> tuple[Float[Tensor, "batch d_model"], Int[Tensor, " d_sae"]] | None:
        """The reconstruction by the latents that gradients select, and how often each of them fires."""
        code = self.selected(acts[site] * self.scale[0], acts[self._gradient] / self.scale[1]).first(self._k)
        fired = code.latents[code.acts > 0].bincount(minlength=self.d_sae)
        return code.decoded() / self.scale[1], fired
