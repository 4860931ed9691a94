"""Fit SAEs to a model: fold into their weights what their files leave to the model.

In models with RMSNorm, TransformerLens' `ln1.hook_normalized` and `ln2.hook_normalized` lie between a norm's division
and its gain. Llama Scope's and Gemma Scope's transcoders read there. This package reads after the gain, at the input of
attention or MLP. The two activations differ by the factor of the gain, which only the model knows.
"""

from collections.abc import Mapping
from dataclasses import replace

from scalar_sae.console import say_once
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.norms import Norm, before_gain
from scalar_sae.saes.reparam import with_input_multiplied
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.sources import Group
from scalar_sae.sites import Site

_AMBIGUOUS = (
    "TransformerLens' hook_normalized lay behind a LayerNorm's gain before version 3, and lies before it since; the "
    "SAE is taken to read behind it, at {site}: check its reconstruction"
)


def fitted(lm: LanguageModel, saes: Mapping[Site, SAE]) -> Group:
    """SAEs by the sites of a model that they read, each rewritten to read the model's own activation there.

    Raises:
        UserError: the model has no such site, its norm has a gain of zero, or the SAE normalises its input itself.
    """
    return Group({replace(site, normalized=False): _fitted(lm, site, sae) for site, sae in saes.items()})


def _fitted(lm: LanguageModel, site: Site, sae: SAE) -> SAE:
    if not site.normalized:
        return sae
    lm.check(replace(site, normalized=False))
    norm = lm.norm_before(site)
    if not isinstance(norm, Norm):
        raise UserError(f"{site}: the norm that {lm.name} has there is of no known form; say {site}=PATH")
    if not before_gain(norm):
        if norm.centred and bool((norm.weight != 1).any() or norm.bias.any()):
            say_once(_AMBIGUOUS.format(site=site))
        return sae
    if not norm.weight.all():
        raise UserError(f"{site}: the norm's gain in {lm.name} is zero in places, so what lies before it is lost")
    return with_input_multiplied(sae, norm.weight.to(sae.W_enc.device))
