"""Circuits by hand: a pair with some of its edges, its exact logits, and the effect of removing an edge.

    full = Circuit.full(pair)                        # every edge
    cut = full.without(edges=[(17, 203)])            # the same without one edge
    full.logit_changes(cut, "def main():")           # the effect on the prediction of the next token
    with cut.spliced():                              # the model with the circuit in place of its own computation
        pair.lm.logits(tokens)

A downstream latent is recomputed from its kept edges alone, with all other upstream latents ablated: set to zero, or to
their means (`mean_ablated`). The downstream reconstruction is spliced into the model; special tokens keep the model's
own activation.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.explore.measure import measured
from scalar_sae.explore.passage import check_consecutive, passages
from scalar_sae.explore.plain import Measured
from scalar_sae.explore.stage import Stage, check_latents
from scalar_sae.lm.model import LanguageModel
from scalar_sae.scoring.pair import Pair, Prompt, read
from scalar_sae.table import Table

Edge = tuple[int, int]
"""An upstream latent and a downstream latent."""


@dataclass(frozen=True, eq=False)
class Circuit:
    """A pair with the edges that are kept, the same at every token."""

    pair: Pair
    kept: Bool[Tensor, "n_up n_down"]

    def __post_init__(self) -> None:
        shape = (self.pair.up.d_sae, self.pair.down.d_sae)
        if tuple(self.kept.shape) != shape:
            raise UserError(f"kept edges of shape {tuple(self.kept.shape)}: the pair needs {shape}")

    @classmethod
    def full(cls, pair: Pair) -> "Circuit":
        """A circuit with every possible edge."""
        return cls(pair, _filled(pair, True))

    @classmethod
    def of(cls, pair: Pair, edges: Iterable[Edge]) -> "Circuit":
        """A circuit with some edges.

        Raises:
            UserError: the pair has no such edge.
        """
        kept = _filled(pair, False)
        for up, down in edges:
            check_latents(pair, up=[up], down=[down])
            kept[up, down] = True
        return cls(pair, kept)

    def __repr__(self) -> str:
        return f"Circuit({self.pair.block}: {self.n_edges:,} of {self.pair.n_edges:,} edges)"

    @property
    def n_edges(self) -> int:
        """Number of kept edges."""
        return int(self.kept.sum())

    def without(self, *, edges: Iterable[Edge] = (), up: Iterable[int] = (), down: Iterable[int] = ()) -> "Circuit":
        """The circuit without some edges, and without any edge of some latents.

        Args:
            edges: edges to remove. Edges that are not kept are ignored.
            up: upstream latents whose edges are all removed.
            down: downstream latents whose edges are all removed.

        Raises:
            UserError: the pair has no such edge or latent.
        """
        edges, up, down = list(edges), list(up), list(down)
        check_latents(self.pair, up=[*up, *(i for i, _ in edges)], down=[*down, *(j for _, j in edges)])
        kept = self.kept.clone()
        kept[up] = False
        kept[:, down] = False
        for i, j in edges:
            kept[i, j] = False
        return Circuit(self.pair, kept)

    def logits(self, prompt: str | Integer[Tensor, "batch token"]) -> Float[Tensor, "batch token d_vocab"]:
        """Next-token logits with the circuit spliced into the model.

        Args:
            prompt: a text, or prompts of token ids.

        Raises:
            UserError: the model cannot read the prompt.
        """
        with self.spliced() as lm:
            return lm.logits(lm.tokens(prompt) if isinstance(prompt, str) else prompt)

    def spliced(self) -> AbstractContextManager[LanguageModel]:
        """Within the block, `pair.lm.logits` and `pair.lm.activations` are those of the model with the circuit spliced
        in.

        Raises:
            UserError: something is spliced in already.
        """
        return self.pair.lm.spliced_by(self.pair.splice_site, self._activation)

    def logit_changes(
        self, other: "Circuit", prompt: str | Integer[Tensor, "one token"], position: int = -1, n: int = 10
    ) -> Table:
        """Compare another circuit's prediction of the next token with this circuit's.

        Both are exact: every logit is computed from the recomputed latents, and nothing is linearised.

        Args:
            other: the circuit to compare with, such as `self.without(edges=[(17, 203)])`.
            prompt: a text, or one prompt of token ids.
            position: the token after which the prediction is made; by default the last one.
            n: number of next tokens to list.

        Returns:
            The tokens whose probability changes most: `token`, `text`, `logit` and `logit_other` (each minus its mean
                over the
            vocabulary, which changes no probability), `change` (their difference), `p` and `p_other`.

        Raises:
            UserError: the circuit belongs to another pair, there are several prompts, or there is no such position.
        """
        if other.pair is not self.pair:
            raise UserError("logit_changes compares two circuits of one pair; build both from the same Pair")
        lm = self.pair.lm
        tokens = lm.tokens(prompt) if isinstance(prompt, str) else prompt
        if len(tokens) != 1:
            raise UserError(f"{len(tokens)} prompts: logit_changes takes one; give tokens[:1]")
        if not -tokens.shape[1] <= position < tokens.shape[1]:
            raise UserError(f"position {position}: the prompt has {tokens.shape[1]} tokens")
        both = torch.stack([circuit.logits(tokens)[0, position] for circuit in (self, other)])
        before, after = both - both.mean(-1, keepdim=True)
        p, p_other = both.softmax(-1)
        shown = (p_other - p).abs().topk(min(n, lm.d_vocab)).indices.tolist()
        return Table(
            {
                "token": token,
                "text": text,
                "logit": float(before[token]),
                "logit_other": float(after[token]),
                "change": float(after[token] - before[token]),
                "p": float(p[token]),
                "p_other": float(p_other[token]),
            }
            for token, text in zip(shown, lm.tokenizer.pieces(shown), strict=True)
        )

    def measure(self, tokens: Integer[Tensor, "prompt token"]) -> Measured:
        """Measure how much of the full circuit and of the model these edges carry, as on the curve of a record.

        Args:
            tokens: the text, at least one prompt with an ordinary token.

        Raises:
            UserError: an output is not finite, or all tokens are special.
        """
        return measure_chain([self], tokens)

    def latents(self, prompt: Prompt) -> Float[Tensor, "token n_down"]:
        """Downstream latent activations under the circuit."""
        return Stage(self.pair, prompt).acts(self.kept)

    def _activation(self, tokens: Integer[Tensor, "batch token"]) -> Float[Tensor, "batch token d_model"]:
        """The activation at the spliced site."""
        with torch.no_grad():
            return torch.stack([self.pair.decoded(self.latents(one), one) for one in read(self.pair, tokens)])


def measure_chain(
    circuits: Sequence[Circuit],
    tokens: Integer[Tensor, "prompt token"],
    on_progress: Callable[[float], object] = lambda done: None,
) -> Measured:
    """Measure how much circuits of consecutive pairs carry together, as on the curve of a whole-model circuit.

    Args:
        circuits: one for each pair, in the order of the forward pass. Each pair starts from what the one before it
            leaves.
        tokens: the text, at least one prompt with an ordinary token.
        on_progress: called with the share that is done.

    Raises:
        UserError: the pairs are not consecutive, an output is not finite, or all tokens are special.
    """
    pairs, found = [circuit.pair for circuit in circuits], []
    check_consecutive(pairs)
    for passage in passages(pairs, tokens):
        found.append(passage.readings([circuit.kept for circuit in circuits]))
        on_progress(len(found) / len(tokens))
    return measured(found)


def _filled(pair: Pair, value: bool) -> Bool[Tensor, "n_up n_down"]:
    return torch.full((pair.up.d_sae, pair.down.d_sae), value, device=pair.device)
