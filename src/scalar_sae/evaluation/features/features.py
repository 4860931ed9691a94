"""Feature tables of an SAE, from two passes over a text: where each latent fires, how often and how strongly.

    tables = feature_tables(lm, site, sae, tokens)    # latents, contexts, vocabulary
    read_features(lm, site, sae, tokens, out)         # the same, written into a folder

tables.py defines their columns. Rules are made by rules.py and effects on the logits by logits.py.

There are four kinds of examples: the strongest (`top`); a uniform sample of all tokens where the latent fires
(`random`), which shows what the strongest hide; one random example for each power of two that the activation reaches
(`band`); and stretches of text where the latent does not fire at all (`silent`), for a judge. Memory is a few numbers
per example, whatever the length of the text.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array, vstack
from torch import Tensor

from scalar_sae.console import Bar
from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.logits import logit_effects
from scalar_sae.evaluation.features.rules import Sparse, rule_scores
from scalar_sae.evaluation.features.tables import OCTAVES, Counted, write_table
from scalar_sae.io import atomic_write
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import Rule, counted, listed
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site

BEFORE, AFTER = 24, 8
"""Tokens of context before and after an example."""
RULE_TOKENS = 2**17
"""Maximum number of tokens on which rules are made and tested."""


class _Firings(NamedTuple):
    """Firings of latents: one entry per token and latent, in any order."""

    latent: Int[Tensor, " n"]
    token: Int[Tensor, " n"]
    """Index of the token in the text, over all prompts."""
    key: Float[Tensor, " n"]
    """Sort key."""

    def best(self, n: int, more: "_Firings") -> "_Firings":
        """The n entries of each latent with the largest keys among both, sorted by latent and then by key, largest
        first.
        """
        both = _Firings(*(torch.cat(parts) for parts in zip(self, more, strict=True)))
        order = both.key.argsort(descending=True, stable=True)
        order = order[both.latent[order].argsort(stable=True)]
        latent = both.latent[order]
        rank = torch.arange(len(latent)) - torch.searchsorted(latent, latent)
        kept = order[rank < n]
        return _Firings(*(part[kept] for part in both))


def read_features(
    lm: LanguageModel,
    site: Site,
    sae: SAE,
    tokens: Int[Tensor, "prompt token"],
    out: Path,
    n_examples: int = 10,
    batch: int = 8,
    seed: int = 0,
    special: Rule = "skip",
) -> None:
    """Write the three tables of an SAE into a folder, atomically.

    Args:
        lm: the model that the SAE reads.
        site: the site that it reads.
        sae: the SAE.
        tokens: prompts.
        out: folder to write.
        n_examples: examples of each kind per latent; see `feature_tables`.
        batch: prompts per forward pass.
        seed: seed of the random examples.
        special: the rule for special tokens.

    Raises:
        UserError: all tokens are special.
    """
    tables = feature_tables(lm, site, sae, tokens, n_examples, batch, seed, special)
    with atomic_write(out) as temporary:
        temporary.mkdir()
        for name, table in tables.items():
            write_table(table, temporary / f"{name}.parquet")


@torch.no_grad()
def feature_tables(
    lm: LanguageModel,
    site: Site,
    sae: SAE,
    tokens: Int[Tensor, "prompt token"],
    n_examples: int = 10,
    batch: int = 8,
    seed: int = 0,
    special: Rule = "skip",
) -> dict[str, pa.Table]:
    """The tables `latents`, `contexts` and `vocabulary` of an SAE.

    Args:
        lm: the model that the SAE reads. It computes on its device; the tables are made on the CPU.
        site: the site that it reads.
        sae: the SAE.
        tokens: prompts.
        n_examples: examples of each kind per latent; of `band`, one per power of two.
        batch: prompts per forward pass.
        seed: seed of the random examples.
        special: the rule for special tokens (lm/special.py). No latent counts as firing at skipped tokens, but they
            appear in the context of later tokens.

    Raises:
        UserError: all tokens are special.
    """
    sae, g = sae.to(lm.device), torch.Generator().manual_seed(seed)
    none = _Firings(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    best, bands = {"top": none, "random": none}, none
    ids = lm.special_ids(special)
    there = counted(tokens, ids).flatten()
    if not there.any():
        raise UserError(f"features: every token is special ({listed(ids)}); give text, or --special count")
    count, total = torch.zeros(sae.d_sae, dtype=torch.long), torch.zeros(sae.d_sae).double()
    octaves = torch.zeros(sae.d_sae, len(OCTAVES), dtype=torch.long)
    fired: list[Sparse] = []
    with Bar("read features", 2 * tokens.shape[0]) as bar:
        for start, acts in _activations(lm, site, sae, tokens, there, batch):
            row, latent = (acts > 0).nonzero(as_tuple=True)
            value = acts[row, latent]
            keys = {"top": value, "random": torch.rand(len(value), generator=g)}
            best = {kind: best[kind].best(n_examples, _Firings(latent, row + start, key)) for kind, key in keys.items()}
            count += latent.bincount(minlength=sae.d_sae)
            total.index_add_(0, latent, value.double())
            octave = value.log2().floor().clamp(OCTAVES[0], OCTAVES[-1]).long() - OCTAVES[0]
            band = latent * len(OCTAVES) + octave
            octaves += band.bincount(minlength=octaves.numel()).view_as(octaves)
            bands = bands.best(1, _Firings(band, row + start, keys["random"]))
            if start < RULE_TOKENS:
                ends = np.searchsorted(row.numpy(), np.arange(len(acts) + 1))
                fired.append(csr_array((np.ones(len(row), dtype=bool), latent.numpy(), ends), shape=acts.shape))
            bar.step(acts.shape[0] // tokens.shape[1])
        latent = torch.arange(sae.d_sae).repeat(n_examples)
        silent = there.nonzero().squeeze(1)[torch.randint(int(there.sum()), latent.shape, generator=g)]
        examples = best | {
            "band": bands._replace(latent=bands.latent // len(OCTAVES)),
            "silent": _Firings(latent, silent, torch.zeros(len(latent))),
        }
        contexts = _contexts(lm, site, sae, tokens, there, batch, examples, bar)
    firings: Sparse = vstack(fired, format="csr")
    rules = rule_scores(tokens[: firings.shape[0] // tokens.shape[1]], firings, ids)
    effects = logit_effects(lm, site, sae, tokens, special)
    latents = {
        "latent": np.arange(sae.d_sae, dtype=np.int32),
        "density": (count / there.sum()).numpy(),
        "maximum": torch.zeros(sae.d_sae).scatter_reduce(0, best["top"].latent, best["top"].key, "amax").numpy(),
        "mean": (total / count.clamp_min(1)).float().numpy(),
        "octaves": list(octaves.numpy()),
        "rule_f1": list(rules.f1),
        "rule_accuracy": list(rules.accuracy),
        "rule_tokens": rules.tokens,
        **effects,
    }
    seen = [contexts["tokens"].combine_chunks().flatten().to_numpy(), *effects["promoted"], *effects["suppressed"]]
    vocabulary = np.unique(np.concatenate(seen).astype(np.int32))
    texts = lm.tokenizer.pieces(vocabulary.tolist())
    sizes = Counted(n_tokens=int(there.sum()), n_special=int((~there).sum()), special=ids)
    return {
        "latents": pa.table(latents, metadata={"counted": sizes.model_dump_json()}),
        "contexts": contexts,
        "vocabulary": pa.table({"token": vocabulary, "text": texts}),
    }


def _activations(
    lm: LanguageModel,
    site: Site,
    sae: SAE,
    tokens: Int[Tensor, "prompt token"],
    there: Bool[Tensor, " place"],
    batch: int,
) -> Iterator[tuple[int, Float[Tensor, "n d_sae"]]]:
    """Yield batches of activations over the text in order, each with the index of its first token. They are 0 where
    `there` is false.
    """
    for number, some in enumerate(tokens.split(batch)):
        acts = sae.encode(lm.activations(some.to(lm.device), [site])[site]).flatten(0, 1).cpu()
        start = number * batch * tokens.shape[1]
        acts[~there[start : start + len(acts)]] = 0
        yield start, acts


def _contexts(
    lm: LanguageModel,
    site: Site,
    sae: SAE,
    tokens: Int[Tensor, "prompt token"],
    there: Bool[Tensor, " place"],
    batch: int,
    examples: dict[str, _Firings],
    bar: Bar,
) -> pa.Table:
    """The second pass: the examples with the tokens around them."""
    length = tokens.shape[1]
    kind = np.repeat(list(examples), [len(some.latent) for some in examples.values()])
    latent, place = (torch.cat([some[part] for some in examples.values()]) for part in (0, 1))
    latent, order = latent.sort(stable=True)
    kind, place = kind[order.numpy()], place[order]
    prompt, position = place // length, place % length
    first = (position - BEFORE).clamp_min(0)
    column = first.unsqueeze(1) + torch.arange(BEFORE + 1 + AFTER)
    inside = column < (position + AFTER + 1).clamp_max(length).unsqueeze(1)
    column = column.clamp_max(length - 1)
    windows = torch.zeros(column.shape)
    for start, acts in _activations(lm, site, sae, tokens, there, batch):
        here = ((place >= start) & (place < start + acts.shape[0])).nonzero().squeeze(1)
        rows = (prompt[here] * length - start).unsqueeze(1) + column[here]
        windows[here] = acts[rows, latent[here].unsqueeze(1)]
        bar.step(acts.shape[0] // length)
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
