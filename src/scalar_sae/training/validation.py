"""Measure SAEs in training on held-out text.

The text is read once, and its activations stay on the model's device. A validation splices in every SAE alone, each
with one run of the rest of the model, and then all SAEs of a group at once. Definitions: docs/training.md.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from scalar_sae import distributed
from scalar_sae.activations.reading import Gradient
from scalar_sae.activations.stream import read_all
from scalar_sae.errors import UserError
from scalar_sae.lm.feedforward import FeedForward
from scalar_sae.lm.model import LanguageModel, Replacement, SiteState
from scalar_sae.lm.special import Special, counted
from scalar_sae.lm.splice import Splice
from scalar_sae.saes.activation import TopK
from scalar_sae.saes.components.ff_jacobian import mean_jacobian
from scalar_sae.saes.methods.base import Acts, Progress, TrainableSAEs
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Block, Site

BATCH_TOKENS = 2048
PIECES = 8
"""Number of pieces in which a part of the text is encoded."""

JACOBIAN_TOKENS = 256


class _Part(NamedTuple):
    """A part of the text with the model's activations on it."""

    tokens: Int[Tensor, "prompt token"]
    kept: Bool[Tensor, "prompt token"]
    """False at special tokens, where nothing is replaced, predicted or counted."""
    acts: dict[Site | Gradient, Float[Tensor, "prompt token d_model"]]
    states: dict[Site, SiteState]

    def rows(self, read: Site | Gradient) -> Float[Tensor, "row d_model"]:
        """The activations at the tokens that count."""
        return self.acts[read][self.kept]

    def put(self, site: Site, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "prompt token d_model"]:
        """The model's own activation at a site, with `rows` in place of those at the tokens that count."""
        x = self.acts[site].clone()
        x[self.kept] = rows
        return x


class Validation:
    """A fixed validation text with the model's activations on it."""

    @torch.no_grad()
    def __init__(
        self,
        lm: LanguageModel,
        tokens: Int[Tensor, "prompt token"],
        reads: Sequence[Site | Gradient],
        special: Special,
    ) -> None:
        self._lm = lm
        sites = sorted(read for read in reads if isinstance(read, Site))
        self._parts: list[_Part] = []
        for some in tokens.split(max(1, BATCH_TOKENS // tokens.shape[1])):
            kept = counted(some, special)
            acts = read_all(lm, some, reads, special)
            states = {site: SiteState(acts[site], state.skip) for site, state in lm.states(some, sites).items()}
            self._parts.append(_Part(some, kept, acts, states))
        self._n = max(1, sum(int(part.kept.sum()) for part in self._parts))
        self._spread = {
            site: (rows - rows.mean(0)).square().sum().item()
            for site in sites
            for rows in [torch.cat([part.rows(site) for part in self._parts])]
        }

    @torch.no_grad()
    def loss(self, trainee: TrainableSAEs) -> float:
        """The trainee's own loss, summed over its sites, with all schedules at their final values. Its buffers are
        unchanged.
        """
        counted = {name: buffer.clone() for name, buffer in trainee.named_buffers()}
        total = 0.0
        trainee.eval()  # evaluation mode: no weight is steered, no mask is drawn
        for part in self._parts:
            if not part.kept.any():
                continue
            acts: Acts = {read: part.rows(read) for read in trainee.reads}
            share = int(part.kept.sum()) / self._n
            with distributed.no_sync():  # every worker holds the same rows
                total += share * float(sum(trainee.losses(acts, Progress(1, 1)).values()))
            for name, buffer in trainee.named_buffers():
                buffer.copy_(counted[name])
        trainee.train()
        return total

    @torch.no_grad()
    def measure(self, trainees: Sequence[TrainableSAEs], blocks: Sequence[Block]) -> dict[str, Any]:
        """Measure the SAEs of a group with their current weights, each alone and all at once, for the log.

        Args:
            trainees: the group.
            blocks: the blocks with SAEs of the group at both ends.
        """
        ends = sorted(((site, trainee) for trainee in trainees for site in trainee.sites), key=lambda end: end[0])
        in_place = all(trainee.target(site) == site for site, trainee in ends)
        alone, together = {site: _Sums(float) for site, _ in ends}, _Sums(float)
        as_trained = {site: _Sums(float) for site, _ in ends}
        for part in self._parts:
            splice = Splice(self._lm, part.tokens, part.kept, part.states)
            for site, trainee in ends:
                _add(part, splice, trainee.target(site), _through(trainee.sae(site), part.rows(site)), alone[site])
                with distributed.no_sync():  # every worker holds the same rows
                    code = trainee.as_trained(site, {read: part.rows(read) for read in trainee.reads})
                if code is not None:
                    _add(part, splice, trainee.target(site), code, as_trained[site])
            if in_place:
                _all(part, splice, ends, together)
        found: dict[str, Any] = {
            "saes": {str(site): self._scores(alone[site], trainee, site) for site, trainee in ends},
            "jacobian": self._jacobians(dict(ends), blocks),
        }
        for site, trainee in ends:
            if as_trained[site]:
                found["saes"][str(site)]["as_trained"] = self._scores(as_trained[site], trainee, site)
        return found | ({"ce_increase_all": _ce(together), "kl_all": _kl(together)} if in_place else {})

    def _scores(self, sums: "_Sums", trainee: TrainableSAEs, site: Site) -> dict[str, Any]:
        fired: Tensor = sums["fired"]
        chunks = trainee.sae(site).chunks
        found: dict[str, Any] = {
            "l0": fired.sum().item() / self._n,
            "loss": sums["error"] / self._n,
            "fvu": sums["error"] / max(self._spread[trainee.target(site)], 1e-30),
            "cosine": sums["cosine"] / self._n,
            "ce_increase": _ce(sums),
            "kl": _kl(sums),
            "dead": (fired == 0).float().mean().item(),
        }
        if chunks:
            found["l0_per_chunk"] = [fired[a:b].sum().item() / self._n for a, b in pairwise((0, *chunks))]
        return found

    def _jacobians(self, trainees: dict[Site, TrainableSAEs], blocks: Sequence[Block]) -> dict[str, float]:
        """Mean |J| between the active latents of each pair of TopK SAEs around an MLP, on the first tokens."""
        found: dict[str, float] = {}
        for block in blocks:
            if (ff := self._feed_forward(block)) is None:
                continue
            sites = [site for end in (block.up, block.down) for site in trainees if site.same_place(end)]
            pair = [(trainees[site].sae(site), self._parts[0].rows(site)[:JACOBIAN_TOKENS]) for site in sites]
            if all(isinstance(sae.activation, TopK) for sae, _ in pair):
                found[str(block)] = mean_jacobian(ff, pair, block=block.kind == "ff_block")
        return found

    def _feed_forward(self, block: Block) -> FeedForward | None:
        """The MLP between the two ends of a block. None if other computations lie between them or its form is not
        known.
        """
        try:
            return self._lm.feed_forward(block.up.layer) if block.kind in ("ff_block", "ff_layer") else None
        except UserError:
            return None


_Sums = defaultdict[str, Any]


_Code = tuple[Float[Tensor, "row d_out"], Int[Tensor, " d_sae"]]
"""A reconstruction, and on how many rows each latent fires."""


def _add(part: _Part, splice: Splice, target: Site, code: _Code, sums: _Sums) -> None:
    """Add the scores of one SAE alone: its reconstruction, and the effect of splicing it in."""
    (y_hat, fired), y = code, part.rows(target)
    sums["fired"] += fired
    sums["error"] += (y - y_hat).square().sum().item()
    sums["cosine"] += cosine_similarity(y, y_hat).sum().item()
    _count(part, splice, {target: lambda x: part.put(target, y_hat)}, sums)


def _all(part: _Part, splice: Splice, ends: list[tuple[Site, TrainableSAEs]], sums: _Sums) -> None:
    """Add the effect of splicing in all SAEs at once, each reading what the earlier ones leave."""

    def stand_in(site: Site, sae: SAE) -> Replacement:
        return lambda x: part.put(site, _through(sae, x[part.kept])[0])

    _count(part, splice, {site: stand_in(site, trainee.sae(site)) for site, trainee in ends}, sums)


def _count(part: _Part, splice: Splice, replace: dict[Site, Replacement], sums: _Sums) -> None:
    """Add the increase in cross-entropy over the model's own, and the KL from the model, on one part."""
    found = splice.losses(splice.end(replace))
    sums["ce"] += (found.ce - splice.clean_ce()).sum().item()
    sums["targets"] += int(part.kept[:, 1:].sum())
    sums["kl"] += found.kl.sum().item()
    sums["tokens"] += int(part.kept.sum())


def _through(sae: SAE, x: Float[Tensor, "row d_model"]) -> _Code:
    """An SAE's reconstruction of its input, and the number of rows on which each latent fires."""
    y_hat, fired = [], torch.zeros(sae.d_sae, dtype=torch.long, device=x.device)
    for rows in x.chunk(PIECES):
        acts = sae.encode(rows)
        y_hat.append(sae.decode(acts))
        fired += (acts > 0).sum(0)
    return torch.cat(y_hat), fired


def _ce(sums: _Sums) -> float:
    return sums["ce"] / max(1, sums["targets"])


def _kl(sums: _Sums) -> float:
    return sums["kl"] / max(1, sums["tokens"])


def rounded(value: Any) -> Any:
    """Round every float in a nested value to five significant digits, for the log."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
