"""What an SAE was trained on, as far as its files say."""

from pydantic import BaseModel, ConfigDict


class Origin(BaseModel):
    """The model and the text that an SAE was trained on. They do not affect what it computes, only where it is
    applicable.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    model: str | None = None
    """The language model."""
    text: str | None = None
    """The data set."""
    context: int | None = None
    """Tokens per prompt."""
    bos: bool | None = None
    """Whether every prompt began with a beginning-of-text token."""
    positions: list[int | None] | None = None
    """The slice of prompt positions that it was trained on, as start, stop and step; None for all positions."""

    def unlike(self, context: int, *, bos: bool) -> list[str]:
        """Differences between its training prompts and prompts of `context` tokens, with or without a BOS token at the
        start.

        Returns one sentence for each difference.
        """
        found: list[str] = []
        if self.context is not None and context > self.context:
            found.append(
                f"trained on prompts of {self.context} tokens, and read on prompts of {context}: it never saw the "
                f"later positions (--context {self.context} leaves them out)"
            )
        if self.bos and not bos:
            found.append(
                "trained on prompts with a BOS in front, and read on prompts without one, for the model's tokenizer "
                "puts none there; token ids whose rows begin with one have it (docs/text.md)"
            )
        if self.bos is False and bos:
            found.append(
                "trained on prompts without a BOS in front, and read on prompts with one, which the model's tokenizer "
                "puts there"
            )
        return found

    def __str__(self) -> str:
        """A one-line description; empty if nothing is known."""
        prompts = "" if self.context is None else f"prompts of {self.context} tokens"
        begin = {None: "", True: "beginning with BOS", False: "without BOS"}[self.bos]
        bounds = ":".join("" if bound is None else str(bound) for bound in self.positions or [])
        where = f"positions {bounds if len(self.positions) > 1 else ':' + bounds} only" if self.positions else ""
        return ", ".join(filter(None, [self.model, self.text, f"{prompts} {begin}".strip(), where]))
