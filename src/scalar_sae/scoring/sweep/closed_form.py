"""The last stretch of a block in closed form: from the residual stream before its MLP straight to pre-activations.

    p_j = features(x) . weights_j + x . skip_j + constant_j

At a block that ends after an MLP the features are the MLP's hidden activations, weights_j = W_out W_enc_j, and no
d_model-sized output is ever formed. Where a norm follows the MLP, its size depends on the whole output: there the
features are that norm's output, weights_j = W_enc_j. Before the nonlinearity all is linear in the kept latents once the
norm's scale is known, so each latent's share of the hidden layer is computed once (`project`) and a kept set costs a
sum of shares. Elsewhere the features are the block's output, the weights are down's encoder.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm

from scalar_sae.errors import UserError
from scalar_sae.kernels import gelu_tanh, linear, linear_gelu
from scalar_sae.lm.feedforward import FeedForward
from scalar_sae.lm.norms import DyT, Norm
from scalar_sae.scoring.pair import Pair
from scalar_sae.sites import Site


@dataclass(frozen=True, eq=False)
class Readout:
    """How to get from the activation at `start` to chosen downstream pre-activations."""

    pair: Pair
    start: Site
    """From here on the form is closed; the upstream site itself where nothing lies before it."""
    weights: Float[Tensor, "n_down d_feature"]
    skip: Float[Tensor, "n_down d_model"] | None
    constant: Float[Tensor, " n_down"]
    ff: FeedForward | None
    """None: no closed form, the features are the block's output."""
    to_hidden: Float[Tensor, "d_model d_hidden"] | None
    """Into the hidden layer (gate and input side by side), the norm's weight folded in."""
    hidden_bias: Float[Tensor, " d_hidden"] | None

    @classmethod
    def of(cls, pair: Pair, latents: Int[Tensor, " n_down"] | None = None) -> "Readout":
        """The closed form of a pair's block, where it has one, for some downstream latents or for all."""
        W_enc, b_enc = pair.down.W_enc, pair.down.b_enc
        if latents is not None:
            W_enc, b_enc = W_enc[:, latents], b_enc[latents]
        ff, start = _last_feed_forward(pair)
        if ff is None:
            return cls(pair, start, W_enc.T.contiguous(), None, b_enc, None, None, None)
        to_hidden, bias = _both(ff)
        if start.kind == "resid_mid" and isinstance(ff.norm, Norm):
            to_hidden, bias = ff.norm.weight.unsqueeze(1) * to_hidden, bias + ff.norm.bias @ to_hidden
        rows = W_enc.T.contiguous()
        return cls(
            pair=pair,
            start=start,
            weights=rows if ff.post is not None else (ff.W_out @ W_enc).T.contiguous(),
            skip=rows if pair.block.down.kind == "resid_post" else None,
            constant=b_enc if ff.post is not None else b_enc + ff.b_out @ W_enc,
            ff=ff,
            to_hidden=to_hidden,
            hidden_bias=bias,
        )

    def project(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_hidden"]:
        """Share of the hidden layer, before the norm's scale and the bias; linear in x."""
        assert self.to_hidden is not None
        if self._norm is not None and self._norm.centred:
            x = x - x.mean(-1, keepdim=True)
        return x @ self.to_hidden

    def scale(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row 1"]:
        """What the norm multiplies x by."""
        if self._norm is None:
            return torch.ones_like(x[:, :1])
        if self._norm.centred:
            x = x - x.mean(-1, keepdim=True)
        power = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]  # 20x faster than Tensor.var
        return (power + self._norm.eps).rsqrt()

    def activate(self, hidden: Float[Tensor, "*batch d_hidden"]) -> Float[Tensor, "*batch d_feature"]:
        """Features from the hidden layer."""
        assert self.ff is not None
        if self.ff.W_gate is None:
            return self._behind(self.ff.act(hidden))
        gate, value = hidden.chunk(2, -1)
        return self._behind(self.ff.act(gate) * value)

    def features(
        self, x: Float[Tensor, "batch token d_model"], up_skip: Float[Tensor, "_ token d_model"] | None
    ) -> Float[Tensor, "batch token d_feature"]:
        """Features of activations at `start`."""
        if self.ff is None:
            return self.pair.down.normalize_input(self.pair.compute(x, up_skip))
        assert self.to_hidden is not None
        assert self.hidden_bias is not None
        if self._norm is not None:
            norm = layer_norm if self._norm.centred else rms_norm
            x = norm(x, x.shape[-1:], eps=self._norm.eps)
        flat = x.flatten(0, 1)
        if self.ff.act is gelu_tanh and self.ff.W_gate is None:
            features = self._behind(linear_gelu(flat, self.to_hidden, self.hidden_bias))
        else:
            features = self.activate(linear(flat, self.to_hidden, self.hidden_bias))
        return features.view(*x.shape[:2], -1)

    @property
    def width(self) -> int:
        """Numbers a token in the widest activation of an evaluation."""
        return self.weights.shape[1] if self.to_hidden is None else self.to_hidden.shape[1]

    def _behind(self, acts: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_feature"]:
        """Features from the MLP's hidden activations."""
        assert self.ff is not None
        return acts if self.ff.post is None else self.ff.post(acts @ self.ff.W_out + self.ff.b_out)

    @property
    def _norm(self) -> Norm | None:
        """The norm between `start` and the MLP, if there is one."""
        assert self.ff is not None
        return self.ff.norm if self.start.kind == "resid_mid" and isinstance(self.ff.norm, Norm) else None


def _last_feed_forward(pair: Pair) -> tuple[FeedForward | None, Site]:
    """The feed-forward half that ends the block and the site where it starts; None if the block does not end so."""
    up, down = pair.block.up, pair.block.down
    start = Site("mlp_in" if up.kind == "mlp_in" and up.layer == down.layer else "resid_mid", down.layer)
    ends_so = down.kind in ("mlp_out", "resid_post") and up.depth <= start.depth and pair.down.norm is None
    beside = not pair.block.mixes_tokens and not up.same_place(start)  # the stream is added first (attn_out -> ...)
    if not ends_so or beside or (start.kind == "mlp_in" and down.kind == "resid_post"):
        return None, up
    try:
        pair.lm.check(start)
        ff = pair.computation.feed_forward(down.layer).to(pair.device)
    except UserError:  # attention runs beside the MLP, or the modules are of another form
        return None, up
    if isinstance(ff.norm, DyT) and start.kind == "resid_mid":  # shares of the hidden layer do not add up behind it
        return None, up
    return ff, start


def _both(ff: FeedForward) -> tuple[Float[Tensor, "d_model d_hidden"], Float[Tensor, " d_hidden"]]:
    """Weights and biases into the hidden layer; a gated MLP's gate first."""
    if ff.W_gate is None:
        return ff.W_in, ff.b_in
    b_gate = torch.zeros_like(ff.b_in) if ff.b_gate is None else ff.b_gate
    return torch.cat([ff.W_gate, ff.W_in], 1), torch.cat([b_gate, ff.b_in])
