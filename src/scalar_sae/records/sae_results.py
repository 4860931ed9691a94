"""Records about single SAEs and sets of SAEs in `results.json`. See docs/measures.md."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from scalar_sae.corpora import SEEN, Seen

Interval = tuple[float, float]
Ablation = Literal["zero", "mean"]
"""The ablation that serves as worst replacement of an activation: zeros, or its mean over the text."""


class TextRead(BaseModel):
    """The text of a measurement."""

    model_config = ConfigDict(extra="forbid")

    corpus: str
    """Name of the text."""
    source: str
    """Address of the text."""
    fingerprint: str
    """SHA-256 over all tokens of the text."""
    prompts: str
    """SHA-256 over the prompts read."""
    n_tokens: int
    """Number of tokens in those prompts."""
    seen: Seen | None
    """Whether the SAEs were trained on the text: it was held out, it is another text, or their files do not say."""

    def __str__(self) -> str:
        """The text as tables name it."""
        seen = f"; {SEEN[self.seen]}" if self.seen else ""
        return f"{self.corpus} ({self.n_tokens:,} tokens{seen})"


class SaeFidelity(BaseModel):
    """How well one SAE stands in for the activation it reads (evaluation/fidelity/fidelity.py, docs/measures.md)."""

    model_config = ConfigDict(extra="forbid")

    method: str
    site: str
    text: TextRead | None = None
    """The text of the measurement."""
    d_sae: int
    activation: str
    """The activation rule, such as `TopK 10`."""
    l0: float
    """Live latents per token."""
    loss: float
    """Squared error summed over d_model, averaged over tokens."""
    fvu: float
    """Fraction of variance unexplained: ratio of sums."""
    fvu_token_mean: float
    """The same as a mean of per-token ratios (Llama Scope's "legacy" definition)."""
    fvu_residual_variance: float
    """The same with the variance of the error in the numerator (dictionary_learning). It ignores a constant bias."""
    cosine: float
    """Mean cosine between activation and reconstruction."""
    shrinkage: float | None
    """Relative reconstruction bias, E|x_hat|^2 / E<x, x_hat>. It is below 1 if reconstructions are too short, and null
    if they are zero."""
    ce_increase: float
    """Increase of next-token cross-entropy with only this reconstruction spliced in, nats."""
    kl: float
    """KL(model || model with only this reconstruction spliced in), nats, mean over positions."""
    ce_recovered: dict[Ablation, float | None]
    """1 - ce_increase / ce_increase of the ablation; null if the ablation does no harm."""
    kl_recovered: dict[Ablation, float | None]
    """1 - kl / kl of the ablation."""
    dead: float
    """Share of latents that never fired on the tokens measured."""
    rarest: float
    """Firing rate at which a latent fires at least once on these tokens with probability 95 %. Rarer latents may count
    as dead.
    """
    density: list[int]
    """Number of live latents by firing rate, in half decades from 1e-6 to 1
    (evaluation.fidelity.sums.DENSITY_EDGES).
    """
    dense: dict[Literal["0.01", "0.1", "0.5"], float]
    """Share of latents that fire on more than this fraction of the tokens."""
    l0_per_chunk: list[float]
    """For a staircase: live latents per token in each chunk, oldest first."""
    n_tokens: int
    """Number of counted positions."""
    n_special: int = 0
    """Positions of special tokens. They kept the model's own activation and were not counted."""
    n_prompts: int
    ci: dict[str, Interval | None]
    """95 % bootstrap intervals over prompts, or over 64 groups of prompts (`fvu_residual_variance`, `dense`). `dead`
    and `density` have none, since a latent that is dead in the text is dead in every resample."""


class SplicedFidelity(BaseModel):
    """The model's loss of fidelity with all SAEs of a method spliced in at once."""

    model_config = ConfigDict(extra="forbid")

    method: str
    sites: list[str]
    text: TextRead | None = None
    """The text of the measurement."""
    ce_increase: float
    """Increase of next-token cross-entropy, nats."""
    kl: float
    """KL(model || spliced model), nats, mean over positions."""
    ce_recovered: dict[Ablation, float | None]
    """1 - ce_increase / ce_increase when all the sites are ablated."""
    kl_recovered: dict[Ablation, float | None]
    n_tokens: int
    """Number of counted positions."""
    n_special: int = 0
    """Positions of special tokens. They kept the model's own activation and were not counted."""
    n_prompts: int
    ci: dict[str, Interval | None]


class FrequencyBin(BaseModel):
    """The latents that fire on `low` to `high` of the tokens, and how well they are matched."""

    model_config = ConfigDict(extra="forbid")

    low: float
    high: float
    n: int
    mcc: float
    null: float | None = None
    """The null of the whole pair, which applies to every bin because random dictionaries have no frequencies."""


class Mcc(BaseModel):
    """Agreement of two dictionaries under the best one-to-one matching (see evaluation/seeds/consistency.py)."""

    model_config = ConfigDict(extra="forbid")

    absolute: bool
    """Whether signs were ignored."""
    n_a: int
    n_b: int
    mcc: float
    """Mean matched cosine over min(n_a, n_b) pairs."""
    short: float
    """Maximum amount by which `mcc` is too low; 0 for an exact matching."""
    null: float
    """The same for isotropic random dictionaries of the same shape."""
    rescaled: float
    """(mcc - null) / (1 - null)."""
    max_cosine: float
    """Mean largest cosine, not one-to-one, averaged over both directions."""
    max_cosine_null: float
    max_cosine_rescaled: float
    by_frequency: list[FrequencyBin]
    """By firing frequency of the first dictionary's latents; empty if not measured."""


class SeedAgreement(BaseModel):
    """SAEs of one method and site from several seeds: consistency and overlap."""

    model_config = ConfigDict(extra="forbid")

    method: str
    site: str
    text: TextRead | None = None
    """The text of the measurement."""
    runs: list[str]
    """Paths of the runs."""
    pw_mcc: float
    """Mean over pairs of runs, with signs."""
    null: float
    rescaled: float
    pairs: list[Mcc]
    """One per pair of runs, (0, 1), (0, 2), ..., with signs."""
    absolute_pairs: list[Mcc]
    """The same with signs ignored."""
    threshold: float
    """For the overlap: the cosine that encoder and decoder must reach."""
    same_partner: bool
    """For the overlap: whether both matchings must agree."""
    shared: float
    """Share of latents that another run shares, averaged over ordered pairs of runs."""
    shared_null: float
    """The same for random encoders and decoders of the same shapes."""
    appearances: list[int]
    """Number of latents, over all runs, by the number of other runs that share them: none, one, ..."""
    in_others: list[list[int | None]] = Field(default_factory=list[list[int | None]])
    """For each run, the number of other runs that share each of its latents, in order; null for a latent that never
    fired.
    """
    n_special: int | None = None
    """Positions of special tokens, which are left out of firing rates; null if firing was not measured."""
    n_tokens: int | None
    """Number of tokens on which firing was measured. Latents that never fired there are left out. Null if firing was
    not measured: then all latents are compared, and there are no results by frequency."""


class Duplicates(BaseModel):
    """Decoder directions of one site that an earlier site has too (see evaluation/cross_layer.py)."""

    model_config = ConfigDict(extra="forbid")

    method: str
    first: str
    later: str
    n: int
    """Number of directions at the later site."""
    threshold: float
    share: float
    """Share of them whose cosine with some direction of the earlier site reaches the threshold."""
    mean_nearest: float
    """Mean largest cosine."""
    n_new: int | None = None
    """For a staircase: number of directions that the later site added; null for other SAEs, whose directions are all
    their own.
    """
    share_new: float | None = None
    """Share of the added directions that the earlier site has too."""


class MeanScore(BaseModel):
    """Mean of a score over latents."""

    model_config = ConfigDict(extra="forbid")

    mean: float | None
    ci: Interval | None
    """95 % bootstrap interval over latents; null with fewer than two."""
    n: int
    """Number of latents that have the score."""
    n_null: int
    """Number of latents without it: they did not fire where rules were tested, or the judge gave no valid answer."""


class JudgedBy(BaseModel):
    """One judge's results for a sample of latents (see evaluation/features/judge.py)."""

    model_config = ConfigDict(extra="forbid")

    judge: dict[str, str | int | None]
    """The judge: `model`, `url`, a hash of the `questions`, and the `seed` of the sample."""
    detection: MeanScore
    """Balanced accuracy at distinguishing texts where a latent fires from others; chance is 0.5."""
    fuzzing: MeanScore
    """Balanced accuracy at distinguishing right marks from wrong ones; chance is 0.5."""


class SaeReading(BaseModel):
    """Interpretability of one SAE's latents (see evaluation/features/interpretability.py)."""

    model_config = ConfigDict(extra="forbid")

    method: str
    site: str
    text: TextRead | None = None
    """The text of the measurement."""
    n_tokens: int = 0
    """Number of positions on which the features were read; 0 if the tables do not say."""
    n_special: int = 0
    """Positions of special tokens, where no latent was counted."""
    rule_f1: dict[int, MeanScore]
    """F1 of the rule of the last n tokens, by n (see evaluation/features/rules.py)."""
    judged: list[JudgedBy]
    """One per judge."""
