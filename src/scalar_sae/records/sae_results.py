"""What `results.json` holds of single SAEs and of sets of them. See docs/measures.md."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from scalar_sae.corpora import SEEN, Seen

Interval = tuple[float, float]
Ablation = Literal["zero", "mean"]
"""What stands in for an activation as the worst replacement: zeros, or its mean over the text."""


class TextRead(BaseModel):
    """The text that something was measured on."""

    model_config = ConfigDict(extra="forbid")

    corpus: str
    """Its name."""
    source: str
    """The address under which it is found."""
    fingerprint: str
    """SHA-256 over all of its tokens."""
    prompts: str
    """SHA-256 over the prompts that were read of it."""
    n_tokens: int
    """Tokens of those prompts."""
    seen: Seen | None
    """Whether the SAEs were trained on it: it was held out, it is not the text they were trained on, or their files do
    not say."""

    def __str__(self) -> str:
        """As a table names it."""
        seen = f"; {SEEN[self.seen]}" if self.seen else ""
        return f"{self.corpus} ({self.n_tokens:,} tokens{seen})"


class SaeFidelity(BaseModel):
    """How well one SAE stands in for the activation it reads (evaluation/fidelity/fidelity.py, docs/measures.md)."""

    model_config = ConfigDict(extra="forbid")

    method: str
    site: str
    text: TextRead | None = None
    """What it was measured on."""
    d_sae: int
    activation: str
    """The activation rule, such as `TopK 10`."""
    l0: float
    """Live latents per token."""
    loss: float
    """Squared error summed over d_model, mean over tokens."""
    fvu: float
    """Fraction of variance unexplained: ratio of sums."""
    fvu_token_mean: float
    """The same as a mean of ratios, one a token (Llama Scope's "legacy" definition)."""
    fvu_residual_variance: float
    """The same with the variance of the error above the line (dictionary_learning): blind to a constant bias."""
    cosine: float
    """Mean cosine between activation and reconstruction."""
    shrinkage: float | None
    """Relative reconstruction bias, E|x_hat|^2 / E<x, x_hat>: below 1 where reconstructions are too short; null where
    they are zero."""
    ce_increase: float
    """Increase of next-token cross-entropy with the reconstruction spliced in alone, nats."""
    kl: float
    """KL(model || model with the reconstruction spliced in alone), nats, mean over positions."""
    ce_recovered: dict[Ablation, float | None]
    """1 - ce_increase / that of the ablation; null where the ablation does no harm."""
    kl_recovered: dict[Ablation, float | None]
    """1 - kl / that of the ablation."""
    dead: float
    """Share of latents that never fired on the tokens measured."""
    rarest: float
    """Firing rate that is seen on so many tokens with a probability of 95 %; rarer latents may count as dead."""
    density: list[int]
    """Live latents by firing rate: half decades from 1e-6 to 1 (measures.fidelity.DENSITY_EDGES)."""
    dense: dict[Literal["0.01", "0.1", "0.5"], float]
    """Share of latents that fire on more than this fraction of the tokens."""
    l0_per_chunk: list[float]
    """For a staircase: live latents per token in each chunk, oldest first."""
    n_tokens: int
    """Positions that were counted."""
    n_special: int = 0
    """Positions of special tokens: they kept the model's own activation and were counted nowhere."""
    n_prompts: int
    ci: dict[str, Interval | None]
    """95 % bootstrap intervals over prompts, or over 64 groups of them (`fvu_residual_variance`, `dense`); `dead` and
    `density` have none, since resampled text cannot revive a latent."""


class SplicedFidelity(BaseModel):
    """What the model loses with all SAEs of a method spliced in at once."""

    model_config = ConfigDict(extra="forbid")

    method: str
    sites: list[str]
    text: TextRead | None = None
    """What it was measured on."""
    ce_increase: float
    """Increase of next-token cross-entropy, nats."""
    kl: float
    """KL(model || spliced model), nats, mean over positions."""
    ce_recovered: dict[Ablation, float | None]
    """1 - ce_increase / that of ablating all the sites."""
    kl_recovered: dict[Ablation, float | None]
    n_tokens: int
    """Positions that were counted."""
    n_special: int = 0
    """Positions of special tokens: they kept the model's own activation and were counted nowhere."""
    n_prompts: int
    ci: dict[str, Interval | None]


class FrequencyBin(BaseModel):
    """Latents that fire on `low` to `high` of the tokens, and how well they are matched."""

    model_config = ConfigDict(extra="forbid")

    low: float
    high: float
    n: int
    mcc: float
    null: float | None = None
    """The same for random dictionaries, whose latents are all alike: that of the whole pair."""


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
    """How much that can be too low: 0 where the matching is exact."""
    null: float
    """The same for isotropic random dictionaries of the same shape."""
    rescaled: float
    """(mcc - null) / (1 - null)."""
    max_cosine: float
    """Mean largest cosine, not one to one, mean of both directions."""
    max_cosine_null: float
    max_cosine_rescaled: float
    by_frequency: list[FrequencyBin]
    """By firing frequency of the first dictionary's latents; empty where that was not measured."""


class SeedAgreement(BaseModel):
    """SAEs of one method and site from several seeds: consistency and overlap."""

    model_config = ConfigDict(extra="forbid")

    method: str
    site: str
    text: TextRead | None = None
    """What it was measured on."""
    runs: list[str]
    """Where the SAEs come from."""
    pw_mcc: float
    """Mean over pairs of runs, signed."""
    null: float
    rescaled: float
    pairs: list[Mcc]
    """One a pair of runs, (0, 1), (0, 2), ..., signed."""
    absolute_pairs: list[Mcc]
    """The same with signs ignored."""
    threshold: float
    """Overlap: the cosine that encoder and decoder must reach."""
    same_partner: bool
    """Overlap: whether both matchings must agree."""
    shared: float
    """Share of latents that another run has too, mean over ordered pairs of runs."""
    shared_null: float
    """The same for random encoders and decoders of the same shapes."""
    appearances: list[int]
    """Latents of all runs by the number of other runs that have them: none, one, ..."""
    in_others: list[list[int | None]] = Field(default_factory=list[list[int | None]])
    """For each run its latents in their order: how many other runs have it; null for one that never fired."""
    n_special: int | None = None
    """Positions of special tokens, at which firing was not measured; null where firing was not."""
    n_tokens: int | None
    """Tokens on which firing was measured: latents that never fired there are left out. Null where it was not: then
    all latents are in, and nothing is known by frequency."""


class Duplicates(BaseModel):
    """Decoder directions of one site that an earlier site has too (see evaluation/cross_layer.py)."""

    model_config = ConfigDict(extra="forbid")

    method: str
    first: str
    later: str
    n: int
    """Directions of the later site that were looked at."""
    threshold: float
    share: float
    """Of them, those with a cosine of the threshold or more to some direction of the first site."""
    mean_nearest: float
    """Mean largest cosine."""
    n_new: int | None = None
    """Of a staircase: directions that the later site added; null for other SAEs, where all are its own."""
    share_new: float | None = None
    """Of those, the share that the first site has too."""


class MeanScore(BaseModel):
    """A score of latents, mean over them."""

    model_config = ConfigDict(extra="forbid")

    mean: float | None
    ci: Interval | None
    """95 % bootstrap over latents; null with fewer than two."""
    n: int
    """Latents that have the score."""
    n_null: int
    """Latents that have none: they did not fire where rules were tried, or the judge gave no answer."""


class JudgedBy(BaseModel):
    """What one judge made of a sample of latents (see evaluation/features/judge.py)."""

    model_config = ConfigDict(extra="forbid")

    judge: dict[str, str | int | None]
    """Who: `model`, `url`, a hash of the `questions`, and the `seed` of the sample."""
    detection: MeanScore
    """Balanced accuracy at telling texts where a latent fires from others: 0.5 is chance."""
    fuzzing: MeanScore
    """Balanced accuracy at telling right marks from wrong ones."""


class SaeReading(BaseModel):
    """How well one SAE's latents can be read (see evaluation/features/interpretability.py)."""

    model_config = ConfigDict(extra="forbid")

    method: str
    site: str
    text: TextRead | None = None
    """What it was measured on."""
    n_tokens: int = 0
    """Positions that the features were read on; 0 where the tables do not say."""
    n_special: int = 0
    """Positions of special tokens, at which no latent was counted."""
    rule_f1: dict[int, MeanScore]
    """F1 of a rule of the last n tokens, by n (see evaluation/features/rules.py)."""
    judged: list[JudgedBy]
    """One a judge."""
