"""How long an SAE was trained, as far as its files say."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from scalar_sae.saes.methods.unverified import UNVERIFIED


class Trained(BaseModel):
    """The training behind the weights of one SAE."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    steps: int
    """Optimiser steps until the weights that were kept: those with the best validation loss, or the last ones."""
    tokens: int
    """Tokens of those steps."""
    latents: int
    """Latents that were trained."""
    unverified: bool = False
    """The method is our reading of a paper whose body was not available (saes/methods/unverified)."""

    @classmethod
    def of(cls, method: str, recipe: dict[str, Any], latents: int) -> "Trained | None":
        """From the method and the recipe on an SAE's card; None if the recipe does not say."""
        match recipe:
            case {"kept": {"step": int(kept)}, "seen": {"steps": int(steps), "tokens": int(tokens)}}:
                plain = not any(isinstance(n, bool) for n in (kept, steps, tokens))
                if plain and 0 <= kept <= steps > 0 and tokens >= 0:
                    return cls(
                        steps=kept,
                        tokens=tokens * kept // steps,
                        latents=latents,
                        unverified=method in UNVERIFIED,
                    )
            case _:
                pass
        return None
