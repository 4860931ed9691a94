"""What a reader needs of every latent, in two passes over the text: where it fires, how often, how strongly.

    read_features(lm, site, sae, tokens, out)    # writes three tables into out

| table                | a row                                                                                       |
|----------------------|---------------------------------------------------------------------------------------------|
| `latents.parquet`    | a latent: density, maximum, mean, counts by octaves, its rule (rules.py), its direct effect |
|                      | on the logits (logits.py)                                                                   |
| `contexts.parquet`   | an example: the tokens around it and the latent's activation at each                        |
| `vocabulary.parquet` | a token that occurs in the other two: its text                                              |

Examples are the strongest (`top`), a uniform sample of all tokens where the latent fires (`random`), which shows what
the strongest hide, and stretches of text where it does not fire at all (`silent`), for a judge. Memory: a few numbers
an example, whatever the length of the text.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array, vstack
from torch import Tensor

from scalar_sae.lm.model import LanguageModel
from scalar_sae.measures.logits import logit_effects
from scalar_sae.measures.rules import Sparse, rule_scores
from scalar_sae.runs import Bar, whole
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site

BEFORE, AFTER = 24, 8
"""Tokens of context around an example."""
OCTAVES = range(-10, 11)
"""Activations are counted by powers of two from 2^-10 to 2^10; the ends include everything beyond them."""
RULE_TOKENS = 2**17
"""Most tokens that rules are made from and tried on."""


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
    """Write the three tables of an SAE into a folder, whole or not at all.

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
    count, total = torch.zeros(sae.d_sae), torch.zeros(sae.d_sae).double()
    octaves = torch.zeros(len(OCTAVES), sae.d_sae, dtype=torch.long)
    fired: list[Sparse] = []
    with Bar("read features", 2 * tokens.shape[0]) as bar:
        for start, acts in _activations(lm, site, sae, tokens, batch):
            live = acts > 0
            keys = {"top": acts, "random": torch.rand(acts.shape, generator=g).clamp_min(1e-7) * live}
            best = {kind: best[kind].merge(key, start) for kind, key in keys.items()}
            count += live.sum(0)
            total += acts.double().sum(0)
            octave = acts.clamp_min(1e-30).log2().floor().clamp(OCTAVES[0], OCTAVES[-1]).long() - OCTAVES[0]
            octaves.scatter_add_(0, octave, live.long())
            if start < RULE_TOKENS:
                fired.append(csr_array(live.numpy()))
            bar.step(acts.shape[0] // tokens.shape[1])
        places = {kind: found.token for kind, found in best.items()}
        places["silent"] = torch.randint(tokens.numel(), (n_examples, sae.d_sae), generator=g)
        contexts = _contexts(lm, site, sae, tokens, batch, places, bar)
    firings: Sparse = vstack(fired, format="csr")
    rules = rule_scores(tokens[: firings.shape[0] // tokens.shape[1]], firings)
    effects = logit_effects(lm, site, sae, tokens)
    latents = {
        "latent": np.arange(sae.d_sae, dtype=np.int32),
        "density": (count / tokens.numel()).numpy(),
        "maximum": best["top"].key[0].clamp_min(0).numpy(),
        "mean": (total / count.clamp_min(1)).float().numpy(),
        "octaves": list(octaves.T.numpy()),
        "rule_f1": list(rules.f1),
        "rule_accuracy": list(rules.accuracy),
        "rule_tokens": rules.tokens,
        **effects,
    }
    seen = [contexts["tokens"].combine_chunks().flatten().to_numpy(), *effects["promoted"], *effects["suppressed"]]
    vocabulary = np.unique(np.concatenate(seen).astype(np.int32))
    texts = lm.tokenizer.pieces(vocabulary.tolist())
    with whole(out) as temporary:
        temporary.mkdir()
        pq.write_table(pa.table(latents), temporary / "latents.parquet")
        pq.write_table(contexts, temporary / "contexts.parquet")
        pq.write_table(pa.table({"token": vocabulary, "text": texts}), temporary / "vocabulary.parquet")


def read_vocabulary(folder: Path) -> dict[int, str]:
    """The text of each token of a feature table."""
    table = pq.read_table(folder / "vocabulary.parquet")
    return dict(zip(table["token"].to_pylist(), table["text"].to_pylist(), strict=True))


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
    places: dict[str, Int[Tensor, "n d_sae"]],
    bar: Bar,
) -> pa.Table:
    """The examples with the tokens around them: the second pass."""
    length = tokens.shape[1]
    kinds, latents, found = [], [], []
    for kind, place in places.items():
        rank, latent = (place >= 0).nonzero(as_tuple=True)
        kinds += [kind] * len(rank)
        latents.append(latent)
        found.append(place[rank, latent])
    latent, place = torch.cat(latents), torch.cat(found)
    prompt, position = place // length, place % length
    first = (position - BEFORE).clamp_min(0)
    column = first.unsqueeze(1) + torch.arange(BEFORE + 1 + AFTER)
    inside = column < (position + AFTER + 1).clamp_max(length).unsqueeze(1)
    column = column.clamp_max(length - 1)
    windows = torch.zeros(column.shape)
    for start, acts in _activations(lm, site, sae, tokens, batch):
        here = ((place >= start) & (place < start + acts.shape[0])).nonzero().squeeze(1)
        rows = (prompt[here] * length - start).unsqueeze(1) + column[here]
        windows[here] = acts[rows, latent[here].unsqueeze(1)]
        bar.step(acts.shape[0] // length)
    kind = np.array(kinds)
    keep = torch.from_numpy(kind != "silent") | ~(inside & (windows > 0)).any(1)
    ends = torch.cat([torch.zeros(1, dtype=torch.long), inside[keep].sum(1).cumsum(0)]).int().numpy()
    around = tokens[prompt.unsqueeze(1), column][keep][inside[keep]].int().numpy()
    return pa.table(
        {
            "latent": latent[keep].int().numpy(),
            "kind": kind[keep.numpy()].tolist(),
            "prompt": prompt[keep].int().numpy(),
            "position": position[keep].int().numpy(),
            "start": first[keep].int().numpy(),
            "tokens": pa.ListArray.from_arrays(ends, around),
            "acts": pa.ListArray.from_arrays(ends, windows[keep][inside[keep]].numpy()),
        }
    )
