"""What a reader needs of every latent, in two passes over the text: where it fires, how often, how strongly.

    read_features(lm, site, sae, tokens, out)        # writes out/latents.parquet and out/contexts.parquet

`latents` has a row a latent, `contexts` a row an example: the tokens around it and the latent's activation at each.
Examples are the strongest (`top`) and a uniform sample of all tokens where the latent fires (`random`), which shows
what the strongest hide. Memory: a few numbers an example, whatever the length of the text.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.lm.model import LanguageModel
from scalar_sae.runs import Bar, whole
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site

BEFORE, AFTER = 24, 8
"""Tokens of context around an example."""
OCTAVES = range(-10, 11)
"""Activations are counted by powers of two from 2^-10 to 2^10; the ends include everything beyond them."""


class _Best(NamedTuple):
    """The tokens with the largest keys so far, n a latent."""

    key: Float[Tensor, "n d_sae"]
    token: Int[Tensor, "n d_sae"]
    """Place in the text, counted over all prompts; -1 for none."""

    @classmethod
    def none(cls, n: int, d_sae: int) -> "_Best":
        return cls(torch.full((n, d_sae), -1.0), torch.full((n, d_sae), -1))

    def merge(self, key: Float[Tensor, "some d_sae"], start: int) -> "_Best":
        """With the tokens that follow `start`; a key of 0 or less is no example."""
        n = min(self.key.shape[0], key.shape[0])
        found = key.topk(n, dim=0)
        token = torch.where(found.values > 0, found.indices + start, -1)
        keys = torch.cat([self.key, torch.where(found.values > 0, found.values, -1.0)])
        best = keys.topk(self.key.shape[0], dim=0)
        return _Best(best.values, torch.cat([self.token, token]).gather(0, best.indices))


@torch.no_grad()
def read_features(
    lm: LanguageModel,
    site: Site,
    sae: SAE,
    tokens: Int[Tensor, "prompt token"],
    out: Path,
    n_examples: int = 10,
    batch: int = 8,
    seed: int = 0,
) -> None:
    """Write the two tables of an SAE into a folder, whole or not at all.

    Args:
        lm: the model the SAE reads.
        site: where.
        sae: the SAE.
        tokens: prompts.
        out: folder to write.
        n_examples: examples of each kind a latent.
        batch: prompts per forward pass.
        seed: of the random examples.
    """
    g = torch.Generator().manual_seed(seed)
    best = {"top": _Best.none(n_examples, sae.d_sae), "random": _Best.none(n_examples, sae.d_sae)}
    fired, total = torch.zeros(sae.d_sae), torch.zeros(sae.d_sae).double()
    octaves = torch.zeros(len(OCTAVES), sae.d_sae, dtype=torch.long)
    with Bar("read features", 2 * tokens.shape[0]) as bar:
        for start, acts in _activations(lm, site, sae, tokens, batch):
            live = acts > 0
            keys = {"top": acts, "random": torch.rand(acts.shape, generator=g).clamp_min(1e-7) * live}
            best = {kind: best[kind].merge(key, start) for kind, key in keys.items()}
            fired += live.sum(0)
            total += acts.double().sum(0)
            octave = acts.clamp_min(1e-30).log2().floor().clamp(OCTAVES[0], OCTAVES[-1]).long() - OCTAVES[0]
            octaves.scatter_add_(0, octave, live.long())
            bar.step(acts.shape[0] // tokens.shape[1])
        contexts = _contexts(lm, site, sae, tokens, batch, best, bar)
    rate = fired / tokens.numel()
    latents = pa.table(
        {
            "latent": np.arange(sae.d_sae, dtype=np.int32),
            "density": rate.numpy(),
            "maximum": best["top"].key[0].clamp_min(0).numpy(),
            "mean": (total / fired.clamp_min(1)).float().numpy(),
            "octaves": list(octaves.T.numpy()),
        }
    )
    with whole(out) as temporary:
        temporary.mkdir()
        pq.write_table(latents, temporary / "latents.parquet")
        pq.write_table(contexts, temporary / "contexts.parquet")


def _activations(
    lm: LanguageModel, site: Site, sae: SAE, tokens: Int[Tensor, "prompt token"], batch: int
) -> Iterator[tuple[int, Float[Tensor, "n d_sae"]]]:
    """Batches of activations over the text in order, each with the number of its first token."""
    for number, some in enumerate(tokens.split(batch)):
        acts = sae.encode(lm.activations(some, [site])[site]).flatten(0, 1)
        yield number * batch * tokens.shape[1], acts


def _contexts(
    lm: LanguageModel,
    site: Site,
    sae: SAE,
    tokens: Int[Tensor, "prompt token"],
    batch: int,
    best: dict[str, _Best],
    bar: Bar,
) -> pa.Table:
    """The examples with the tokens around them: the second pass."""
    length = tokens.shape[1]
    kinds, latents, places = [], [], []
    for kind, found in best.items():
        rank, latent = (found.token >= 0).nonzero(as_tuple=True)
        kinds += [kind] * len(rank)
        latents.append(latent)
        places.append(found.token[rank, latent])
    latent, place = torch.cat(latents), torch.cat(places)
    position = place % length
    first = (position - BEFORE).clamp_min(0)
    last = (position + AFTER + 1).clamp_max(length)
    windows: list[np.ndarray] = [np.empty(0)] * len(place)
    for start, acts in _activations(lm, site, sae, tokens, batch):
        here = ((place >= start) & (place < start + acts.shape[0])).nonzero().squeeze(1)
        for i in here.tolist():
            row = int(place[i]) - start - int(position[i])
            windows[i] = acts[row + int(first[i]) : row + int(last[i]), latent[i]].numpy()
        bar.step(acts.shape[0] // length)
    prompt = place // length
    return pa.table(
        {
            "latent": latent.int().numpy(),
            "kind": kinds,
            "prompt": prompt.int().numpy(),
            "position": position.int().numpy(),
            "start": first.int().numpy(),
            "tokens": [
                tokens[p, a:b].int().numpy()
                for p, a, b in zip(prompt.tolist(), first.tolist(), last.tolist(), strict=True)
            ],
            "acts": windows,
        }
    )
