"""Run-time normalisation of a token's activation, which cannot be folded into weights.

    x_n = (x - shift) / (scale + eps)       before the encoder
    x_hat = x_n_hat * scale + shift         after the decoder, with the input's own shift and scale

| kind            | shift   | scale                     | used by                                                 |
|-----------------|---------|---------------------------|---------------------------------------------------------|
| `layer_norm`    | mean(x) | std(x), unbiased          | OpenAI, SAELens `layer_norm`, BatchTopK `input_unit_norm` |
| `constant_norm` | 0       | |x| / sqrt(d_model)       | SAELens `constant_norm_rescale`, Llama Scope `token-wise` |
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class InputNorm:
    """The normalisation of an SAE's input, undone on its output."""

    kind: Literal["layer_norm", "constant_norm"]
    eps: float = 0.0
    """Added to the scale in `apply`, but not in `undo`."""

    def apply(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The input that the encoder sees."""
        shift, scale = self._of(x)
        return (x - shift) / (scale + self.eps)

    def undo(
        self, x_hat: Float[Tensor, "*batch d_model"], x: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The decoder's output in the units of the input `x`."""
        shift, scale = self._of(x)
        return x_hat * scale + shift

    def scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """The factor by which `undo` multiplies the decoder's output."""
        return self._of(x)[1]

    def _of(self, x: Float[Tensor, "*batch d_model"]) -> tuple[Tensor | float, Float[Tensor, "*batch 1"]]:
        if self.kind == "layer_norm":
            return x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return 0.0, x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
