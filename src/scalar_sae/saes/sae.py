"""A sparse autoencoder as it is used: four tensors and an activation rule. No hooks, no training state.

    u = x W_enc + b_enc                  pre-activations
    acts = select(u)                     see activation.py
    x_hat = acts W_dec + b_dec

Every method's trainer ends in this form (a Staircase SAE reads slices of shared matrices while it trains and is an
ordinary SAE afterwards), so the benchmark and the measures know no methods. An encoder that subtracts a bias b from its
input is the same map with b_enc - b W_enc in place of b_enc.
"""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from scalar_sae.saes.activation import Activation, JumpReLU


@dataclass(frozen=True, eq=False)
class SAE:
    """A sparse autoencoder in row-vector convention."""

    W_enc: Float[Tensor, "d_model d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_model"]
    b_dec: Float[Tensor, " d_model"]
    activation: Activation
    chunks: tuple[int, ...] = ()
    """Where d_sae is a staircase: the ends of its chunks, oldest first, the last being d_sae."""

    def __post_init__(self) -> None:
        self.activation.check(self.d_sae)

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    def pre_acts(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_sae"]:
        """Pre-activations, before the activation rule."""
        return x @ self.W_enc + self.b_enc

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_sae"]:
        """Latent activations."""
        return self.activation.select(self.pre_acts(x))

    def decode(self, acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_model"]:
        """Reconstruction from latent activations."""
        return acts @ self.W_dec + self.b_dec

    def detach(self) -> "SAE":
        """A copy of the weights outside any autograd graph."""
        copies = {name: getattr(self, name).detach().clone() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        rule = self.activation
        if isinstance(rule, JumpReLU):
            rule = JumpReLU(rule.threshold.detach().clone())
        return replace(self, **copies, activation=rule)
