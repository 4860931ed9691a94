"""Train any number of SAEs in one pass over the language model.

Each trainee (one SAE, or the SAEs of one staircase) has its own optimiser and its own gradient clip: what one does
never changes another. A checkpoint is written at a buffer's end, about once a minute; a run that was killed goes on
from it and ends with the same bytes.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalar_sae.activations.stream import ActivationStream, Buffer
from scalar_sae.corpora import Corpus, windows
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.runs import Bar, Events, versions, whole
from scalar_sae.saes.methods import build
from scalar_sae.saes.staircase import StaircaseTrainee
from scalar_sae.saes.store import SaeCard, save_sae
from scalar_sae.saes.topk import TopKTrainee, reconstruction_loss
from scalar_sae.sites import Site
from scalar_sae.training.config import TrainConfig

CHECKPOINT_SECONDS = 60.0


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine from `lr` to `min_lr`."""
    warmup = min(config.warmup_steps, config.steps)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (config.lr - config.min_lr)


class Learner:
    """A trainee with its optimiser."""

    def __init__(self, name: str, method: str, trainee: TopKTrainee | StaircaseTrainee, config: TrainConfig) -> None:
        self.name = name
        self.method = method
        self.trainee = trainee
        self._config = config
        self._parameters = list(trainee.parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=config.lr, betas=(0.9, config.beta2), weight_decay=0.0, fused=True
        )

    def step(self, acts: Buffer, step: int) -> dict[Site, Tensor]:
        """One optimiser step on a batch; returns each site's loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._config, step)
        losses = {site: reconstruction_loss(self.trainee.sae(site), acts[site]) for site in self.trainee.sites}
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return losses

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"weights": self.trainee.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.trainee.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])


def train(config: TrainConfig, lm: LanguageModel, corpus: Corpus, out: Path, events: Events) -> None:
    """Train the SAEs of a config and write them to `out/saes/<name>/<site>/`.

    Does nothing if they are there already; goes on from `out/checkpoint.pt` if that is there.

    Raises:
        UserError: a site the model lacks, k above d_sae, too short a text, or activations that are not finite.
    """
    learners = [
        Learner(method.name, method.method, trainee, config)
        for method in config.saes
        for trainee in build(method, lm.d_model, lm.n_layers, config.seed)
    ]
    checkpoint = out / "checkpoint.pt"
    folders = [_folder(out, learner, site) for learner in learners for site in learner.trainee.sites]
    if all((folder / "sae.json").exists() for folder in folders):
        checkpoint.unlink(missing_ok=True)
        return
    sites = sorted({site for learner in learners for site in learner.trainee.sites})
    prompts = windows(corpus.train, config.context, corpus.name, corpus.bos)
    stream = ActivationStream(lm, prompts, sites, config.buffer_tokens, config.seed)
    done = _resume(checkpoint, learners)
    step, saved_at = done * (stream.tokens_per_buffer // config.batch_tokens), time.monotonic()
    with Bar("train SAEs", config.steps, done=step) as bar:
        for index, buffer in enumerate(stream.buffers(done), start=done):
            for batch in _batches(buffer, config.batch_tokens):
                losses = {
                    (learner.name, site): loss
                    for learner in learners
                    for site, loss in learner.step(batch, step).items()
                }
                step += 1
                report = step % 50 == 0 or step == config.steps
                bar.step(note=_report(losses, step, events) if report else None)
                if step == config.steps:
                    _write(learners, config, corpus, out)
                    checkpoint.unlink(missing_ok=True)
                    return
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                with whole(checkpoint) as temporary:
                    torch.save({"buffers": index + 1, "learners": [learner.state() for learner in learners]}, temporary)
                saved_at = time.monotonic()


def _batches(buffer: Buffer, batch_tokens: int) -> list[Buffer]:
    """Whole batches of a buffer."""
    n_batches = next(iter(buffer.values())).shape[0] // batch_tokens
    if n_batches == 0:
        raise UserError(f"the text holds fewer tokens than one batch of {batch_tokens}; lower batch_tokens")
    parts = {site: acts.split(batch_tokens) for site, acts in buffer.items()}
    return [{site: parts[site][i] for site in parts} for i in range(n_batches)]


def _report(losses: dict[tuple[str, Site], Tensor], step: int, events: Events) -> str:
    values = {f"{name}/{site}": loss.item() for (name, site), loss in losses.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(f"{name}: the loss is not finite at step {step}; look for bad activations or lower lr")
    events("train", step=step, loss={name: round(value, 5) for name, value in values.items()})
    return f"loss {sum(values.values()) / len(values):.3f}"


def _resume(checkpoint: Path, learners: list[Learner]) -> int:
    """Load a checkpoint if there is one; the number of buffers that were used up."""
    if not checkpoint.exists():
        return 0
    saved = torch.load(checkpoint, weights_only=True)
    for learner, state in zip(learners, saved["learners"], strict=True):
        learner.load(state)
    return saved["buffers"]


def _folder(out: Path, learner: Learner, site: Site) -> Path:
    return out / "saes" / learner.name / str(site)


def _write(learners: list[Learner], config: TrainConfig, corpus: Corpus, out: Path) -> None:
    recipe = {"config": config.model_dump(), "data": corpus.describe(), "versions": versions()}
    for learner in learners:
        for site in learner.trainee.sites:
            sae = learner.trainee.sae(site).detach()
            card = SaeCard.of(sae, learner.method, learner.name, site, recipe)
            save_sae(sae, card, _folder(out, learner, site))
