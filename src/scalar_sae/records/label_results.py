"""What `results.json` holds of labels: absorption and probes, a record an SAE. See docs/measures.md."""

from pydantic import BaseModel, ConfigDict

from scalar_sae.records.sae_results import TextRead


class ParentAbsorption(BaseModel):
    """Absorption of one parent label (see evaluation/labels/absorption.py)."""

    model_config = ConfigDict(extra="forbid")

    parent: str
    child: str | None
    """Measured where the child is present too; null: wherever the parent is."""
    probe_f1: float
    """Of the parent's linear probe, on rows it was not fitted on."""
    fraction: float | None
    """Mean share of the parent's direction that other latents supply; null where the probe does not find the parent,
    or nowhere together with the child."""
    full: float | None
    """Share of rows where the parent's latents are silent and another stands in."""
    main: list[int]
    """The parent's latents."""
    n: int
    """Rows it was measured on."""


class SaeAbsorption(BaseModel):
    """Absorption of one SAE under one setting of the thresholds."""

    model_config = ConfigDict(extra="forbid")

    method: str
    site: str
    text: TextRead | None = None
    """What the labelled tokens are from; null: words of the vocabulary in made-up prompts."""
    task: str
    """Where the labels come from: `characters`, `first letters`."""
    thresholds: str
    """Whose: `SAEBench paper`, `SAEBench code`."""
    share: float
    """Least share of the projection on the probe that absorbing latents supply."""
    cosine: float
    """Least cosine of an absorbing latent with the probe."""
    most: int | None
    """Most absorbing latents that are summed; null: all."""
    fraction: float | None
    """Mean over the parents that have one."""
    full: float | None
    parents: list[ParentAbsorption]
    n_rows: int
    """Tokens with labels."""


class LabelProbe(BaseModel):
    """Balanced accuracies of linear probes for one label, on rows they were not fitted on."""

    model_config = ConfigDict(extra="forbid")

    label: str
    n: int
    """Rows with the label."""
    dense: float
    """Of a probe on the activations themselves."""
    sparse: dict[int, float]
    """Of probes on the k latents whose means differ most, by k."""


class CrossedLabels(BaseModel):
    """Spurious correlation removal with two labels."""

    model_config = ConfigDict(extra="forbid")

    wanted: str
    spurious: str
    scr: dict[int, float] | None
    """Share of the bias's cost that comes back, by latents cut out; null where the bias costs nothing."""


class SaeProbes(BaseModel):
    """Sparse probing, TPP and SCR of one SAE (see evaluation/labels/probes.py)."""

    model_config = ConfigDict(extra="forbid")

    method: str
    site: str
    text: TextRead | None = None
    """What the labelled tokens are from; null: words of the vocabulary in made-up prompts."""
    task: str
    labels: list[LabelProbe]
    tpp: dict[int, float] | None
    """Targeted probe perturbation between the classes, by latents set to zero; null with fewer than two classes."""
    scr: list[CrossedLabels]
    n_rows: int
