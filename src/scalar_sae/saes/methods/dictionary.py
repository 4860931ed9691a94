"""Base of the methods that train one independent dictionary per site: sites, weights, scale and firing counts.

A dictionary is an SAE, which reconstructs what it reads, or a *transcoder*, which reconstructs the site in `targets`.
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from scalar_sae.activations.reading import Gradient
from scalar_sae.errors import UserError
from scalar_sae.saes.activation import Activation
from scalar_sae.saes.components.dead_latents import DeadLatents
from scalar_sae.saes.components.site_groups import parsed, site_list, spanned
from scalar_sae.saes.methods.base import (
    Acts,
    Method,
    Progress,
    Scale,
    TrainableSAEs,
    Transformer,
    Weights,
    encoder_and_decoder,
    generator_at,
)
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Block, Site


class SitePair(NamedTuple):
    """The sites that a dictionary reads and reconstructs."""

    site: Site
    """Site that it reads."""
    target: Site
    """Site that it reconstructs."""
    d_model: int


class DictionaryMethod(Method, frozen=True):
    """Independent dictionaries, one per site."""

    sites: list[str] = Field(min_length=1)
    """Where to train: site names, `ff_blocks` or `ff_layers` (both ends of each), or `residual_stream`."""
    targets: list[str] = Field(default=[])
    """For transcoders: the site to reconstruct for each entry of `sites`, which must then be single site names."""
    scale: Scale = "none"
    """One frozen factor multiplies the activations: `unit` (E‖x‖² = 1), `sqrt_d` (E‖x‖ = √d_model) or `none`."""

    def trainees(self, lm: Transformer, seed: int) -> list[TrainableSAEs]:
        """One trainee per site."""
        return [self.trainee(SitePair(site, target, lm.d_model), seed) for site, target in self._ends(lm.n_layers)]

    @abstractmethod
    def trainee(self, place: SitePair, seed: int) -> TrainableSAEs:
        """Create the trainee at one place."""

    def blocks(self, n_layers: int) -> list[Block]:
        """The blocks between pairs of the sites; none for transcoders."""
        return [] if self.targets else spanned(site_list(self.sites, n_layers), n_layers)

    def _ends(self, n_layers: int) -> list[tuple[Site, Site]]:
        if not self.targets:
            return [(site, site) for site in site_list(self.sites, n_layers)]
        if len(self.targets) != len(self.sites):
            raise UserError(f"{self.name}: {len(self.sites)} sites and {len(self.targets)} targets; give as many")
        ends = [(parsed(a, n_layers), parsed(b, n_layers)) for a, b in zip(self.sites, self.targets, strict=True)]
        sites = [site for site, _ in ends]
        if twice := [site for site in sites if sites.count(site) > 1]:
            raise UserError(f"{self.name}: {twice[0]} is read twice; give one target to a method of another name")
        if back := [f"{target} comes before {site}" for site, target in ends if target < site]:
            raise UserError(f"{self.name}: the target {back[0]}, which is read; a transcoder writes what comes later")
        return ends


class Dictionary(TrainableSAEs):
    """One dictionary in training. Each method adds its loss and its activation rule for inference.

    Args:
        config: sites, width and scale.
        place: the sites that it reads and reconstructs.
        seed: seed of the initial weights.
        norm: initial norm of W_dec's rows; None leaves them as Kaiming initialisation gives them.
        unit_norm: keep W_dec's rows at norm 1 and remove the gradient components along them.
        pre_bias: the encoder reads x - b_dec. Ignored for transcoders, whose b_dec belongs to another site.
    """

    scale: Tensor
    variance: Tensor

    def __init__(
        self,
        config: DictionaryMethod,
        place: SitePair,
        seed: int,
        *,
        norm: float | None = None,
        unit_norm: bool = False,
        pre_bias: bool = False,
    ) -> None:
        super().__init__()
        self.sites = (place.site,)
        self.config_scale: Scale = config.scale
        self._target = place.target
        self._unit_norm, self._pre_bias = unit_norm, pre_bias and place.target == place.site
        self.d_model, self.d_sae = place.d_model, config.expansion * place.d_model
        generator = generator_at(seed, place.site)
        self.W_enc, self.W_dec = encoder_and_decoder(self.d_sae, self.d_model, generator, 1.0 if unit_norm else norm)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(self.d_model))
        self.dead_latents = DeadLatents(self.d_sae)
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("variance", torch.ones(()))

    @property
    def reads(self) -> tuple[Site | Gradient, ...]:
        """The site that it reads, and its target if that is another site."""
        return self.sites if self._target == self.sites[0] else (*self.sites, self._target)

    def target(self, site: Site) -> Site:
        """The site that it reconstructs."""
        return self._target

    def prepare(self, acts: Acts) -> None:
        """Freeze the scales of input and target, and the variance of the scaled target, summed over d_model."""
        ends = (acts[self.sites[0]], acts[self._target])
        for i, x in enumerate(ends):
            if self.config_scale == "unit":
                self.scale[i] = x.square().sum(-1).mean().rsqrt()
            elif self.config_scale == "sqrt_d":
                self.scale[i] = self.d_model**0.5 / x.norm(dim=-1).mean()
        y = ends[1] * self.scale[1]
        self.variance.copy_(y.sub_(y.mean(0)).square_().sum(-1).mean())

    def losses(self, acts: Acts, progress: Progress) -> dict[Site, Float[Tensor, ""]]:
        """The loss of its site, in the trained scale."""
        x, y = (acts[site] * scale for site, scale in zip((self.sites[0], self._target), self.scale, strict=True))
        return {self.sites[0]: self.loss(x, y, acts, progress)}

    @abstractmethod
    def loss(
        self, x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_model"], acts: Acts, progress: Progress
    ) -> Float[Tensor, ""]:
        """The method's loss. `x` is the input and `y` the target, both in the trained scale."""

    @abstractmethod
    def activation(self) -> Activation:
        """The activation rule for inference with the current parameters, in the trained scale."""

    def weights(self) -> Weights:
        """The current weights. Gradients reach the parameters."""
        return Weights(self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.b_dec if self._pre_bias else None)

    def sae(self, site: Site) -> SAE:
        """The inference SAE with the current weights."""
        assert site in self.sites
        s_in, s_out = self.scale.tolist()
        return self.weights().sae(self.activation(), (s_in, s_out))

    @torch.no_grad()
    def after_backward(self) -> None:
        """With unit norm: remove the gradient component along each decoder row, which renormalisation would undo."""
        if self._unit_norm and self.W_dec.grad is not None:
            along = (self.W_dec.grad * self.W_dec).sum(1, keepdim=True)
            self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)

    @torch.no_grad()
    def after_step(self) -> None:
        """With unit norm: rescale the decoder rows to norm 1."""
        if self._unit_norm:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))
