"""Names of places in a transformer (`Site`) and of computations between two places (`Block`).

A decoder layer is a sequence of places. A norm, a sub-layer or an addition leads from each to the next:

    resid_pre ─norm─▶ attn_in ─attention─▶ (attn_raw ─norm─▶) attn_out ─(+ resid_pre)─▶ resid_mid
    resid_mid ─norm─▶ mlp_in  ─MLP───────▶ (mlp_raw  ─norm─▶) mlp_out  ─(+ resid_mid)─▶ resid_post

`attn_out` and `mlp_out` are what is added to the residual stream. `attn_raw` and `mlp_raw` exist only in models with a
norm or a factor before that addition (Gemma 2 and 3, OLMo 2, GLM-4, Granite), and are its input. Models that run
attention and MLP in parallel (Pythia, GPT-J, Phi, Cohere, Falcon) have no `resid_mid`. `resid_post` of one layer and
`resid_pre` of the next are two names of one place.
"""

import re
from dataclasses import dataclass, field
from functools import total_ordering

from scalar_sae.errors import UserError, quoted, unknown

KINDS = (
    "resid_pre", "attn_in", "attn_raw", "attn_out", "resid_mid", "mlp_in", "mlp_raw", "mlp_out", "resid_post",
)  # fmt: skip
"""The places that a layer can have, in the order of a forward pass."""

_TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "attn.hook_in": "attn_in",
    "hook_attn_out": "attn_out",
    "hook_resid_mid": "resid_mid",
    "mlp.hook_in": "mlp_in",
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
    "hook_mlp_in": "resid_mid",
    "attn.hook_out": "attn_out",
    "mlp.hook_out": "mlp_out",
    "ln1.hook_normalized": "attn_in",
    "ln2.hook_normalized": "mlp_in",
}
"""The first hook listed for a place is its name in exported files."""

_LAYER = re.compile(r"[0-9]{1,5}")
_HUGGING_FACE = re.compile(
    r"(?:.+\.)?(?:h|layers)\.(?P<layer>[0-9]{1,5})(?:\.(?P<module>(?!input$|output$)\w+))?(?:\.(?P<side>input|output))?"
)
_MODULES = {
    None: ("resid_pre", "resid_post"),
    "attn": ("attn_in", "attn_out"),
    "self_attn": ("attn_in", "attn_out"),
    "attention": ("attn_in", "attn_out"),
    "mlp": ("mlp_in", "mlp_out"),
    "ln_1": ("resid_pre", "attn_in"),
    "ln_2": ("resid_mid", "mlp_in"),
    "input_layernorm": ("resid_pre", "attn_in"),
    "pre_feedforward_layernorm": ("resid_mid", "mlp_in"),
    "post_feedforward_layernorm": ("mlp_raw", "mlp_out"),
}
"""The sites that a Hugging Face module reads and writes."""
_BEFORE_A_NORM = ("attn", "self_attn", "attention", "mlp", "attn.hook_out", "mlp.hook_out")
"""Modules whose output some models normalise before adding it to the residual stream."""

_BLOCKS = {
    "ff_layer": ("mlp_in", "mlp_out"),
    "ff_block": ("resid_mid", "resid_post"),
    "attn_block": ("resid_pre", "resid_mid"),
    "transformer_block": ("resid_pre", "resid_post"),
}


@total_ordering
@dataclass(frozen=True)
class Site:
    """A place where activations are read, such as `resid_mid.2`."""

    kind: str
    layer: int
    of_module: bool = field(default=False, compare=False)
    """Whether it was named as the output of a module, which in some models is another place (`LanguageModel.check`)."""
    normalized: bool = field(default=False, compare=False)
    """Whether it was named as TransformerLens' `ln2.hook_normalized`, which in some models lies before the norm's gain
    (saes/fitted.py)."""

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Parse `resid_mid.2`, TransformerLens' `blocks.2.hook_resid_mid` or Hugging Face's `model.layers.2.mlp`.

        A module's name means its output, and may be followed by `.input` or `.output`.

        Raises:
            UserError: the text is not the name of a site.
        """
        lens = re.fullmatch(r"blocks\.([0-9]{1,5})\.(.+)", text)
        if lens and lens[2] in _TRANSFORMER_LENS:
            of_module, normalized = lens[2] in _BEFORE_A_NORM, lens[2].endswith("hook_normalized")
            return cls(_TRANSFORMER_LENS[lens[2]], int(lens[1]), of_module, normalized)
        module = _HUGGING_FACE.fullmatch(text)
        if module and module["module"] in _MODULES:
            output = module["side"] != "input"
            of_module = output and module["module"] in _BEFORE_A_NORM
            return cls(_MODULES[module["module"]][output], int(module["layer"]), of_module)
        kind, _, layer = text.partition(".")
        if kind not in KINDS:
            raise unknown("site", text, [f"{kind}.N" for kind in KINDS])
        if not _LAYER.fullmatch(layer):
            raise UserError(f"site {quoted(text)}: expected a layer number after the dot, such as {kind}.0")
        return cls(kind, int(layer))

    @classmethod
    def of(cls, site: "Site | str") -> "Site":
        """A site, given itself or its name.

        Raises:
            UserError: the text is not the name of a site.
        """
        return site if isinstance(site, Site) else cls.parse(site)

    @property
    def transformer_lens(self) -> str:
        """TransformerLens' name of the place, such as `blocks.2.hook_resid_mid`.

        Raises:
            UserError: TransformerLens has no name for it.
        """
        hooks = [hook for hook, kind in _TRANSFORMER_LENS.items() if kind == self.kind]
        if self.normalized:
            hooks = [hook for hook in hooks if hook.endswith("hook_normalized")]
        elif self.of_module:
            hooks = [hook for hook in hooks if hook in _BEFORE_A_NORM] or hooks
        hook = next(iter(hooks), None)
        if hook is None:
            raise UserError(f"{self}: TransformerLens has no name for this place")
        return f"blocks.{self.layer}.{hook}"

    @property
    def words(self) -> str:
        """A name that `parse` reads back without loss. If a hook or module was named, it is the name of one."""
        return self.transformer_lens if self.normalized or self.of_module else str(self)

    @property
    def depth(self) -> int:
        """Position along the forward pass. Two names of one place have the same depth."""
        return (len(KINDS) - 1) * self.layer + KINDS.index(self.kind)

    @property
    def on_residual_stream(self) -> bool:
        """Whether the whole residual stream passes through here. Otherwise the place is on a side branch."""
        return self.kind.startswith("resid_")

    def same_place(self, other: "Site") -> bool:
        """Whether both names mean one place, as `resid_post.0` and `resid_pre.1` do."""
        return self.depth == other.depth

    def __repr__(self) -> str:
        return f"Site({self.words!r})"

    def __lt__(self, other: "Site") -> bool:
        return self.depth < other.depth

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"


@dataclass(frozen=True)
class Block:
    """The computation from one site to a later one, such as `ff_block.0` or `resid_pre.0->resid_post.2`."""

    up: Site
    down: Site

    def __post_init__(self) -> None:
        if not self.up < self.down:
            raise UserError(f"block {self.up}->{self.down}: the upstream site must come before the downstream site")

    @classmethod
    def parse(cls, text: str) -> "Block":
        """Parse `ff_layer.N`, `ff_block.N`, `attn_block.N`, `transformer_block.N` or `SITE->SITE`.

        Raises:
            UserError: the text is not the name of a block.
        """
        up, arrow, down = text.partition("->")
        if arrow:
            return cls(Site.parse(up.strip()), Site.parse(down.strip()))
        kind, _, layer = text.partition(".")
        if kind not in _BLOCKS:
            raise unknown("block", text, [*(f"{kind}.N" for kind in _BLOCKS), "SITE->SITE"])
        if not _LAYER.fullmatch(layer):
            raise UserError(f"block {quoted(text)}: expected a layer number after the dot, such as {kind}.0")
        return cls(*(Site(place, int(layer)) for place in _BLOCKS[kind]))

    @classmethod
    def of(cls, block: "Block | str") -> "Block":
        """A block, given itself or its name.

        Raises:
            UserError: the text is not the name of a block.
        """
        return block if isinstance(block, Block) else cls.parse(block)

    @property
    def kind(self) -> str:
        """`ff_block` and so on, or `span`."""
        for kind, places in _BLOCKS.items():
            if (self.up.kind, self.down.kind) == places and self.up.layer == self.down.layer:
                return kind
        return "span"

    @property
    def mixes_tokens(self) -> bool:
        """Whether attention lies between the two sites, so that a token's output depends on earlier tokens."""
        attention = KINDS.index("attn_in")
        per_layer = len(KINDS) - 1
        return any(
            self.up.depth <= layer * per_layer + attention < self.down.depth
            for layer in range(self.up.layer, self.down.layer + 1)
        )

    def __repr__(self) -> str:
        return f"Block({str(self)!r})"

    def __str__(self) -> str:
        return f"{self.up}->{self.down}" if self.kind == "span" else f"{self.kind}.{self.up.layer}"
