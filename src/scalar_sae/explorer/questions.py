"""What a page can ask: the bodies of its questions. The answers are in answers.py and files.py."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST = 5000
"""Edges of a pair that are kept, and sent to a page."""
LONGEST = 20_000
"""Characters of a prompt."""
TOKENS = 512
"""Tokens of a prompt."""

Latent = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(max_length=LONGEST)]


class Question(BaseModel):
    """The body of a question."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AboutRun(Question):
    """Which pairs are there?"""


class AboutPair(Question):
    """A question about a pair, as its record under a ranking scored it."""

    pair: str
    ranking: str


class Examples(AboutPair):
    """Which prompts of the text can be looked at?"""


class Map(AboutPair):
    """Which edges does the pair have, and how much do they recover?"""


class Card(Question):
    """What does one feature do?"""

    pair: str
    end: Literal["up", "down"]
    latent: Latent


class Pinned(AboutPair):
    """Edges of a circuit: those that are listed, and all between the listed upstream and downstream features."""

    edges: Annotated[list[tuple[Latent, Latent]], Field(max_length=MOST)] = []
    up: Annotated[list[Latent], Field(max_length=MOST)] = []
    down: Annotated[list[Latent], Field(max_length=MOST)] = []


class OnPrompt(Pinned):
    """How much do the pinned edges carry on a prompt?"""

    text: Text


class Chain(Question):
    """How much do the pinned edges of consecutive pairs carry together on a prompt?"""

    parts: Annotated[list[Pinned], Field(min_length=2, max_length=100)]
    """In the order of the forward pass."""
    text: Text


class OnHeldOut(Pinned):
    """How much do the pinned edges carry on the text that the record was scored on?"""


class Step(AboutPair):
    """What happens at one token of a prompt?"""

    text: Text
    position: Annotated[int, Field(ge=0, lt=TOKENS)]


class Tokens(AboutPair):
    """Which tokens does a prompt have, and what is predicted after each?"""

    text: Text


class Change(Step):
    """What do interventions do to the prediction after a token?"""

    interventions: Annotated[list[dict[str, Any]], Field(max_length=100)]


class Edge(AboutPair):
    """On which prompts of the text does an edge matter?"""

    up: Latent
    down: Latent


class Split(Step):
    """Which source tokens and attention heads carry an edge to a token?"""

    up: Latent
    down: Latent


class Groups(AboutPair):
    """Which features have similar attribution profiles?"""

    edges: Annotated[int, Field(ge=0, le=MOST)]
    """The strongest edges, of which the profiles are made."""
    alike: Annotated[float, Field(gt=0, le=1)]
    """Mean cosine that two groups need to be joined."""


class Explain(AboutPair):
    """What does an edge do, or what do some features have in common, in the words of the judge?"""

    edge: tuple[Latent, Latent] | None = None
    up: Annotated[list[Latent], Field(max_length=MOST)] = []
    down: Annotated[list[Latent], Field(max_length=MOST)] = []


class Group(Question):
    """Features that stand together under a name."""

    name: Text
    members: Annotated[list[str], Field(max_length=MOST)]


class Graph(Step):
    """What a journey shows at a token, as a file for other viewers."""

    shown: Annotated[list[tuple[int, Latent, Latent]], Field(max_length=MOST)]
    """Source token, upstream and downstream feature of each edge."""
    pins: Annotated[list[str], Field(max_length=MOST)] = []
    groups: Annotated[list[Group], Field(max_length=100)] = []
    names: dict[str, str] = {}


QUESTIONS: dict[str, type[Question]] = {
    "run": AboutRun,
    "examples": Examples,
    "map": Map,
    "card": Card,
    "tokens": Tokens,
    "recovery": OnPrompt,
    "chain": Chain,
    "held-out": OnHeldOut,
    "step": Step,
    "change": Change,
    "edge": Edge,
    "split": Split,
    "groups": Groups,
    "explain": Explain,
    "graph": Graph,
}
"""The body of each question, by its name."""
