"""A trainee with its own optimiser, gradient clip and schedule. Learners never affect each other."""

import math
from typing import Any

import torch
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.saes.components.dead_latents import DeadLatents, window
from scalar_sae.saes.methods.base import Acts, Progress, TrainableSAEs, Transformer
from scalar_sae.saes.methods.registry import MethodConfig
from scalar_sae.sites import Site
from scalar_sae.training.best import Best
from scalar_sae.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then the schedule's decay from `lr` to `min_lr`, which it would reach one step after the last."""
    warmup = min(config.warmup_steps, config.steps)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "cooldown":
        left = (config.steps - step) / max(1.0, config.cooldown * config.steps)
        return config.min_lr + min(1.0, left) * (config.lr - config.min_lr)
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (config.lr - config.min_lr)


class OptimizedSAEs:
    """A trainee with its optimiser."""

    def __init__(self, method: MethodConfig, trainee: TrainableSAEs, config: TrainConfig) -> None:
        self.method = method
        self.trainee = trainee
        self.best = Best()
        own = {name: getattr(method, name) for name in ("beta2", "clip", "schedule", "warmup_steps")}
        self._config = config.model_copy(update={name: value for name, value in own.items() if value is not None})
        self.dead_latents = [module for module in trainee.modules() if isinstance(module, DeadLatents)]
        for dead_latents in self.dead_latents:
            dead_latents.window = window(getattr(method, "dead_tokens", None), config.tokens)
        self._parameters = list(trainee.parameters())
        self.finite = torch.ones((), dtype=torch.bool, device=self._parameters[0].device)
        """Whether every gradient has been finite so far. Kept on the device so that no step waits for it."""
        betas = method.beta1, self._config.beta2
        self._optimizer = torch.optim.AdamW(self._parameters, lr=config.lr, betas=betas, weight_decay=0.0, fused=True)

    def step(self, acts: Acts, step: int) -> dict[Site, Tensor]:
        """Take one optimiser step on this worker's part of a batch. Returns the loss of each site on that part."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.method.lr_scale * learning_rate(self._config, step)
        losses = self.trainee.losses(acts, Progress(step, self._config.steps))
        torch.stack(list(losses.values())).sum().backward()
        distributed.average_gradients(p.grad for p in self._parameters if p.grad is not None)
        self.trainee.after_backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip)
        self.finite.logical_and_(norm.isfinite())
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.trainee.after_step()
        return {site: loss.detach() for site, loss in losses.items()}

    def state(self) -> dict[str, Any]:
        """The state to save in a checkpoint."""
        return {
            "weights": self.trainee.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best": self.best.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.trainee.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.best.load(state["best"])


def learners(config: TrainConfig, lm: Transformer, device: torch.device | str = "cpu") -> list[OptimizedSAEs]:
    """One learner per trainee of each method in a config.

    Initial weights are made on the CPU, so they do not depend on the device.
    """
    with torch.device("cpu"):
        seeds = [(method, config.seed if method.seed is None else method.seed) for method in config.saes]
        trainees = [(method, trainee) for method, seed in seeds for trainee in method.trainees(lm, seed)]
    return [OptimizedSAEs(method, trainee.to(device), config) for method, trainee in trainees]
