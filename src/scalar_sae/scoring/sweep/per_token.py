"""Sub-circuits at blocks where tokens do not interact: every distinct kept set of a token is computed once.

The edge sets of a sweep are nested, so a downstream latent at a token passes through at most as many kept sets as the
token has live upstream latents, whatever the number of edge counts. Latents that pass through the same set share its
features; each then costs one dot product, taken for exactly the pairs that are needed (a sampled product of matrices).
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad

from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.scoring.rankings.order import NOT_KEPT
from scalar_sae.scoring.sweep.closed_form import Readout
from scalar_sae.scoring.sweep.edges import Edges, EdgeTile, Parts

CACHE_BYTES = 2**22
"""Working sets stay about this large: what a core's cache holds."""
SHARE_BYTES = 2**27
"""Shares of the hidden layer are kept for as many tokens as fit this."""

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch says once that sparse tensors are in beta
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.long), torch.tensor([]), (1, 1))


@dataclass(frozen=True, eq=False)
class Updates:
    """New values of some downstream pre-activations, each with the index of the edge count where it starts to hold."""

    count: UInt8[Tensor, " n"]
    flat_index: Int[Tensor, " n"]
    """Flat index into [token, n_down]."""
    value: Float[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Contributions:
    """What each active latent of some tokens adds, and in the last column what is there without any."""

    x: Float[Tensor, "token active_1 d_model"]
    """To the upstream reconstruction."""
    hidden: Float[Tensor, "token active_1 d_hidden"] | None
    """To the hidden layer, before the norm's scale; None where it does not pay."""

    @classmethod
    def of(cls, readout: Readout, prompt: Prompt, parts: Parts, rows: slice | Int[Tensor, " row"]) -> "Contributions":
        """The shares of some of a prompt's tokens."""
        adds = readout.pair.added(prompt.active.latent[rows], parts.adds[rows])
        x = torch.cat([adds, parts.start[rows].unsqueeze(1)], 1)
        pays = readout.ff is not None and x.shape[1] < x.shape[2]
        return cls(x, readout.project(x) if pays else None)


def updates(pair: Pair, readout: Readout, prompt: Prompt, edges: Edges, n_counts: int) -> Iterator[Updates]:
    """Every change of a downstream pre-activation along the sweep, some tokens and latents at a time."""
    ends = torch.stack([edges.parts(pair, prompt).empty, pair.reconstruct(prompt.z, prompt)])
    without, with_all = pair.pre_acts(ends, prompt)
    for some, shares in pieces(readout, prompt, edges, slice(0, pair.down.d_sae)):
        yield _entering(some, without, n_counts)
        keep_index, order = some.keep_index.sort(dim=-1)
        following = torch.cat([keep_index[..., 1:], torch.full_like(keep_index[..., :1], NOT_KEPT)], -1)
        steps = (keep_index != following) & (keep_index < n_counts)
        is_all = torch.arange(1, keep_index.shape[-1] + 1, device=keep_index.device) == some.n_used.view(-1, 1, 1)
        token, column, entry = (steps & is_all).nonzero(as_tuple=True)
        everything = with_all[some.rows, some.columns][token, column]
        yield Updates(keep_index[token, column, entry], some.flat_index(token, column), everything)
        yield _between(readout, prompt, some, shares, keep_index, order, steps & ~is_all)


def pieces(readout: Readout, prompt: Prompt, edges: Edges, columns: slice) -> Iterator[tuple[EdgeTile, Contributions]]:
    """A prompt cut so that the weights of a piece's latents, and its keep indices, stay in the cache."""
    n_token, n_active = prompt.active.latent.shape
    parts = edges.parts(readout.pair, prompt)
    n_columns = max(64, CACHE_BYTES // (4 * readout.weights.shape[1]))
    n_tokens = max(1, CACHE_BYTES // (4 * n_active * min(n_columns, columns.stop - columns.start)))
    n_tokens = min(128, n_tokens, max(1, SHARE_BYTES // (4 * (n_active + 1) * readout.width)))
    for start in range(0, n_token, n_tokens):
        rows = slice(start, min(start + n_tokens, n_token))
        shares = Contributions.of(readout, prompt, parts, rows)
        for column in range(columns.start, columns.stop, n_columns):
            yield edges.here(prompt, rows, slice(column, min(column + n_columns, columns.stop))), shares


def _entering(some: EdgeTile, without: Float[Tensor, "_ n_down"], n_counts: int) -> Updates:
    """Latents that get their first edge before any latent that is live at the token is joined to them."""
    token, column = ((some.first < some.keep_index.amin(-1)) & (some.first < n_counts)).nonzero(as_tuple=True)
    value = without[some.rows, some.columns][token, column]
    return Updates(some.first[token, column], some.flat_index(token, column), value)


def _between(
    readout: Readout,
    prompt: Prompt,
    some: EdgeTile,
    shares: Contributions,
    keep_index: UInt8[Tensor, "token n_col active"],
    order: Int64[Tensor, "token n_col active"],
    steps: Bool[Tensor, "token n_col active"],
) -> Updates:
    """Pre-activations where a step's kept set is neither empty nor full."""
    step = steps.flatten().nonzero()[:, 0]
    row, count = step // keep_index.shape[-1], keep_index.flatten()[step]  # row of [token, n_col]
    token, column = row // keep_index.shape[1], row % keep_index.shape[1]
    code = codes(keep_index.shape[-1], order.device)[order].cumsum(-1).flatten()[step]
    kept = some.keep_index.flatten(0, 1)
    value = evaluated(
        readout, prompt, some, shares, token, column, code, lambda at: kept[row[at]] <= count[at].unsqueeze(1)
    )
    return Updates(count, some.flat_index(token, column), value)


def evaluated(
    readout: Readout,
    prompt: Prompt,
    some: EdgeTile,
    shares: Contributions,
    token: Int[Tensor, " entry"],
    column: Int[Tensor, " entry"],
    code: Int64[Tensor, " entry"],
    kept_of: Callable[[Int[Tensor, " row"]], Bool[Tensor, "row active"]],
) -> Float[Tensor, " entry"]:
    """Pre-activations of latents at tokens, each under a kept set: one evaluation a distinct (token, set).

    Args:
        readout: the pair's.
        prompt: the prompt.
        some: the tokens and latents that `token` and `column` number.
        shares: of the same tokens.
        token: where.
        column: which latent.
        code: sum of the `codes` of the kept latents.
        kept_of: the kept latents of some of the entries.
    """
    value = shares.x.new_empty(len(token))
    if not len(token):
        return value
    key, by_set = ((token << 56) + (code & (2**56 - 1))).sort()  # grouped by token, and by set within a token
    token, column = token[by_set], column[by_set]
    starts = pad(key[1:] != key[:-1], (1, 0), value=True).nonzero()[:, 0]
    bounds = pad(starts, (0, 1), value=len(key))
    found = torch.empty_like(value)
    for rows in torch.arange(len(starts), device=key.device).split(max(64, CACHE_BYTES // (4 * readout.width))):
        entries = slice(int(bounds[rows[0]]), int(bounds[rows[-1] + 1]))
        kept = pad(kept_of(by_set[starts[rows]]).float(), (0, 1), value=1.0)  # the base is always there
        x, features = _features(readout, prompt, some, shares, token[starts[rows]], kept)
        crow = bounds[rows[0] : rows[-1] + 2] - bounds[rows[0]]
        found[entries] = _sampled(crow, column[entries], features, readout.weights[some.columns])
        if readout.skip is not None:
            found[entries] += _sampled(crow, column[entries], x, readout.skip[some.columns])
    value[by_set] = found + readout.constant[some.columns][column]
    return value


def codes(n_active: int, device: torch.device) -> Int64[Tensor, " active"]:
    """Numbers whose sums tell sets of active latents apart: powers of two while they fit 56 bits, else random ones.

    Of a million random sums two are equal with probability 10^-5.
    """
    if n_active <= 56:
        return 1 << torch.arange(n_active, device=device)
    numbers = torch.randint(2**56, (n_active,), generator=torch.Generator().manual_seed(0), device="cpu")
    return numbers.to(device)


def _features(
    readout: Readout,
    prompt: Prompt,
    some: EdgeTile,
    shares: Contributions,
    token: Int[Tensor, " row"],
    kept: Float[Tensor, "row active_1"],
) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, "row d_feature"]]:
    """The upstream reconstruction of each kept set and its features; rows are grouped by token."""
    here, sizes = (part.tolist() for part in token.unique_consecutive(return_counts=True))
    x = torch.cat([part @ shares.x[t] for part, t in zip(kept.split(sizes), here, strict=True)])
    if shares.hidden is None:
        skip = None if prompt.up_skip is None else prompt.up_skip[0, some.rows][token].unsqueeze(1)
        return x, readout.features(x.unsqueeze(1), skip).squeeze(1)
    assert readout.hidden_bias is not None
    parts = (kept * readout.scale(x)).split(sizes)
    hidden = kept.new_empty(len(kept), shares.hidden.shape[2])
    for part, t, rows in zip(parts, here, hidden.split(sizes), strict=True):
        torch.addmm(readout.hidden_bias, part, shares.hidden[t], out=rows)
    return x, readout.activate(hidden)


def _sampled(
    crow: Int[Tensor, " row_1"],
    column: Int[Tensor, " entry"],
    rows: Float[Tensor, "row d"],
    columns: Float[Tensor, "n_col d"],
) -> Float[Tensor, " entry"]:
    """rows[r] . columns[c] for the entries (r, c) of a compressed sparse pattern."""
    size, zeros = (len(rows), len(columns)), rows.new_zeros(len(column))
    pattern = torch.sparse_csr_tensor(crow, column, zeros, size, device=rows.device, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, rows, columns.T, beta=0.0).values()
