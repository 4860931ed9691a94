"""Interventions, and what the questions about a prompt return: plain data that `model_dump_json` turns into JSON."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from scalar_sae.errors import UserError
from scalar_sae.readers import explained
from scalar_sae.table import Table

Latent = Annotated[int, Field(ge=0, lt=2**31)]
Position = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class Plain(BaseModel):
    """Data that cannot be changed and has no other fields than these."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Intervention(Plain):
    """A change of one edge, one upstream latent or one downstream latent.

    `Intervention(up=17, down=40)` removes an edge, `Intervention(up=17)` an upstream latent and `Intervention(down=40)`
    a downstream latent, each at every position.

    - An edge: downstream latent `down` is computed from a changed activation of upstream latent `up`.
    - An upstream latent: every downstream latent is computed from its changed activation.
    - A downstream latent: `factor` multiplies its activation after the activation rule. Other latents keep theirs.

    What changes upstream is the difference between the activation and the value that ablation sets it to (zero, or the
    latent's mean): `factor` multiplies this difference.

    Raises:
        ValidationError: neither latent is named, or a list of positions is empty.
    """

    up: Latent | None = None
    """Upstream latent."""
    down: Latent | None = None
    """Downstream latent."""
    positions: tuple[Position, ...] | None = None
    """Tokens at which the latent is changed; for an edge, those of its upstream latent. Negative numbers count from the
    end of the prompt. None: every position."""
    factor: float = 0.0
    """0 removes, 1 changes nothing, 2 doubles."""
    block: str | None = None
    """The pair's block in a chain of pairs, such as `ff_block.0`. None: the only pair."""

    @model_validator(mode="after")
    def _changes_something(self) -> "Intervention":
        if self.up is None and self.down is None:
            raise ValueError("names no latent; give up, down or both")
        if self.positions is not None and not self.positions:
            raise ValueError("positions is empty; leave it out to change every position")
        return self


class TokenChange(Plain):
    """What an intervention does to the probability of one next token."""

    token: int
    text: str
    logit: float
    """Before the intervention, less the mean over the vocabulary."""
    logit_after: float
    change: float
    """`logit_after` less `logit`."""
    p: float
    """Probability before the intervention."""
    p_after: float


class Change(Plain):
    """The effect of interventions on one prompt."""

    tokens: tuple[int, ...]
    """The prompt."""
    interventions: tuple[Intervention, ...]
    reached: tuple[int, ...]
    """For each intervention the number of positions at which it changes an activation. 0: it does nothing here."""
    position: int
    """The token after which the prediction is shown."""
    kl: float
    """KL(before || after) of that prediction, in nats."""
    kl_mean: float
    """The same, mean over the ordinary tokens of the prompt."""
    next_tokens: tuple[TokenChange, ...]
    """The tokens whose probability changes most, largest change first."""

    def table(self) -> Table:
        """The next tokens as a table."""
        return table(self.next_tokens)


class Measured(Plain):
    """How much of the full circuit, and of the model, some edges carry."""

    edges: int
    """Kept edges, of all pairs."""
    kl_model: float
    """KL(model || circuit), in nats per token."""
    kl_circuit: float
    """KL(full circuit || circuit), in nats per token."""
    recovery: float
    """1 - kl_circuit / (kl_circuit without any edge)."""
    faithfulness: float | None
    """1 - kl_model / KL(model || site mean). None: the pair has no `site_mean`."""
    live_edges: float
    """Kept edges per token whose two latents are active."""
    l0_down: float
    """Active downstream latents per token, at the last site."""
    floor_kl: float
    """KL(model || full circuit), in nats per token."""


class LocalEdge(Plain):
    """An edge at one token of a prompt."""

    source: int
    """Position of the upstream latent."""
    up: int
    up_activation: float
    down: int
    down_activation: float
    """At the token that was asked for, in the full circuit."""
    effect: float
    """The downstream latent's activation less what it is without the edge from this source. Negative: the edge
    inhibits."""
    size: float
    """|effect| times the norm of the latent's decoder row, in units of the model's activations."""


class LocalEdges(Plain):
    """The edges from active upstream latents that act on the downstream latents at one token, largest size first."""

    block: str
    position: int
    n_edges: int
    """Number of edges that have an effect. The list may hold fewer."""
    total_size: float
    """Sum of their sizes."""
    edges: tuple[LocalEdge, ...]

    def table(self) -> Table:
        """The edges as a table."""
        return table(self.edges)


class NextToken(Plain):
    """A predicted token."""

    token: int
    text: str
    logit: float
    """Less the mean over the vocabulary."""
    p: float


class LatentEffect(Plain):
    """What one downstream latent at a token does to the prediction after it."""

    latent: int
    activation: float
    kl: float
    """KL(with || without the latent), in nats."""
    logits: tuple[float, ...]
    """For each of the predicted tokens its logit with the latent less its logit without."""


class Outputs(Plain):
    """The prediction after a token, and what each active downstream latent there adds to it; largest KL first."""

    position: int
    predicted: tuple[NextToken, ...]
    """The most probable tokens, in the full circuit."""
    latents: tuple[LatentEffect, ...]

    def table(self) -> Table:
        """The latents as a table, with a column for each predicted token's logit change."""
        rows = Table()
        for row in self.latents:
            logits = {token.text: change for token, change in zip(self.predicted, row.logits, strict=True)}
            rows.append({"latent": row.latent, "activation": row.activation, "kl": row.kl, **logits})
        return rows


class LocalCurve(Plain):
    """How much of the prediction after a token the strongest local edges carry, by their number."""

    block: str
    position: int
    edges: tuple[int, ...]
    """Numbers of kept edges, ascending: from 0 to all that have an effect, then all edges from active latents. These
    give the full circuit."""
    kl_model: tuple[float, ...]
    """KL(model || circuit) at the token, in nats."""
    kl_circuit: tuple[float, ...]
    """KL(full circuit || circuit) at the token, in nats."""
    recovery: tuple[float, ...]

    def table(self) -> Table:
        """A row for each number of edges."""
        names = ("edges", "kl_model", "kl_circuit", "recovery")
        return Table(dict(zip(names, row, strict=True)) for row in zip(*(getattr(self, n) for n in names), strict=True))


class Part(Plain):
    """The part of an edge's effect that goes from one source position through one head."""

    source: int
    head: int | None
    """None: past the attention, along the residual stream."""
    effect: float
    pre_act: float


class Split(Plain):
    """An edge's effect at a token, as a sum over source positions and heads (explore/split.py)."""

    block: str
    up: int
    down: int
    position: int
    effect: float
    """The downstream latent's activation less what it is without the edge, in the full circuit. The parts' effects add
    up to it."""
    pre_act: float
    """The same for its pre-activation."""
    parts: tuple[Part, ...]
    """Largest first by |pre_act|."""

    def table(self) -> Table:
        """The parts as a table."""
        return table(self.parts)


class EdgeExample(Plain):
    """A prompt under the removal of one edge."""

    prompt: int
    """Index in the text."""
    position: int
    """The token at which the downstream latent's activation changes most."""
    effect: float
    """That change: the activation less what it is without the edge."""
    kl: float
    """KL(full circuit || without the edge), in nats, mean over the prompt's ordinary tokens."""


class EdgeExamples(Plain):
    """The prompts of a text on which one edge matters most, by KL, with the distribution of its effect."""

    up: int
    down: int
    n_prompts: int
    n_reached: int
    """Prompts in which removing the edge changes the downstream latent at all."""
    kl: float
    """KL(full circuit || without the edge) per token of the text, in nats."""
    quantiles: tuple[float, ...]
    """Of the KL over all prompts, at `QUANTILES`."""
    examples: tuple[EdgeExample, ...]

    def table(self) -> Table:
        """The prompts as a table."""
        return table(self.examples)


class FeatureGroup(Plain):
    """Features at one end of a pair whose attribution profiles are alike (explore/groups.py)."""

    end: Literal["up", "down"]
    members: tuple[int, ...]
    """Those with the largest sums of weights first."""
    alike: float
    """Mean cosine between the profiles of two members."""


class Explained(Plain):
    """What a judge said of an edge or of some features, and how well it told from these words alone where they are
    active, on prompts that it was not shown.
    """

    explanation: str | None
    """None: too few examples to explain or to test it."""
    detection: float | None
    """Balanced accuracy of telling texts where they are active from others; guessing scores 0.5. None: no score, or the
    judge did not give one answer per text."""
    fuzzing: float | None
    """Balanced accuracy of telling texts with the right tokens marked from others."""
    judge: str
    """The judge's model."""


QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
"""The quantiles that `EdgeExamples` holds."""


def table(rows: Sequence[Plain]) -> Table:
    """Rows of plain data as a table."""
    return Table(row.model_dump() for row in rows)


def interventions_from(data: Any) -> tuple[Intervention, ...]:
    """Interventions from a list of dictionaries, or from the JSON text of one.

    Raises:
        UserError: the data are no such list; the message names the field.
    """
    reader = TypeAdapter(tuple[Intervention, ...])
    try:
        return reader.validate_json(data) if isinstance(data, str | bytes) else reader.validate_python(data)
    except ValidationError as error:
        raise UserError(f"interventions: {explained(error)}") from error
