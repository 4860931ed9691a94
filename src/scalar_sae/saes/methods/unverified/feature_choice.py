"""Feature Choice SAEs (Ayonrinde, arXiv 2411.02124): every latent chooses its tokens, by a Zipf law.

Our reading (see mutual_choice.py). In a batch of B tokens latent i keeps its m_i largest positive activations,

    m_i = clip(c p_rank(i), 1, B)        `mode: zipf`: ranks by density, p_r from the law that was fitted (zipf.py)
    m_i = clip(c / d_sae, 1, B)          `mode: uniform`

with c such that the m_i add up to k B. They are whole numbers, by largest remainders. A budget is at least 1, so a
latent fires in every batch in which it is positive anywhere. (If k B < d_sae, the least budget of 1 raises the sum.)
A latent that is positive nowhere in a batch does not fire there, and no gradient reaches it. So latents that are never
positive stay dead; the paper claims that none does (docs/methods.md has what was measured). L0 is k if every latent has
enough positive activations.

Training starts as Mutual Choice, from which ranks and law come. A single token has no budgets, so at inference each
latent has a threshold (a JumpReLU): the mean of the smallest activation it kept. During training that is a running
mean without bias towards its start. After the last step it is measured on parts of the last buffer with the final
weights.
"""

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.saes.activation import JumpReLU
from scalar_sae.saes.components.sparse import Ragged
from scalar_sae.saes.components.zipf import Law
from scalar_sae.saes.methods.base import CALIBRATION_TOKENS, Acts, Name, Progress, TrainableSAEs
from scalar_sae.saes.methods.dictionary import SitePair
from scalar_sae.saes.methods.unverified.mutual_choice import MutualChoiceTrainee, ZipfSelection

JUST_BELOW = 1 - 1e-5
"""Times a kept activation: a threshold that it passes whatever the rounding."""


class FeatureChoiceConfig(ZipfSelection, frozen=True):
    """Independent Feature Choice SAEs."""

    method: Literal["feature_choice"] = "feature_choice"
    name: Name = "feature_choice"
    """Folder of these SAEs in a run."""
    mode: Literal["zipf", "uniform"] = "zipf"
    """How the budget is divided over latents."""

    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """A Feature Choice SAE in training."""
        return FeatureChoiceTrainee(self, place, seed)


class FeatureChoiceTrainee(MutualChoiceTrainee):
    """One Feature Choice SAE in training."""

    thresholds: Tensor
    choices: Tensor

    def __init__(self, config: FeatureChoiceConfig, place: SitePair, seed: int) -> None:
        super().__init__(config, place, seed)
        self._uniform = Law(0.0, 0.0, config.k / self.d_sae, 1.0)
        self._mode = config.mode
        self._by_rank: dict[tuple[int, Law], Tensor] = {}  # budgets for each size of batch
        self.register_buffer("thresholds", torch.zeros(self.d_sae))
        self.register_buffer("choices", torch.zeros(self.d_sae, dtype=torch.int64))

    def settle(self) -> None:
        """End the first phase, if it has not ended yet: the law is fitted, or is the uniform one."""
        if self._mode == "zipf":
            super().settle()
        else:
            self.densities.set_law(self._uniform)

    def found(self) -> dict[str, Any]:
        """The law that was fitted; the uniform one is in the config."""
        return super().found() if self._mode == "zipf" else {}

    def select(self, acts: Float[Tensor, "batch d_sae"], progress: Progress) -> Bool[Tensor, "batch d_sae"]:
        """Budgets by latent; before that, Mutual Choice."""
        if progress.fraction < self._first_phase:
            return super().select(acts, progress)
        return feature_choice(acts, self.budgets(len(acts) * distributed.world_size()))

    def follow(self, code: Ragged, progress: Progress) -> None:
        """The thresholds of all latents; before that, Mutual Choice's."""
        if progress.fraction < self._first_phase:
            return super().follow(code, progress)
        self.densities.record(code.latents, code.n_tokens)
        self._follow(_smallest(code.acts, code.latents, self.d_sae))

    def budgets(self, batch: int) -> Int[Tensor, " d_sae"]:
        """m_i: tokens that each latent may keep; the same for all where there is no law yet."""
        key = batch, self.densities.law or self._uniform
        if key not in self._by_rank:
            self._by_rank[key] = torch.from_numpy(divided(self.k * batch, key[1].shares(self.d_sae), batch))
        return self._by_rank[key].to(self.thresholds.device)[self.densities.rank]

    @torch.no_grad()
    def _follow(self, smallest: Float[Tensor, " d_sae"]) -> None:
        smallest = distributed.all_min(smallest)
        fired = smallest < torch.inf
        self.choices += fired
        decayed = self.threshold_decay ** self.choices.clamp_min(1).double()
        weight = ((1 - self.threshold_decay) / (1 - decayed)).to(smallest)
        self.thresholds.copy_(torch.where(fired, self.thresholds.lerp(smallest, weight), self.thresholds))

    @torch.no_grad()
    def calibrate(self, acts: Acts) -> None:
        """The thresholds of the final weights; latents that keep nothing in the buffer have what they had."""
        super().calibrate(acts)
        self.settle()  # the best weights may be of the first phase
        x, weights = acts[self.sites[0]], self.weights()
        with distributed.no_sync():  # all hold the same buffer
            smallest = torch.stack([
                acts.masked_fill_(~feature_choice(acts, self.budgets(len(part))), torch.inf).amin(0)
                for part in x.split(CALIBRATION_TOKENS)
                for acts in [weights.pre_acts(part * self.scale[0]).relu_()]
            ])  # fmt: skip
        parts = (smallest < torch.inf).sum(0)
        mean = torch.where(smallest < torch.inf, smallest, 0.0).sum(0) / parts * JUST_BELOW
        self.thresholds.copy_(torch.where(parts > 0, mean, self.thresholds))
        self.choices += parts

    def activation(self) -> JumpReLU:
        """A threshold for each latent: the batch's own for those that have not chosen yet."""
        return JumpReLU(torch.where(self.choices > 0, self.thresholds, self.threshold))


def divided(total: int, shares: Float[np.ndarray, " d_sae"], most: int) -> Int[np.ndarray, " d_sae"]:
    """Whole numbers from 1 to `most`, proportional to the shares where neither bound holds, that add up to `total`.

    Where the bounds leave no room they add up to the nearest that they allow: d_sae, or d_sae times `most`.
    """
    total = min(max(total, len(shares)), len(shares) * most)
    low, high = 0.0, most / shares.min()
    for _ in range(60):  # the sum grows with the factor
        factor = (low + high) / 2
        low, high = (factor, high) if (factor * shares).clip(1, most).sum() < total else (low, factor)
    wanted = (low * shares).clip(1, most)
    whole = wanted.astype(np.int64)
    whole[np.argsort(whole - wanted, kind="stable")[: total - whole.sum()]] += 1
    return whole


def feature_choice(acts: Float[Tensor, "batch d_sae"], budgets: Int[Tensor, " d_sae"]) -> Bool[Tensor, "batch d_sae"]:
    """Of each column the `budgets` largest of all workers' entries (ties with the last of them too), if positive."""
    ranked = distributed.all_gather(acts).sort(dim=0, descending=True).values
    last = ranked.gather(0, (budgets - 1).unsqueeze(0))
    return acts >= last.clamp_min(torch.finfo(acts.dtype).tiny)


def _smallest(acts: Float[Tensor, " n"], latents: Int[Tensor, " n"], d_sae: int) -> Float[Tensor, " d_sae"]:
    """Of each latent the smallest activation, infinity where there is none."""
    return acts.new_full((d_sae,), torch.inf).scatter_reduce_(0, latents, acts.detach(), "amin")
