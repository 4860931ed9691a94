"""Dictionaries and SAEs that know less of a circuit than the true ones."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from scalar_sae.saes.activation import JumpReLU, TopK
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring.pair import Pair
from tests.validity.circuits import Directions, Planted


def rotated(D: Directions, angle: float) -> Directions:
    """Neighbouring latents mixed in pairs."""
    a, b = D[0::2], D[1::2]
    sin, cos = torch.tensor(angle).sin(), torch.tensor(angle).cos()
    return normalize(torch.stack([cos * a + sin * b, cos * b - sin * a], 1).flatten(0, 1), dim=1)


def merged(D: Directions) -> Directions:
    """Neighbouring latents made one."""
    return normalize(D[0::2] + D[1::2], dim=1)


def dense(D: Directions, seed: int = 0) -> Directions:
    """The same span with other directions: every one is a random combination of all."""
    g = torch.Generator().manual_seed(seed)
    return normalize(torch.linalg.qr(torch.randn(len(D), len(D), generator=g)).Q @ D, dim=1)


def random(D: Directions, seed: int) -> Directions:
    """As many directions that have nothing to do with the block."""
    return normalize(torch.randn(D.shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def split(sae: SAE, copies: int) -> SAE:
    """Every latent as several that are active together and share its decoder row: more latents, the same output."""
    rule = sae.activation
    if isinstance(rule, TopK):
        rule = TopK(rule.k * copies)
    if isinstance(rule, JumpReLU):
        rule = JumpReLU(rule.threshold.repeat(copies))
    return replace(
        sae,
        W_enc=sae.W_enc.repeat(1, copies),
        b_enc=sae.b_enc.repeat(copies),
        W_dec=sae.W_dec.repeat(copies, 1) / copies,
        activation=rule,
    )


def noisy(sae: SAE, size: float, seed: int = 0) -> SAE:
    """Gaussian noise on each latent's encoder column and decoder row, `size` times as long as they are."""
    g = torch.Generator().manual_seed(seed)

    def with_noise(W: Tensor, dim: int) -> Tensor:
        noise = torch.randn(W.shape, generator=g)
        return W + size * W.norm(dim=dim, keepdim=True) * normalize(noise, dim=dim)

    return replace(sae, W_enc=with_noise(sae.W_enc, 0), W_dec=with_noise(sae.W_dec, 1))


def deleted(sae: SAE, share: float, seed: int = 0) -> SAE:
    """A share of the latents removed. With a larger share the same latents are removed, and more."""
    order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(seed))
    kept = order[round(share * sae.d_sae) :].sort().values
    rule = sae.activation
    if isinstance(rule, JumpReLU):
        rule = JumpReLU(rule.threshold[kept])
    return replace(sae, W_enc=sae.W_enc[:, kept], b_enc=sae.b_enc[kept], W_dec=sae.W_dec[kept], activation=rule)


def shrunk(sae: SAE, factor: float) -> SAE:
    """All decoder rows times a factor below 1."""
    return replace(sae, W_dec=factor * sae.W_dec)


def dictionaries(circuit: Planted) -> dict[str, Pair]:
    """The true pair of a planted circuit, and pairs that know less of it."""
    true, D_up, D_down = circuit.pair(), circuit.D_up, circuit.D_down
    turned = {f"upstream latents turned by {angle}": circuit.pair(rotated(D_up, angle)) for angle in (0.2, 0.4, 0.7)}
    return {
        "the true ones": true,
        **turned,
        "upstream latents split in two": replace(true, up=split(true.up, 2)),
        "upstream latents merged in pairs": circuit.pair(merged(D_up)),
        "downstream latents merged in pairs": circuit.pair(D_up, merged(D_down)),
        "upstream: dense combinations": circuit.pair(dense(D_up)),
        "downstream: dense combinations": circuit.pair(D_up, dense(D_down)),
        "random directions at both ends": circuit.pair(random(D_up, 1), random(D_down, 2)),
    }


def ladders(pair: Pair) -> dict[str, dict[str, Pair]]:
    """Pairs that get worse from step to step, both SAEs alike."""

    def both(up: SAE, down: SAE) -> Pair:
        return replace(pair, up=up, down=down)

    up, down = pair.up, pair.down
    return {
        "noise on the weights": {
            f"{size:g}": both(noisy(up, size, 1), noisy(down, size, 2)) for size in (0.0, 0.25, 0.5, 1.0, 2.0)
        },
        "latents deleted": {
            f"{share:.0%}": both(deleted(up, share, 1), deleted(down, share, 2))
            for share in (0.0, 0.1, 0.25, 0.5, 0.75)
        },
        "decoders shrunk": {
            f"{factor:g}": both(shrunk(up, factor), shrunk(down, factor)) for factor in (1.0, 0.9, 0.75, 0.5, 0.25)
        },
        "L0 multiplied at the same loss": {
            f"{copies}": both(split(up, copies), split(down, copies)) for copies in (1, 2, 4)
        },
    }
