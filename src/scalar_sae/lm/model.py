"""The transformer under study: read activations at sites, run from one site to a later one, replace activations.

    lm = LanguageModel.load("python-stdlib")
    tokens = lm.tokens("def main():")
    x = lm.activations(tokens, ["resid_mid.0"])["resid_mid.0"]  # the forward stops at the last site needed
    y = lm.run("resid_mid.0", "resid_post.0", x)                # the block between two sites
    logits = lm.logits_from("resid_post.0", y)                  # the rest of the model

Every computation walks from site to site (stretch.py). Its steps are the `transformers` modules themselves
(anatomy.py), so results equal the model's own to the bit; tests check this. The model computes in the precision and on
the device of its weights. Results are at least float32 and are returned on the device of the input.
"""

import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int, Int64, Integer
from torch import Tensor, nn

from scalar_sae.console import say_once
from scalar_sae.errors import UserError
from scalar_sae.lm.cached_run import CachedRun
from scalar_sae.lm.checks import as_prompts, check_site, check_tokens, encoded
from scalar_sae.lm.feedforward import FeedForward
from scalar_sae.lm.hooked import as_hf
from scalar_sae.lm.inserted import Inserted, refused
from scalar_sae.lm.layers import SiteState
from scalar_sae.lm.loading import Origin, check_whole, load_hf, load_tokenizer, locate, precision
from scalar_sae.lm.norms import AnyNorm
from scalar_sae.lm.recognition import dissect
from scalar_sae.lm.special import FIRST, Rule, Special, find_special, listed, named_by
from scalar_sae.lm.stretch import Replacement, Stretch, between, widened
from scalar_sae.sites import Site
from scalar_sae.tokenizer import Pretrained, Tokenizer

SiteName = TypeVar("SiteName", Site, str)
"""A site, or the name that `Site.parse` reads."""


class LanguageModel(nn.Module):
    """A frozen decoder-only transformer with named sites."""

    def __init__(
        self, hf: nn.Module, name: str, tokenizer: Tokenizer | None = None, origin: Origin | None = None
    ) -> None:
        super().__init__()
        self.hf: Any = hf.eval().requires_grad_(False)
        self.name = name
        self._anatomy = dissect(hf, name)
        self._stretch = Stretch(dict(enumerate(self._anatomy.layers)), name)
        self._tokenizer = tokenizer
        self._origin = origin or Origin.of(self.hf)
        self._inserted: Inserted | None = None
        config = self.hf.config.get_text_config()
        self.d_model: int = config.hidden_size
        self.n_layers: int = len(self._anatomy.layers)
        self.d_vocab: int = config.vocab_size
        self.context: int = getattr(config, "max_position_embeddings", None) or sys.maxsize  # ALiBi knows no limit

    @classmethod
    def load(cls, source: str | Path | nn.Module, tokenizer: Any = None, **options: Any) -> "LanguageModel":
        """Load any decoder-only causal language model of `transformers`.

        Args:
            source: the name of a shipped model, a folder, a GGUF file, or a model on the Hub (`owner/name[@revision]`
                or `hf://owner/name[@revision][/subfolder]`). It may also be a loaded model, including TransformerLens'
                HookedTransformer or bridge; the model is then frozen and put into evaluation mode.
            tokenizer: a `transformers` tokenizer, if not the model's own.
            options: `device` is where the model is moved. `dtype` is the precision in which it computes, by default the
                one in its configuration. `revision`, `token`, `cache_dir` and `subfolder` apply to weights,
                configuration and tokenizer alike. Other options, such as `device_map`, go to `from_pretrained` of
                `transformers`.

        Raises:
            UserError: there is no such model, its files are damaged, its architecture is not understood, or it computes
                in float64.
        """
        if isinstance(source, nn.Module):
            hf, name, own = as_hf(source)
            origin, tokenizer = None, own if tokenizer is None else tokenizer
            if options:
                raise UserError(
                    f"{name}: {', '.join(options)}: options are for models in files; convert the module first"
                )
        else:
            if "torch_dtype" in options:
                raise UserError(f"{source}: torch_dtype: the option is called dtype; say dtype=...")
            options["dtype"] = precision(options.get("dtype"))
            name, origin = str(source), locate(source, options, with_tokenizer=tokenizer is None)
            check_whole(origin)
            hf = load_hf(origin, name, **options)
        lm = cls(hf, name, None if tokenizer is None else Pretrained(tokenizer, name), origin)
        if lm.dtype == torch.float64:
            raise UserError(f"{name}: computes in float64, and SAEs in float32; load it with dtype float32")
        if remark := lm.remark():
            say_once(remark)
        return lm

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer, read from the model's files on first use.

        Raises:
            UserError: there is none.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._origin, self.name, self.d_vocab)
        return self._tokenizer

    @cached_property
    def special_tokens(self) -> tuple[int, ...]:
        """Ids of the tokens that are not text (special.py), in ascending order.

        The tokenizer names them. Without one, the ids in the configuration are used, and the user is told so.
        """
        configs = (self.hf.config, self.hf.config.get_text_config(), getattr(self.hf, "generation_config", None))
        try:
            return find_special(self.tokenizer, configs, self.d_vocab)
        except UserError:
            found = find_special(None, configs, self.d_vocab)
        ids = f"those that its configuration names count as special: {listed(found)}" if found else "none is special"
        say_once(f"{self.name}: no tokenizer says which tokens are special, so {ids}; --special IDS says otherwise")
        return found

    def special_ids(self, rule: Rule) -> Special:
        """The tokens that a rule leaves out: their ids, and `first` if the first token of every prompt is among them.

        Raises:
            UserError: the rule names an id outside the vocabulary.
        """
        if rule == "skip":
            return self.special_tokens
        if rule == "first":
            return (FIRST, *self.special_tokens)
        return () if rule == "count" else named_by(rule, self.d_vocab, self.name)

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which the model computes."""
        return self._anatomy.layers[0].weight.dtype

    def describe(self) -> dict[str, Any]:
        """For a record: the name, precision and commit on the Hub, and the types that weights were dequantised from."""
        made_of = getattr(self.hf.config, "dequantized_from", None)
        dtype = str(self.dtype).removeprefix("torch.")
        known = {"revision": self._origin.hub.get("revision"), "dequantized_from": made_of}
        return {"lm": self.name, "dtype": dtype} | {name: value for name, value in known.items() if value}

    def remark(self) -> str:
        """A sentence on the model's precision for the user; empty for plain float32."""
        about = self.describe()
        if made_of := about.get("dequantized_from"):
            kinds = " and ".join(kind for kind in made_of["types"] if kind != "F32") or "F32"
            return f"language model in {about['dtype']}; its weights were dequantised from {kinds} ({made_of['file']})"
        return "" if about["dtype"] == "float32" else f"language model in {about['dtype']}"

    def __repr__(self) -> str:
        return f"LanguageModel({self.name}: {self.n_layers} layers, d_model {self.d_model}, {self.d_vocab:,} tokens)"

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.hf.device

    def save(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer as a Hugging Face folder."""
        self.hf.save_pretrained(folder)
        self.tokenizer.save(folder)

    def shuffled(self, seed: int) -> "LanguageModel":
        """A copy of the model in which the entries of every weight tensor are randomly permuted."""
        hf = deepcopy(self.hf)
        generator = torch.Generator().manual_seed(seed)
        for weights in hf.parameters():
            order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
            weights.data = weights.data.flatten()[order].view_as(weights)
        return LanguageModel(hf, f"{self.name}, weights shuffled", self._tokenizer, self._origin)

    def check(self, site: Site) -> None:
        """Raise a UserError if the model lacks the site, or if the site names a module that lies at another one."""
        check_site(site, self._anatomy, self.name)

    def leads(self, start: Site, end: Site) -> bool:
        """Whether the activation at `start` influences the activation at the later site `end`."""
        return start.layer != end.layer or self._anatomy.layers[start.layer].leads(start.kind, end.kind)

    def norm_before(self, site: Site) -> AnyNorm | None:
        """The norm whose output is read at `attn_in` or `mlp_in`; None at other sites or if its form is not known."""
        return self._anatomy.norm_before(site)

    def check_tokens(self, tokens: Int[Tensor, "batch token"]) -> None:
        """Raise a UserError if the model cannot read these tokens."""
        check_tokens(tokens, self.name, self.context, self.d_vocab, self._tokenizer)

    def tokens(self, text: str) -> Int64[Tensor, "one token"]:
        """Encode a text as a prompt of token ids, including the tokens that the tokenizer puts before every text.

        Raises:
            UserError: the text has no tokens, more than the model reads, or characters outside the vocabulary.
        """
        tokens = encoded(text, self.tokenizer, self.name)
        self.check_tokens(tokens)
        return tokens

    def logits(self, tokens: Integer[Tensor, "batch token"]) -> Float[Tensor, "batch token d_vocab"]:
        """Next-token logits of the model, or of the spliced model within `spliced_by`.

        Raises:
            UserError: the model cannot read these tokens.
        """
        tokens = self._prompts(tokens)
        if self._inserted is None:
            return widened(self.hf(tokens.to(self.hf.device), use_cache=False).logits, tokens)
        state = self._spliced_state(self._inserted, tokens)
        return self.logits_from(self._inserted.site, state.x, state.skip)

    def states(self, tokens: Int[Tensor, "batch token"], sites: list[Site]) -> dict[Site, SiteState]:
        """The states of a clean forward pass at the sites. The pass stops at the last of them.

        Raises:
            UserError: the model lacks a site or cannot read these tokens.
        """
        self.check_tokens(tokens)
        for site in sites:
            self.check(site)
        here = SiteState(self._anatomy.embed(tokens.to(self.hf.device)), None)
        places: Iterable[tuple[Site, SiteState]] = [(Site("resid_pre", 0), here)]
        if last := max(sites, default=None):
            places = chain(places, self._stretch.walk(Site("resid_pre", 0), last, here))
        found: dict[Site, SiteState] = {}
        for place, state in places:
            state = SiteState(widened(state.x, tokens), None if state.skip is None else widened(state.skip, tokens))
            found.update({site: state for site in sites if site.same_place(place)})
        return found

    def activations(
        self, tokens: Integer[Tensor, "batch token"], sites: Sequence[SiteName]
    ) -> dict[SiteName, Float[Tensor, "batch token d_model"]]:
        """The activations at each site, of the model or, within `spliced_by`, of the spliced model.

        Args:
            tokens: prompts.
            sites: sites or their names. They are the keys of the result.

        Raises:
            UserError: the model lacks a site or cannot read these tokens.
        """
        tokens, named = self._prompts(tokens), {name: Site.of(name) for name in sites}
        for site in named.values():
            self.check(site)
        inserted = self._inserted
        behind = {} if inserted is None else {n: at for n, at in named.items() if self._lies_behind(inserted.site, at)}
        own = self.states(tokens, [site for name, site in named.items() if name not in behind])
        found = {name: own[site].x for name, site in named.items() if name not in behind}
        if inserted is not None and behind:
            x, skip = self._spliced_state(inserted, tokens)
            found |= {name: self.run(inserted.site, site, x, skip) for name, site in behind.items()}
        return {name: found[name] for name in named}

    @contextmanager
    def spliced_by(
        self, site: Site | str, replacement: Callable[[Int64[Tensor, "batch token"]], Tensor]
    ) -> Generator["LanguageModel"]:
        """Replace the activation at a site within the block, for `logits` and `activations`.

        All other methods, such as `states` and `run`, still compute with the unmodified model.

        Args:
            site: the site of the replaced activation.
            replacement: from token ids [batch, token] to the activation, [batch, token, d_model].

        Raises:
            UserError: an activation is replaced already, or the model is called as `lm.hf(...)` within the block.
        """
        site = Site.of(site)
        self.check(site)
        if self._inserted is not None:
            raise UserError(f"{site}: something is spliced into {self.name} already, at {self._inserted.site}")
        self._inserted = Inserted(site, replacement)
        try:
            with refused(
                self.hf, f"{self.name}.hf computes without what is spliced in; call lm.logits(tokens) instead"
            ):
                yield self
        finally:
            self._inserted = None

    def _lies_behind(self, start: Site, site: Site) -> bool:
        """Whether `site` is the place `start`, or a later one that the activation at `start` influences."""
        return site.same_place(start) or (start < site and self.leads(start, site))

    def _spliced_state(self, inserted: Inserted, tokens: Int64[Tensor, "batch token"]) -> SiteState:
        """The state at the site: the replacement, with the model's own residual stream beside it."""
        state = self.states(tokens, [inserted.site])[inserted.site]
        return state._replace(x=inserted.of(tokens).to(tokens.device))

    def _prompts(self, tokens: Tensor) -> Int64[Tensor, "batch token"]:
        """Check token ids of any integer type and convert them to int64."""
        tokens = as_prompts(tokens)
        self.check_tokens(tokens)
        return tokens

    def run(
        self,
        start: Site | str,
        end: Site | str,
        x: Float[Tensor, "batch token d_model"],
        skip: Float[Tensor, "batch token d_model"] | None = None,
    ) -> Float[Tensor, "batch token d_model"]:
        """The activation at `end` when the activation at `start` is `x`.

        Args:
            start: a site before `end`, or its name.
            end: a later site, or its name.
            x: the activation at `start`.
            skip: for a start on a side branch, the residual stream to which the branch is added; needed only if that
                addition lies before `end`.

        Raises:
            UserError: `skip` is needed and missing, the model lacks a site, or `start` does not influence `end`.
        """
        start, end = Site.of(start), Site.of(end)
        self.check(start)
        self.check(end)
        return self._stretch.run(start, end, x, skip)

    def cached_run(
        self, start: Site, x: Float[Tensor, "one token d_model"], skip: Float[Tensor, "one token d_model"] | None = None
    ) -> CachedRun:
        """Run a prompt from a site to the end, so that further runs which differ at one token reuse keys and values."""
        self.check(start)
        return CachedRun.of(self._stretch, start, self.end, x, skip)

    def in_float32(self, start: Site, end: Site) -> Stretch:
        """The computation between two sites in float32, whatever the model's precision. Only its layers are copied.

        A model in half precision rounds every activation to three significant digits (bfloat16) or four (float16). The
        rounding would hide small differences between two activations at `start`.
        """
        self.check(start)
        self.check(end)
        layers = {number: self._anatomy.in_float32(number) for number in between(start, end)}
        return Stretch(layers, self.name)

    def copied(self, start: Site, end: Site) -> int:
        """Number of bytes that `in_float32` copies."""
        return sum(self._anatomy.copied(number) for number in between(start, end))

    def logits_from(
        self,
        site: Site | str,
        x: Float[Tensor, "batch token d_model"],
        skip: Float[Tensor, "batch token d_model"] | None = None,
    ) -> Float[Tensor, "batch token d_vocab"]:
        """Next-token logits when the activation at `site` is `x` and the rest of the model runs from there.

        For a site on a side branch, `skip` is the model's own residual stream to which the branch is added.

        Raises:
            UserError: the model lacks the site, or `skip` is needed and missing.
        """
        return self.unembed(self.run(site, self.end, x, skip))

    @property
    def end(self) -> Site:
        """The site after the last layer."""
        return Site("resid_post", self.n_layers - 1)

    def unembed(self, x: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token d_vocab"]:
        """Next-token logits when the residual stream after the last layer is `x`."""
        return widened(self._anatomy.unembed(x.to(self._anatomy.layers[-1].weight)), x)

    def spliced(self, first: SiteState, replace: dict[Site, Replacement]) -> SiteState:
        """The state at the last of some sites, with the activation at each of them replaced.

        A replacement is a function of the current activation, so a later site sees the effect of earlier ones.

        Args:
            first: the state at the first of the sites.
            replace: the replacement at each site, in any order.
        """
        return self._stretch.spliced(first, replace)

    def feed_forward(self, layer: int) -> FeedForward:
        """The norm and MLP of one layer as plain tensors.

        Raises:
            UserError: they are not of the form that FeedForward describes.
        """
        return self._stretch.feed_forward(layer)
