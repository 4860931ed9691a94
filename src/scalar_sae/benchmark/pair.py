"""A block with an SAE at each end, and what the benchmark needs to know about a text under it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import find_sae
from scalar_sae.sites import Block, Site


@dataclass(frozen=True, eq=False)
class Pair:
    """The computation that is scored: up -> block -> down."""

    lm: LanguageModel
    block: Block
    up: SAE
    down: SAE

    def __post_init__(self) -> None:
        self.lm.check(self.block.up)
        self.lm.check(self.block.down)
        for site, sae in ((self.block.up, self.up), (self.block.down, self.down)):
            if sae.d_model != self.lm.d_model:
                raise UserError(f"{site}: the SAE reads {sae.d_model} dimensions, {self.lm.name} has {self.lm.d_model}")
            if sae.d_out != self.lm.d_model:
                raise UserError(f"{site}: the SAE writes {sae.d_out} dimensions, {self.lm.name} has {self.lm.d_model}")
            if sae.decodes_from_input:
                raise UserError(f"{site}: only what decodes from its latents alone can be scored (docs/formats.md)")
        if self.up.writes is not None:
            raise UserError(f"{self.block}: a transcoder can stand downstream of a block, not upstream")
        self.lm.check(self.spliced)
        if not self.block.up.on_residual_stream and self.block.down.depth > _branch_end(self.block.up):
            raise UserError(f"{self.block}: a block that starts on a side branch must end on the same branch")

    @classmethod
    def between(cls, lm: LanguageModel, block: Block, saes: dict[Site, SAE]) -> "Pair":
        """The pair of a block, from SAEs by site.

        Raises:
            UserError: there is no SAE at one of the block's ends, or the model lacks them.
        """
        ends = [find_sae(saes, site) for site in (block.up, block.down)]
        if ends[0] is None or ends[1] is None:
            missing = block.up if ends[0] is None else block.down
            lm.check(missing)
            raise UserError(f"{block}: no SAE at {missing}; there are SAEs at {', '.join(map(str, sorted(saes)))}")
        return cls(lm, block, ends[0], ends[1])

    @property
    def spliced(self) -> Site:
        """Where the downstream decoder's output goes: where it was read, or where a transcoder writes."""
        return self.down.writes or self.block.down

    @property
    def n_edges(self) -> int:
        """Possible edges: upstream times downstream latents."""
        return self.up.d_sae * self.down.d_sae

    def compute(self, x: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token d_model"]:
        """F, the block: from the upstream site's activation to the downstream site's."""
        return self.lm.run(self.block.up, self.block.down, x)

    def log_probs(
        self, acts: Float[Tensor, "batch token n_down"], text: "Text"
    ) -> Float[Tensor, "batch token d_vocab"]:
        """The model's next-token log-probabilities with down.decode(acts) where it is spliced in.

        Where that site is on a side branch, the residual stream added after it is the model's own.
        """
        return self.lm.logits_from(self.spliced, self.down.decode(acts), text.skip).log_softmax(-1)


@dataclass(frozen=True, eq=False)
class Text:
    """Some prompts, as one pair sees them."""

    tokens: Int[Tensor, "prompt token"]
    z: Float[Tensor, "prompt token n_up"]
    """Upstream latent activations."""
    skip: Float[Tensor, "prompt token d_model"] | None
    """The model's own residual stream beside the place that is spliced, if that is on a side branch."""
    model: Float[Tensor, "prompt token d_vocab"]
    """Log-probabilities of the full model."""

    def prompt(self, number: int) -> "Text":
        """One prompt of the text."""
        one = slice(number, number + 1)
        skip = None if self.skip is None else self.skip[one]
        return Text(self.tokens[one], self.z[one], skip, self.model[one])


@torch.no_grad()
def read(pair: Pair, tokens: Int[Tensor, "prompt token"]) -> Text:
    """Run the model on prompts and encode the upstream site.

    Raises:
        UserError: an activation is not finite (the site and prompt are named), or tokens the model cannot read.
    """
    states = pair.lm.states(tokens, [pair.block.up, pair.block.down, pair.spliced])
    for site, state in states.items():
        bad = ~state.x.isfinite().all(-1).all(-1)
        if bad.any():
            raise UserError(f"{site}: activations of prompt {int(bad.int().argmax())} are not finite")
    model = pair.lm.logits(tokens).log_softmax(-1)
    return Text(tokens, pair.up.encode(states[pair.block.up].x), states[pair.spliced].skip, model)


def _branch_end(site: Site) -> int:
    """Depth of the last place on the side branch that a site is on."""
    end = "attn_out" if site.kind.startswith("attn") else "mlp_out"
    return Site(end, site.layer).depth
