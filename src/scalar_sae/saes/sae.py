"""A sparse autoencoder at inference: four tensors and an activation rule, without hooks or training state.

    u = x W_enc + b_enc                  pre-activations
    acts = select(u)                     see activation.py
    x_hat = acts W_dec + b_dec

SAEs of every training method and every file format (docs/formats.md) end in this form, so scoring and evaluation need
not know the method. A Staircase SAE, for example, reads slices of shared matrices during training and is an ordinary
SAE afterwards. An encoder that subtracts a bias b from its input is the same map with b_enc - b W_enc in place of
b_enc.

Three things cannot be folded into the four tensors. Most SAEs have none of them: run-time normalisation of the input
(normalization.py), a skip connection past the latents, and, for a transcoder, an output site other than the input site.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import Activation, JumpReLU
from scalar_sae.saes.normalization import InputNorm
from scalar_sae.saes.origin import Origin
from scalar_sae.saes.trained import Trained
from scalar_sae.saes.training_text import TrainingText
from scalar_sae.sites import Site


@dataclass(frozen=True, eq=False)
class SAE:
    """A sparse autoencoder, or a transcoder, in row-vector convention.

    Raises:
        UserError: the activation rule does not fit d_sae.
    """

    W_enc: Float[Tensor, "d_model d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    activation: Activation
    chunks: tuple[int, ...] = ()
    """For a Staircase SAE: the ends of its chunks, oldest first. The last end is d_sae."""
    norm: InputNorm | None = None
    """Run-time normalisation of the input, undone after the decoder."""
    W_skip: Float[Tensor, "d_model d_out"] | None = None
    """The linear map of a skip transcoder from its raw input to the output."""
    writes: Site | None = None
    """The output site of a transcoder. None means that the reconstruction replaces the input."""
    address: str | None = None
    """Address on the Hugging Face Hub, with the commit; None for local files."""
    trained: Trained | None = None
    """How long it was trained; None if its files do not say."""
    origin: Origin = field(default_factory=Origin)
    """What it was trained on, as far as its files say."""
    text: TrainingText | None = None
    """What its files know of its training text, to recognise it; None if they do not say."""

    def __post_init__(self) -> None:
        self.activation.check(self.d_sae)

    def __repr__(self) -> str:
        width = f"{self.d_model} -> {self.d_sae:,}" + ("" if self.d_out == self.d_model else f" -> {self.d_out}")
        more = [f"writes {self.writes}"] if self.writes is not None else []
        more += [str(self.norm)] if self.norm is not None else []
        more += ["skip connection"] if self.W_skip is not None else []
        return f"SAE({', '.join([width, str(self.activation), *more])})"

    @property
    def d_model(self) -> int:
        """Width of the activations that it reads."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Width of the activations that it writes. It differs from d_model only for a transcoder."""
        return self.W_dec.shape[1]

    @property
    def decodes_from_input(self) -> bool:
        """Whether `decode` needs the input in addition to the latents."""
        return self.norm is not None or self.W_skip is not None

    def pre_acts(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_sae"]:
        """Pre-activations, the input of the activation rule."""
        return self.normalize_input(x) @ self.W_enc + self.b_enc

    def normalize_input(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The input as the encoder matrix sees it: normalised where the SAE has a run-time normalisation."""
        return x if self.norm is None else self.norm.apply(x)

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_sae"]:
        """Latent activations."""
        return self.activation.select(self.pre_acts(x))

    def decode(
        self, acts: Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*batch d_model"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """Reconstruction from latent activations.

        Args:
            acts: latent activations.
            x: the input that they were encoded from; needed only if `decodes_from_input`.

        Raises:
            UserError: `x` is needed and missing.
        """
        x_hat = acts @ self.W_dec + self.b_dec
        if x is None and self.decodes_from_input:
            raise UserError("an SAE with run-time normalisation or a skip connection decodes from its input too")
        return x_hat if x is None else self.add_passthrough(x_hat, x)

    def add_passthrough(
        self, x_hat: Float[Tensor, "*batch d_out"], x: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_out"]:
        """The decoder's output with the parts that bypass the latents: the normalisation is undone and the skip
        added.
        """
        if self.norm is not None:
            x_hat = self.norm.undo(x_hat, x)
        return x_hat if self.W_skip is None else x_hat + x @ self.W_skip

    def detach(self) -> "SAE":
        """A copy of the SAE whose weights are outside any autograd graph."""
        return self._with(lambda weight: weight.detach().clone())

    def to(self, device: str | torch.device) -> "SAE":
        """The same SAE with its weights on a device."""
        return self._with(lambda weight: weight.to(device))

    def _with(self, change: Callable[[Tensor], Tensor]) -> "SAE":
        weights = {name: getattr(self, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")}
        changed = {name: change(weight) for name, weight in weights.items() if weight is not None}
        rule = self.activation
        if isinstance(rule, JumpReLU):
            rule = JumpReLU(change(rule.threshold))
        return replace(self, **changed, activation=rule)
