"""Records about labels in `results.json`: absorption and probes, one record per SAE. See docs/measures.md."""

from pydantic import BaseModel, ConfigDict

from scalar_sae.records.sae_results import TextRead


class ParentAbsorption(BaseModel):
    """Absorption of one parent label (see evaluation/labels/absorption.py)."""

    model_config = ConfigDict(extra="forbid")

    parent: str
    child: str | None
    """The child whose presence is required too; null measures wherever the parent is present."""
    probe_f1: float
    """F1 of the parent's linear probe, on rows on which it was not fitted."""
    fraction: float | None
    """Mean share of the parent's direction that other latents contribute; null if the probe never detects the parent,
    or never together with the child."""
    full: float | None
    """Share of rows where the parent's latents are silent and another latent takes over."""
    main: list[int]
    """The parent's latents."""
    n: int
    """Number of rows measured."""


class SaeAbsorption(BaseModel):
    """Absorption of one SAE under one setting of the thresholds."""

    model_config = ConfigDict(extra="forbid")

    method: str
    site: str
    text: TextRead | None = None
    """The text of the labelled tokens; null if they are words of the vocabulary in constructed prompts."""
    task: str
    """Source of the labels: `characters` or `first letters`."""
    thresholds: str
    """Source of the thresholds: `SAEBench paper` or `SAEBench code`."""
    share: float
    """Minimum share of the projection on the probe that absorbing latents contribute."""
    cosine: float
    """Minimum cosine of an absorbing latent's decoder direction with the probe."""
    most: int | None
    """Maximum number of absorbing latents that are summed; null for all."""
    fraction: float | None
    """Mean over the parents that have a fraction."""
    full: float | None
    parents: list[ParentAbsorption]
    n_rows: int
    """Number of labelled tokens."""


class LabelProbe(BaseModel):
    """Balanced accuracies of linear probes for one label, on rows on which they were not fitted."""

    model_config = ConfigDict(extra="forbid")

    label: str
    n: int
    """Number of rows with the label."""
    dense: float
    """Balanced accuracy of a probe on the activations themselves."""
    sparse: dict[int, float]
    """Balanced accuracy of probes on the k latents with the largest difference of means, by k."""


class CrossedLabels(BaseModel):
    """Spurious correlation removal with two labels."""

    model_config = ConfigDict(extra="forbid")

    wanted: str
    spurious: str
    scr: dict[int, float] | None
    """Share of the bias's cost that is regained, by number of ablated latents; null if the bias costs nothing."""


class SaeProbes(BaseModel):
    """Sparse probing, TPP and SCR of one SAE (see evaluation/labels/probes.py)."""

    model_config = ConfigDict(extra="forbid")

    method: str
    site: str
    text: TextRead | None = None
    """The text of the labelled tokens; null if they are words of the vocabulary in constructed prompts."""
    task: str
    labels: list[LabelProbe]
    tpp: dict[int, float] | None
    """Targeted probe perturbation between the classes, by number of latents set to zero; null with fewer than two
    classes.
    """
    scr: list[CrossedLabels]
    n_rows: int
