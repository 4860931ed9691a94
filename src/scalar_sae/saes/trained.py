"""How long an SAE was trained, as far as its files say."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from scalar_sae.saes.methods.unverified import UNVERIFIED

L0_TOLERANCE = 0.1
"""Tolerated relative difference between an SAE's L0 and the requested one."""


class Trained(BaseModel):
    """The training behind the weights of one SAE."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    steps: int
    """Optimiser steps up to the kept weights: those with the best validation loss, or the last ones."""
    tokens: int
    """Tokens in those steps."""
    latents: int
    """Number of latents that were trained."""
    wanted_l0: float | None = None
    """L0 that the config requested, if training had to reach it."""
    l0: float | None = None
    """L0 of the finished SAE on training text."""
    unverified: bool = False
    """Whether the method is our reading of a paper whose body was not available (saes/methods/unverified)."""

    @classmethod
    def of(cls, method: str, recipe: dict[str, Any], latents: int) -> "Trained | None":
        """Read from the method and the recipe on an SAE's card; None if the recipe does not say."""
        match recipe:
            case {"kept": {"step": int(kept)}, "seen": {"steps": int(steps), "tokens": int(tokens)}}:
                plain = not any(isinstance(n, bool) for n in (kept, steps, tokens))
                if plain and 0 <= kept <= steps > 0 and tokens >= 0:
                    return cls(
                        steps=kept,
                        tokens=tokens * kept // steps,
                        latents=latents,
                        unverified=method in UNVERIFIED,
                        **_l0(recipe.get("l0")),
                    )
            case _:
                pass
        return None

    @property
    def missed(self) -> bool:
        """Whether the L0 misses the requested one."""
        if self.wanted_l0 is None or self.l0 is None:
            return False
        return abs(self.l0 - self.wanted_l0) > L0_TOLERANCE * self.wanted_l0


def _l0(found: object) -> dict[str, float]:
    match found:
        case {"wanted": float(wanted), "reached": float(reached)} if wanted > 0 and reached >= 0:
            return {"wanted_l0": wanted, "l0": reached}
        case _:
            return {}
