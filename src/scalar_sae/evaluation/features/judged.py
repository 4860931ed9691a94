"""What judges said of an SAE's latents: the lines of `judged.jsonl`, which `judge.py` writes.

A page that shows them must not wait for PyTorch: this module does not import it.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from scalar_sae import jsonl

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Judged(BaseModel):
    """One line of `judged.jsonl`: one judge's results for one latent."""

    model_config = ConfigDict(extra="forbid", strict=True)

    latent: Annotated[int, Field(ge=0)]
    explanation: str | None = None
    """None if there are too few examples."""
    detection: Share | None
    """Balanced accuracy; None if the judge did not give one answer per text."""
    fuzzing: Share | None
    judge: dict[str, str | int | None]
    """The judge: `model`, `url`, a hash of the `questions`, and the `seed` of the sample."""


def read_judged(folder: Path) -> list[Judged]:
    """All judges' results so far.

    Raises:
        UserError: the file is damaged.
    """
    return jsonl.read(folder / "judged.jsonl", Judged)
