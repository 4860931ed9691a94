"""The transformer under study: read activations at sites, run on from a site to a later one, splice.

    lm = LanguageModel.load("python-stdlib")
    acts = lm.activations(tokens, [Site("resid_mid", 0)])       # the forward stops at the last site needed
    y = lm.run(Site("resid_mid", 0), Site("resid_post", 0), x)  # the block between two sites
    logits = lm.logits_from(Site("resid_post", 0), y)           # the rest of the model

Everything goes through `_steps`, the model as a line of steps between neighbouring sites (see sites.py). The steps call
the `transformers` modules themselves, so clean logits are the model's own to the bit (tested).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from scalar_sae.errors import UserError, unknown
from scalar_sae.lm.feedforward import FeedForward
from scalar_sae.lm.toy import WEIGHTS, shipped
from scalar_sae.sites import Site

Replacement = Callable[[Tensor], Tensor]
"""From the activation at a site to what is put in its place, both [batch, token, d_model]."""


class At(NamedTuple):
    """The state of a forward pass at a site."""

    x: Float[Tensor, "batch token d_model"]
    """The activation there."""
    skip: Float[Tensor, "batch token d_model"] | None
    """On a side branch: the residual stream to which the branch will be added. None on the residual stream."""


class LanguageModel(nn.Module):
    """A frozen decoder-only transformer with named sites."""

    def __init__(self, hf: GPT2LMHeadModel, name: str) -> None:
        super().__init__()
        hf.set_attn_implementation("sdpa")  # causal without a mask; `eager` would need one
        self.hf = hf.eval().requires_grad_(False)
        self.name = name
        self.d_model: int = hf.config.n_embd
        self.n_layers: int = hf.config.n_layer
        self.d_vocab: int = hf.config.vocab_size
        self.context: int = hf.config.n_positions

    @classmethod
    def load(cls, source: str | Path) -> "LanguageModel":
        """Load a shipped model by its corpus' name, or a GPT-2 from a local folder.

        Raises:
            UserError: there is no such model, or its files are damaged or of another architecture.
        """
        folder = WEIGHTS / str(source) if str(source) in shipped() else Path(source)
        if not (folder / "config.json").is_file():
            raise unknown(
                "language model", str(source), [*shipped(), "a folder with config.json and model.safetensors"]
            )
        transformers_logging.disable_progress_bar()
        try:
            kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
            if kind != "gpt2":
                raise UserError(f"{folder}: a {kind} model; this version understands gpt2")
            loaded: Any = GPT2LMHeadModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
            hf, report = loaded
            if report["missing_keys"]:
                raise UserError(f"{folder}: weights are missing: {', '.join(sorted(report['missing_keys']))}")
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder}: cannot be loaded as a GPT-2 ({error})") from error
        return cls(hf, str(source))

    def check(self, site: Site) -> None:
        """Raise a UserError if the model has no such site."""
        if site.layer >= self.n_layers:
            raise UserError(f"{site}: {self.name} has {self.n_layers} layers (0-{self.n_layers - 1})")

    def check_tokens(self, tokens: Int[Tensor, "batch token"]) -> None:
        """Raise a UserError if the model cannot read these tokens."""
        if tokens.shape[1] > self.context:
            raise UserError(f"prompts of {tokens.shape[1]} tokens: {self.name} reads at most {self.context}")
        if tokens.numel() and int(tokens.max()) >= self.d_vocab:
            raise UserError(f"token {int(tokens.max())}: the vocabulary of {self.name} ends at {self.d_vocab - 1}")

    def logits(self, tokens: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token d_vocab"]:
        """The model's own next-token logits."""
        self.check_tokens(tokens)
        return self.hf(tokens).logits

    def states(self, tokens: Int[Tensor, "batch token"], sites: list[Site]) -> dict[Site, At]:
        """The clean forward pass at each site, run no further than the last of them."""
        self.check_tokens(tokens)
        for site in sites:
            self.check(site)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        gpt = self.hf.transformer
        here = At(gpt.wte(tokens) + gpt.wpe(positions), None)
        found = {site: here for site in sites if site.depth == 0}
        last = max((site.depth for site in sites), default=0)
        for depth, state in self._steps(0, last, here):
            found.update({site: state for site in sites if site.depth == depth})
        return found

    def activations(
        self, tokens: Int[Tensor, "batch token"], sites: list[Site]
    ) -> dict[Site, Float[Tensor, "batch token d_model"]]:
        """The clean activations at each site."""
        return {site: state.x for site, state in self.states(tokens, sites).items()}

    def run(
        self,
        start: Site,
        end: Site,
        x: Float[Tensor, "batch token d_model"],
        skip: Float[Tensor, "batch token d_model"] | None = None,
    ) -> Float[Tensor, "batch token d_model"]:
        """The activation at `end` when `x` stands at `start`.

        Args:
            start: a site before `end`.
            end: a later site.
            x: the activation put in at `start`.
            skip: on a side branch, the residual stream that the branch is added to; needed only when that happens
                before `end`.

        Raises:
            UserError: `skip` is needed and missing.
        """
        self.check(end)
        here = At(x, skip)
        for _, state in self._steps(start.depth, end.depth, here):
            here = state
        return here.x

    def logits_from(
        self,
        site: Site,
        x: Float[Tensor, "batch token d_model"],
        skip: Float[Tensor, "batch token d_model"] | None = None,
    ) -> Float[Tensor, "batch token d_vocab"]:
        """Next-token logits when `x` stands at `site` and the rest of the model runs on from there.

        On a side branch `skip` is the residual stream added after it: the model's own.
        """
        gpt = self.hf.transformer
        return self.hf.lm_head(gpt.ln_f(self.run(site, Site("resid_post", self.n_layers - 1), x, skip)))

    def spliced_logits(
        self, tokens: Int[Tensor, "batch token"], replace: dict[Site, Replacement]
    ) -> Float[Tensor, "batch token d_vocab"]:
        """Next-token logits with the activation at every listed site replaced by a function of what stands there.

        A later site sees what the earlier replacements made of it.
        """
        first, end = min(replace), Site("resid_post", self.n_layers - 1)
        at_depth = {site.depth: function for site, function in replace.items()}
        here = self.states(tokens, [first])[first]
        here = here._replace(x=replace[first](here.x))
        for depth in range(first.depth, end.depth):
            _, here = next(self._steps(depth, depth + 1, here))
            if depth + 1 in at_depth:
                here = here._replace(x=at_depth[depth + 1](here.x))
        return self.logits_from(end, here.x)

    def feed_forward(self, layer: int) -> FeedForward:
        """The norm and MLP of one layer as plain tensors."""
        block: Any = self.hf.transformer.h[layer]
        return FeedForward.of_gpt2(block)

    def _steps(self, start: int, end: int, here: At) -> Iterator[tuple[int, At]]:
        """Walk from depth `start` to depth `end`, yielding every depth reached and the state there."""
        for depth in range(start, end):
            layer: Any = self.hf.transformer.h[depth // 6]
            x, skip = here
            match depth % 6:
                case 0:  # resid_pre -> attn_in
                    here = At(layer.ln_1(x), x)
                case 1:  # attn_in -> attn_out
                    here = At(layer.attn(x)[0], skip)
                case 2:  # attn_out -> resid_mid
                    here = At(x + _needed(skip), None)
                case 3:  # resid_mid -> mlp_in
                    here = At(layer.ln_2(x), x)
                case 4:  # mlp_in -> mlp_out
                    here = At(layer.mlp(x), skip)
                case _:  # mlp_out -> resid_post
                    here = At(_needed(skip) + x, None)
            yield depth + 1, here


def _needed(skip: Tensor | None) -> Tensor:
    if skip is None:
        raise UserError("running on from a side branch (attn_*, mlp_*) needs the residual stream it is added to")
    return skip
