"""A GPT-2 with activations replaced and read by PyTorch hooks on the modules of `transformers`, and a circuit in it.

It shares no code with the package: the forward pass is the model's own, from token ids to logits.
"""

import torch
from torch import Tensor

from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.sites import Site
from tests.reference.scalar import run


@torch.no_grad()
def activation(pair: Pair, site: Site, tokens: Tensor, put: dict[Site, Tensor] | None = None) -> Tensor:
    """What stands at a site, [batch, token, d_model], when the activations of `put` stand in their places."""
    places = {(place.kind, place.layer): x for place, x in (put or {}).items()}
    return run(pair.lm.hf, tokens, places)[1][site.kind, site.layer]


@torch.no_grad()
def circuit_latents(
    pair: Pair, prompt: Prompt, kept: Tensor, factor: Tensor | None = None, z: Tensor | None = None
) -> Tensor:
    """Downstream latent activations of a circuit, one forward of the whole model a downstream latent.

    Args:
        pair: the pair.
        prompt: one of its prompts.
        kept: the edges, [n_up, n_down].
        factor: what multiplies each edge, [token, n_up, n_down]; by default 1.
        z: upstream activations, [token, n_up]; by default those of the model's own activation.
    """
    tokens = prompt.tokens
    special = torch.tensor([token in pair.special for token in tokens[0].tolist()]).view(1, -1, 1)
    own_up = activation(pair, pair.block.up, tokens)
    z = pair.up.encode(own_up)[0] if z is None else z
    z = z.masked_fill(special[0], 0.0)
    off = torch.zeros(pair.up.d_sae) if pair.ablation_value is None else pair.ablation_value
    weight = kept.float() * (torch.ones(len(z), 1, 1) if factor is None else factor)
    p = torch.zeros(tokens.shape[1], pair.down.d_sae)
    for j in range(pair.down.d_sae):
        x = torch.where(special, own_up, pair.up.decode(off + weight[..., j] * (z - off)).unsqueeze(0))
        y = activation(pair, pair.block.down, tokens, {pair.block.up: x})
        p[:, j] = pair.down.pre_acts(y)[0, :, j]
    return pair.down.activation.select(p.masked_fill(special[0], 0.0))


@torch.no_grad()
def spliced_logits(pair: Pair, prompt: Prompt, acts: Tensor) -> Tensor:
    """Next-token logits [token, d_vocab] of the model with downstream activations [token, n_down] hooked into it."""
    tokens, down = prompt.tokens, pair.block.down
    special = torch.tensor([token in pair.special for token in tokens[0].tolist()]).view(1, -1, 1)
    x = torch.where(special, activation(pair, down, tokens), pair.down.decode(acts).unsqueeze(0))
    return run(pair.lm.hf, tokens, {(down.kind, down.layer): x})[0][0]


@torch.no_grad()
def circuit_logits(pair: Pair, prompt: Prompt, kept: Tensor) -> Tensor:
    """Next-token logits [token, d_vocab] of the model with a circuit's reconstruction hooked into it."""
    return spliced_logits(pair, prompt, circuit_latents(pair, prompt, kept))
