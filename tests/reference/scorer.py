"""The obvious scorer: one masked pass per downstream latent and edge count, in plain PyTorch.

The yardstick for the benchmark's exactness and speed. Nothing here is clever; check it by eye. Where `kept` is
[n_up, n_down] the edges are the same at every token; [token, n_up, n_down] holds a choice for each token. At special
tokens the model's own activation stands at both ends, and no latent is live.
"""

import torch

from scalar_sae.scoring.pair import Pair, Prompt


def special(pair: Pair, prompt: Prompt) -> torch.Tensor:
    """Where special tokens stand: [token]."""
    tokens = prompt.tokens[0].tolist()
    return torch.tensor([t in pair.special or ("first" in pair.special and i == 0) for i, t in enumerate(tokens)])


def upstream(pair: Pair, prompt: Prompt, z: torch.Tensor) -> torch.Tensor:
    """The upstream reconstruction from latents [batch, token, n_up], the model's own activation at special tokens."""
    x = pair.up.decode(z, prompt.x_up.expand(len(z), -1, -1))
    own = pair.lm.activations(prompt.tokens, [pair.block.up])[pair.block.up]
    return torch.where(special(pair, prompt).unsqueeze(-1), own, x)


def downstream(pair: Pair, prompt: Prompt, x: torch.Tensor) -> torch.Tensor:
    """Downstream pre-activations when x stands upstream, 0 at special tokens: [batch, token, n_down]."""
    p = pair.down.pre_acts(pair.compute(x, prompt.up_skip))
    return torch.where(special(pair, prompt).unsqueeze(-1), 0.0, p)


def splice_site(pair: Pair, prompt: Prompt, acts: torch.Tensor) -> torch.Tensor:
    """Next-token logits with downstream activations [token, n_down] put in: [token, d_vocab]."""
    state = pair.lm.states(prompt.tokens, [pair.splice_site])[pair.splice_site]
    x = pair.down.decode(acts, prompt.x_down[0]).unsqueeze(0)
    x = torch.where(special(pair, prompt).unsqueeze(-1), state.x, x)
    return pair.lm.logits_from(pair.splice_site, x, state.skip)[0]


def mean(pair: Pair) -> torch.Tensor:
    """What an ablated latent is set to, whatever the token: [n_up]."""
    return torch.zeros(pair.up.d_sae) if pair.ablation_value is None else pair.ablation_value


def mean_where_active(pair: Pair, prompt: Prompt) -> torch.Tensor:
    """The same in rankings and for local edges: a latent that is not active stays at zero: [token, n_up]."""
    return torch.where(prompt.z > 0, mean(pair), 0.0)


def pre_acts(pair: Pair, prompt: Prompt, kept: torch.Tensor, off: torch.Tensor | None = None) -> torch.Tensor:
    """p(E) of one prompt, where latents without a kept edge are set to `off`: [token, n_down]."""
    z, off = prompt.z, mean(pair) if off is None else off
    p = torch.zeros(z.shape[0], pair.down.d_sae)
    for some in torch.arange(pair.down.d_sae).split(64):
        own = kept.T[some].unsqueeze(1) if kept.dim() == 2 else kept[..., some].permute(2, 0, 1)  # latent, token, n_up
        kept_z = torch.where(own, z, off)
        p[:, some] = downstream(pair, prompt, upstream(pair, prompt, kept_z))[range(len(some)), :, some].T
    return p


def leave_one_out(pair: Pair, prompt: Prompt) -> torch.Tensor:
    """Squared change of each latent's activation, summed over tokens, when one edge is removed: [n_up, n_down]."""
    everything = torch.ones(pair.up.d_sae, pair.down.d_sae, dtype=torch.bool)
    return _one_changed(pair, prompt, pre_acts(pair, prompt, everything), everything)


def _one_changed(pair: Pair, prompt: Prompt, p: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    before = pair.down.activation.select(p)
    change = torch.zeros(pair.up.d_sae, pair.down.d_sae)
    for i in range(pair.up.d_sae):
        kept = start.clone()
        kept[i] = False
        changed = pre_acts(pair, prompt, kept, mean_where_active(pair, prompt))
        for j in range(pair.down.d_sae):
            alone = p.clone()
            alone[:, j] = changed[:, j]
            change[i, j] = (pair.down.activation.select(alone) - before)[:, j].square().sum()
    return change


def path_gradient(pair: Pair, prompt: Prompt, alphas: torch.Tensor) -> torch.Tensor:
    """Squared (change x mean gradient of relu(p_j)), a backward pass a target position: [n_up, n_down]."""
    off = mean_where_active(pair, prompt)
    path = prompt.z - off
    n_token, n_down = len(path), pair.down.d_sae
    gradient = torch.zeros(n_down, n_token, *path.shape)
    for alpha in alphas:
        point = (off + alpha * path).requires_grad_()
        p = downstream(pair, prompt, upstream(pair, prompt, point.unsqueeze(0)))[0].relu()
        for j in range(n_down):
            for target in range(n_token):
                gradient[j, target] += torch.autograd.grad(p[target, j], point, retain_graph=True)[0] / len(alphas)
    return (path * gradient).sum(2).square().sum(1).T


def published_attribution(pair: Pair, prompt: Prompt) -> torch.Tensor:
    """The authors' attribution of one prompt, by one backward pass per downstream latent: [n_up, n_down], squared."""
    z = prompt.z
    gradient = torch.zeros(pair.down.d_sae, *z.shape)
    for alpha in torch.linspace(0, 1, 5):
        path = (alpha * z).requires_grad_()
        acts = pair.down.activation.select(downstream(pair, prompt, upstream(pair, prompt, path.unsqueeze(0))))
        for j in range(pair.down.d_sae):
            gradient[j] += torch.autograd.grad(acts[..., j].sum(), path, retain_graph=True)[0]
    return (z.norm(dim=-1, keepdim=True) / 5 * gradient).square().sum(1).T
