"""A block with an SAE at each end (`Pair`), and what the benchmark needs to know about a prompt under it (`Prompt`)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.errors import UserError
from scalar_sae.kernels import FastCPUOps
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import Rule, Special, counted
from scalar_sae.lm.stretch import Stretch
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import find_sae
from scalar_sae.sites import Block, Site


@dataclass(frozen=True, eq=False)
class ActiveLatents:
    """The upstream latents that are active at each token, padded to the token with the most."""

    latent: Int[Tensor, "token active"]
    used: Bool[Tensor, "token active"]
    """Whether the entry holds a latent; the rest of the row is padding."""
    adds: Float[Tensor, "token active"]
    """What the latent adds along its decoder row; zero in padding."""
    change: Float[Tensor, "token active"]
    """What it adds beyond its ablated value; zero in padding."""

    def of_tokens(self, rows: slice) -> "ActiveLatents":
        """The active latents of some tokens."""
        return ActiveLatents(self.latent[rows], self.used[rows], self.adds[rows], self.change[rows])


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt as a pair sees it."""

    number: int
    tokens: Int[Tensor, "one token"]
    special: Bool[Tensor, " token"] | None
    """Where special tokens stand (lm/special.py), which keep the model's own activation; None: nowhere."""
    z: Float[Tensor, "token n_up"]
    """Upstream latent activations; none at special tokens."""
    active: ActiveLatents
    x_up: Float[Tensor, "token d_model"]
    """The model's own activation that they were encoded from."""
    up_skip: Float[Tensor, "one token d_model"] | None
    """The model's own residual stream beside the upstream site, if that is on a side branch."""
    down_skip: Float[Tensor, "one token d_model"] | None
    """The same beside the place that is spliced."""
    x_start: Float[Tensor, "one token d_model"]
    """The model's own activation where the block begins."""
    x_down: Float[Tensor, "one token d_model"]
    """The model's own activation at the downstream site."""
    x_spliced: Float[Tensor, "one token d_model"]
    """The model's own activation at the place that is spliced."""

    @property
    def text(self) -> Bool[Tensor, " token"]:
        """Where ordinary tokens stand."""
        return torch.ones_like(self.tokens[0], dtype=torch.bool) if self.special is None else ~self.special

    def at_text(self, values: Float[Tensor, "*batch token n"]) -> Float[Tensor, "*batch token n"]:
        """The values at ordinary tokens; 0 at special ones, which hold no latents and no edges."""
        return _at_text(values, self.special)

    def with_own(
        self, x: Float[Tensor, "*batch token d_model"], own: Float[Tensor, "one token d_model"]
    ) -> Float[Tensor, "*batch token d_model"]:
        """`x` at ordinary tokens, the model's own activation at special ones."""
        return x if self.special is None else torch.where(self.special.unsqueeze(-1), own[0], x)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over ordinary tokens, which the last axis numbers; 0 where there is none."""
        if self.special is None:
            return values.mean(-1)
        return values[..., ~self.special].sum(-1) / max(1, int((~self.special).sum()))

    def mean_of_targets(self, values: Float[Tensor, "*batch target"]) -> Float[Tensor, "*batch"]:
        """Mean over the tokens that are predicted and ordinary; 0 where there is none."""
        if self.special is None:
            return values.mean(-1)
        there = ~self.special[1:]
        return values[..., there].sum(-1) / max(1, int(there.sum()))


@dataclass(frozen=True, eq=False)
class Pair:
    """The computation that is scored: up -> block -> down.

    One rule says which part of the residual stream is the model's own: all that passes beside a site, if the site is on
    a side branch. What passes through the upstream site is recomputed. The same holds for what passes beside an SAE's
    latents, through a skip connection or the mean and size of a run-time norm: decoders read it from the model's own
    activation.
    """

    lm: LanguageModel
    block: Block
    up: SAE
    down: SAE
    reads: Site | None = None
    """Where an upstream transcoder reads; the block begins where it writes. None: an SAE, at the block's beginning."""
    ablation_value: Float[Tensor, " n_up"] | None = None
    """What an ablated upstream latent is set to; None: zero."""
    site_mean: Float[Tensor, " d_model"] | None = None
    """Mean activation at the downstream site over the ranking text. Faithfulness compares a circuit with
    this mean in place of the site. None: not known."""
    special: Special = ()
    """Special tokens: they keep the model's own activation at both ends, hold no latents and no edges, and are
    counted nowhere. `score` sets them by its config."""

    def __post_init__(self) -> None:
        self.lm.check(self.block.up)
        self.lm.check(self.block.down)
        for site, sae in ((self.block.up, self.up), (self.block.down, self.down)):
            if sae.d_model != self.lm.d_model:
                raise UserError(f"{site}: the SAE reads {sae.d_model} dimensions, {self.lm.name} has {self.lm.d_model}")
            if sae.d_out != self.lm.d_model:
                raise UserError(f"{site}: the SAE writes {sae.d_out} dimensions, {self.lm.name} has {self.lm.d_model}")
            for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
                if not getattr(sae, name).isfinite().all():
                    raise UserError(f"{site}: {name} of the SAE is not finite")
        writes, reads = self.up.writes or self.block.up, self.encode_site
        self.lm.check(writes)
        if not writes.same_place(self.block.up):
            raise UserError(f"{self.block}: upstream stands a transcoder that writes {writes}; its block begins there")
        if self.block.up < reads:
            raise UserError(f"{self.block}: upstream stands a transcoder that reads {reads}, behind the block's start")
        self.lm.check(reads)
        self.lm.check(self.splice_site)

    @classmethod
    def between(cls, lm: LanguageModel, block: Block | str, saes: Mapping[Site, SAE], special: Rule = "skip") -> "Pair":
        """The pair of a block, from SAEs by site.

        Args:
            lm: the model.
            block: the block, or its name, such as `ff_block.0` or `resid_pre.0->resid_post.2`.
            saes: SAEs by the site that they read.
            special: what happens at special tokens (lm/special.py). By default they keep the model's own activation.

        Raises:
            UserError: there is no SAE at one of the block's ends, or the model lacks them.
        """
        block = Block.of(block)
        for site in (site for site in saes if site.same_place(block.up) or site.same_place(block.down)):
            lm.check(site)
        reads, down = upstream(saes, block.up), find_sae(saes, block.down)
        if reads is None or down is None:
            missing = block.up if reads is None else block.down
            lm.check(missing)
            there = [f"{site} -> {sae.writes}" if sae.writes else str(site) for site, sae in sorted(saes.items())]
            raise UserError(f"{block}: no SAE at {missing}; there are SAEs at {', '.join(there)}")
        return cls(lm, block, saes[reads], down, reads, special=lm.special_ids(special))

    def __repr__(self) -> str:
        ablation = "" if self.ablation_value is None else ", mean ablation"
        return f"Pair({self.block} of {self.lm.name}: {self.up.d_sae:,} x {self.down.d_sae:,} latents{ablation})"

    @property
    def encode_site(self) -> Site:
        """Where the upstream encoder reads: at the block's beginning, or where a transcoder does."""
        return self.reads or self.block.up

    @property
    def splice_site(self) -> Site:
        """Where the downstream decoder's output goes: where it was read, or where a transcoder writes."""
        return self.down.writes or self.block.down

    @property
    def device(self) -> torch.device:
        """Where the SAEs lie, and all that is computed with them; the model may lie elsewhere."""
        return self.up.W_dec.device

    @property
    def n_edges(self) -> int:
        """Possible edges: upstream times downstream latents."""
        return self.up.d_sae * self.down.d_sae

    def reconstruct(self, z: Float[Tensor, "token n_up"], prompt: Prompt) -> Float[Tensor, "token d_model"]:
        """The upstream reconstruction from latent activations."""
        return prompt.with_own(self.up.decode(z, prompt.x_up), prompt.x_start)

    def bias(self, prompt: Prompt) -> Float[Tensor, "token d_model"]:
        """The same with every latent at zero."""
        bias = self.up.b_dec.expand_as(prompt.x_up)
        return prompt.with_own(self.up.add_passthrough(bias, prompt.x_up), prompt.x_start)

    def base(self, prompt: Prompt) -> Float[Tensor, "token d_model"]:
        """The same with every latent ablated."""
        bias = self.up.b_dec if self.ablation_value is None else self.ablation_value @ self.up.W_dec + self.up.b_dec
        return prompt.with_own(self.up.add_passthrough(bias.expand_as(prompt.x_up), prompt.x_up), prompt.x_start)

    def with_active_ablated(self, prompt: Prompt) -> Float[Tensor, "token d_model"]:
        """The upstream reconstruction with every latent ablated where it is active. Elsewhere it stays at zero."""
        active = prompt.active
        change = torch.zeros_like(prompt.z).scatter_add_(1, active.latent, active.change)
        return self.reconstruct(prompt.z, prompt) - change @ self.up.W_dec

    def scaled(self, adds: Float[Tensor, "*many d_model"], prompt: Prompt) -> Float[Tensor, "*many_and_token d_model"]:
        """What decoded latents add to the reconstruction at each token: scaled by a run-time norm, nothing at special
        tokens.

        Args:
            adds: the sum of latents times their decoder rows, [..., one, d_model] or [..., token, d_model].
            prompt: where.
        """
        scale = 1.0 if self.up.norm is None else self.up.norm.scale(prompt.x_up)
        return adds * _at_text(torch.ones_like(prompt.x_up[:, :1]) * scale, prompt.special)

    def active(
        self,
        z: Float[Tensor, "token n_up"],
        x_up: Float[Tensor, "token d_model"],
        special: Bool[Tensor, " token"] | None = None,
    ) -> ActiveLatents:
        """The latents that are active at each token, in the order of their indices."""
        used = z != 0
        latent = used.byte().topk(max(1, int(used.sum(-1).max())), dim=-1).indices.sort(dim=-1).values
        used, adds = used.gather(-1, latent), z.gather(-1, latent)
        adds = adds if self.up.norm is None else adds * self.up.norm.scale(x_up)
        delta = self.ablation_delta(z, x_up, special)
        return ActiveLatents(latent, used, adds, delta.gather(-1, latent).masked_fill(~used, 0.0))

    def ablation_delta(
        self,
        z: Float[Tensor, "token n_up"],
        x_up: Float[Tensor, "token d_model"],
        special: Bool[Tensor, " token"] | None = None,
    ) -> Float[Tensor, "token n_up"]:
        """What each upstream latent adds along its decoder row: activation less what ablation sets it to; nothing at
        special tokens.
        """
        change = z if self.ablation_value is None else _at_text(z - self.ablation_value, special)
        return change if self.up.norm is None else change * self.up.norm.scale(x_up)

    def decoded(
        self, acts: Float[Tensor, "*count token n_down"], prompt: Prompt
    ) -> Float[Tensor, "*count token d_model"]:
        """What is spliced in for downstream latent activations."""
        decoded = self.down.decode(acts, prompt.x_down[0].expand(*acts.shape[:-1], -1))
        return prompt.with_own(decoded, prompt.x_spliced)

    def added(self, latent: Int[Tensor, "*many"], change: Float[Tensor, "*many"]) -> Float[Tensor, "*many d_model"]:
        """What upstream latents add to the reconstruction with these changes."""
        return change.unsqueeze(-1) * self.up.W_dec[latent]

    def compute(
        self, x: Float[Tensor, "batch token d_model"], up_skip: Float[Tensor, "_ token d_model"] | None
    ) -> Float[Tensor, "batch token d_model"]:
        """F, the block: from the upstream site's activation to the downstream site's."""
        return self.run_to(self.block.down, x, up_skip)

    def run_to(
        self, site: Site, x: Float[Tensor, "batch token d_model"], up_skip: Float[Tensor, "_ token d_model"] | None
    ) -> Float[Tensor, "batch token d_model"]:
        """The same as far as a site within the block."""
        if not len(x):
            return x  # attention refuses an empty batch
        x = x.contiguous()
        with FastCPUOps():
            return self.computation.run(self.block.up, site, x, None if up_skip is None else up_skip.expand_as(x))

    @cached_property
    def computation(self) -> Stretch:
        """The block in float32: what is measured are small differences, which half precision rounds away."""
        return self.lm.in_float32(self.block.up, self.block.down)

    def compute_at(
        self,
        where: Bool[Tensor, "batch token"],
        x: Float[Tensor, "batch token d_model"],
        up_skip: Float[Tensor, "_ token d_model"] | None,
    ) -> Float[Tensor, "row d_model"]:
        """F at some of the tokens. What lies behind the block's last attention is computed for those tokens alone."""
        start = self._per_token_from
        if start is None:
            return self.compute(x, up_skip)[where]
        if start != self.block.up:
            x, up_skip = self.run_to(start, x, up_skip), None
        skip = None if up_skip is None else up_skip.expand_as(x)[where].unsqueeze(0)
        with FastCPUOps():
            return self.computation.run(start, self.block.down, x[where].unsqueeze(0), skip)[0]

    @cached_property
    def _per_token_from(self) -> Site | None:
        """The first site behind which a token depends on itself alone; None if the block ends in attention."""
        up, down = self.block.up, self.block.down
        if not self.block.mixes_tokens:
            return up
        site = Site("resid_mid", down.layer)
        try:
            self.lm.check(site)
        except UserError:  # attention runs beside the MLP
            return None
        return site if up < site < down else None

    def pre_acts(self, x: Float[Tensor, "batch token d_model"], prompt: Prompt) -> Float[Tensor, "batch token n_down"]:
        """Downstream pre-activations when x stands at the upstream site; 0 at special tokens, where no latent lives."""
        return prompt.at_text(self.down.pre_acts(self.compute(x, prompt.up_skip)))

    def full_circuit(self, prompt: Prompt) -> Float[Tensor, "token n_down"]:
        """Downstream activations behind the whole upstream reconstruction: down.encode(F(up.decode(z)))."""
        return self.down.activation.select(self.pre_acts(self.reconstruct(prompt.z, prompt).unsqueeze(0), prompt))[0]

    def run_on(self, x: Float[Tensor, "batch token d_model"], prompt: Prompt) -> Float[Tensor, "batch token d_model"]:
        """What stands behind the model's last layer when x is spliced in."""
        skip = prompt.down_skip
        with FastCPUOps():
            return self.lm.run(self.splice_site, self.lm.end, x, None if skip is None else skip.expand_as(x))

    def log_probs(
        self, x: Float[Tensor, "batch token d_model"], prompt: Prompt
    ) -> Float[Tensor, "batch token d_vocab"]:
        """The model's next-token log-probabilities when x is spliced in."""
        return self.lm.unembed(self.run_on(x, prompt)).log_softmax(-1)


def upstream(saes: Mapping[Site, SAE], site: Site) -> Site | None:
    """Where the SAE reads that stands at the beginning of a block: there, or as a transcoder that writes there."""
    there = [reads for reads, sae in saes.items() if (sae.writes or reads).same_place(site)]
    return min(there, key=lambda reads: saes[reads].writes is not None, default=None)


@torch.no_grad()
def read(pair: Pair, tokens: Int[Tensor, "prompt token"], first: int = 0) -> Iterator[Prompt]:
    """Run the model on prompts one after the other and encode the upstream site.

    Raises:
        UserError: an activation is not finite (the site and prompt are named), or tokens the model cannot read.
    """
    encoded, up, down = pair.encode_site, pair.block.up, pair.block.down
    for number, row in enumerate(tokens.to(pair.device).split(1), start=first):
        with FastCPUOps():
            states = pair.lm.states(row, [encoded, up, down, pair.splice_site])
            x_up = states[encoded].x[0]
            z = pair.up.encode(x_up)
        for site, state in states.items():
            if not state.x.isfinite().all():
                raise UserError(f"{site}: activations of prompt {number} are not finite")
        special = ~counted(row[0], pair.special)
        special = special if special.any() else None
        z = _at_text(z, special)
        yield Prompt(
            number=number,
            tokens=row,
            special=special,
            z=z,
            active=pair.active(z, x_up, special),
            x_up=x_up,
            up_skip=states[up].skip,
            down_skip=states[pair.splice_site].skip,
            x_start=states[up].x,
            x_down=states[down].x,
            x_spliced=states[pair.splice_site].x,
        )


def _at_text(values: Float[Tensor, "*batch token n"], special: Bool[Tensor, " token"] | None) -> Tensor:
    return values if special is None else values.masked_fill(special.unsqueeze(-1), 0.0)


@torch.no_grad()
def with_site_mean(pair: Pair, tokens: Int[Tensor, "prompt token"]) -> Pair:
    """The pair with the mean activation at the downstream site, over the ordinary tokens of a text."""
    total = pair.up.W_dec.new_zeros(pair.lm.d_model, dtype=torch.float64)
    for prompt in read(pair, tokens):
        total += prompt.x_spliced[0][prompt.text].double().sum(0)
    return replace(pair, site_mean=(total / max(1, int(counted(tokens, pair.special).sum()))).float())


@torch.no_grad()
def n_live_edges(pair: Pair, tokens: Int[Tensor, "prompt token"]) -> int:
    """Edges whose two latents are both live somewhere in the text."""
    live_up, live_down = (pair.up.W_dec.new_zeros(sae.d_sae) for sae in (pair.up, pair.down))
    for number in distributed.shard(len(tokens)):
        for prompt in read(pair, tokens[number : number + 1], number):
            live_up += (prompt.z > 0).any(0)
            live_down += (pair.full_circuit(prompt) > 0).any(0)
    distributed.all_sum(live_up)
    distributed.all_sum(live_down)
    return int((live_up > 0).sum() * (live_down > 0).sum())
