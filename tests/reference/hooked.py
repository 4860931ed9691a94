"""A GPT-2 with activations replaced and read by PyTorch hooks on the modules of `transformers`, and a circuit in it.

It shares no code with the package: the forward pass is the model's own, from token ids to logits.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scalar_sae.scoring.pair import Pair, Prompt
from scalar_sae.sites import Site


def _module(hf: Any, site: Site) -> tuple[nn.Module, bool]:
    """The module whose input (False) or output (True) stands at a site."""
    block = hf.transformer.h[site.layer]
    return {
        "resid_pre": (block, False),
        "attn_out": (block.attn, True),
        "resid_mid": (block.ln_2, False),
        "mlp_in": (block.mlp, False),
        "mlp_out": (block.mlp, True),
        "resid_post": (block, True),
    }[site.kind]


def _hook(module: nn.Module, at_output: bool, change: Callable[[Tensor], Tensor]) -> Any:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return change(output) if isinstance(output, Tensor) else (change(output[0]), *output[1:])

    if at_output:
        return module.register_forward_hook(after)
    return module.register_forward_pre_hook(before, with_kwargs=True)


@contextmanager
def replaced(hf: Any, site: Site, x: Tensor) -> Iterator[None]:
    """`x` stands at a site of the model."""
    with ExitStack() as undo:
        if site.kind == "resid_mid":  # the stream beside the MLP holds it too: attention's output makes it
            block, stream = hf.transformer.h[site.layer], []
            undo.callback(_hook(block, False, lambda own: (stream.append(own), own)[1]).remove)
            undo.callback(_hook(block.attn, True, lambda own: x - stream[-1]).remove)
        else:
            undo.callback(_hook(*_module(hf, site), lambda own: x.expand_as(own)).remove)
        yield


@torch.no_grad()
def activation(hf: Any, site: Site, tokens: Tensor) -> Tensor:
    """What stands at a site."""
    found: list[Tensor] = []
    hook = _hook(*_module(hf, site), lambda own: (found.append(own), own)[1])
    hf(tokens, use_cache=False)
    hook.remove()
    return found[0]


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
    hf, tokens = pair.lm.hf, prompt.tokens
    special = torch.tensor([token in pair.special for token in tokens[0].tolist()]).view(1, -1, 1)
    own_up = activation(hf, pair.block.up, tokens)
    z = pair.up.encode(own_up)[0] if z is None else z
    z = z.masked_fill(special[0], 0.0)
    off = torch.zeros(pair.up.d_sae) if pair.ablation_value is None else pair.ablation_value
    weight = kept.float() * (torch.ones(len(z), 1, 1) if factor is None else factor)
    p = torch.zeros(tokens.shape[1], pair.down.d_sae)
    for j in range(pair.down.d_sae):
        x = torch.where(special, own_up, pair.up.decode(off + weight[..., j] * (z - off)).unsqueeze(0))
        with replaced(hf, pair.block.up, x):
            p[:, j] = pair.down.pre_acts(activation(hf, pair.block.down, tokens))[0, :, j]
    return pair.down.activation.select(p.masked_fill(special[0], 0.0))


@torch.no_grad()
def spliced_logits(pair: Pair, prompt: Prompt, acts: Tensor) -> Tensor:
    """Next-token logits [token, d_vocab] of the model with downstream activations [token, n_down] hooked into it."""
    hf, tokens = pair.lm.hf, prompt.tokens
    special = torch.tensor([token in pair.special for token in tokens[0].tolist()]).view(1, -1, 1)
    x = torch.where(special, activation(hf, pair.block.down, tokens), pair.down.decode(acts).unsqueeze(0))
    with replaced(hf, pair.block.down, x):
        return hf(tokens, use_cache=False).logits[0]


@torch.no_grad()
def circuit_logits(pair: Pair, prompt: Prompt, kept: Tensor) -> Tensor:
    """Next-token logits [token, d_vocab] of the model with a circuit's reconstruction hooked into it."""
    return spliced_logits(pair, prompt, circuit_latents(pair, prompt, kept))
