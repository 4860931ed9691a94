"""Train any number of SAEs in one pass over the language model.

Each trainee (one SAE, or several that share weights) has its own optimiser, gradient clip and schedule. A checkpoint is
written about once a minute and on SIGINT and SIGTERM. A run that was killed resumes from it and ends with the same
bytes. Under `torchrun` every worker holds all SAEs and processes a part of each batch; rank 0 writes the files.
"""

import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.activations.cache import CachedStream
from scalar_sae.activations.stream import ActivationStream, Buffer
from scalar_sae.console import Bar, say
from scalar_sae.corpora import Corpus, sketch, windows
from scalar_sae.errors import UserError
from scalar_sae.io import Events
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import left_out, say_special
from scalar_sae.malloc import freed_memory_handed_back
from scalar_sae.saes.methods.base import CALIBRATION_TOKENS
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import SaeCard, load_sae, save_sae
from scalar_sae.saes.trained import L0_TOLERANCE
from scalar_sae.saes.training_text import TrainingText
from scalar_sae.sites import Site
from scalar_sae.training.checkpoint import Position, noted, resume, save
from scalar_sae.training.config import TrainConfig
from scalar_sae.training.cost import cost
from scalar_sae.training.learner import OptimizedSAEs, learners
from scalar_sae.training.validation import Validation, rounded
from scalar_sae.versions import versions

CHECKPOINT_SECONDS = 60.0
VALIDATION_TOKENS = 8192
L0_TOKENS = 8192
"""Number of tokens of training text on which the L0 of a finished SAE is measured."""


def train(
    config: TrainConfig, lm: LanguageModel, corpus: Corpus, out: Path, events: Events, cache: Path | None = None
) -> None:
    """Train the SAEs of a config and write them to `out/saes/<name>/<site>/`.

    Returns at once if all SAEs exist already. Resumes from `out/checkpoint.pt` if that exists.

    Args:
        config: what to train.
        lm: the language model to read. Training runs on its device.
        corpus: the text.
        out: run directory.
        events: the event log.
        cache: folder in which activations are kept for later runs; None to keep none.

    Raises:
        UserError: the model lacks a site, k is above d_sae, the text is too short, activations are not finite, or
            batches cannot be divided evenly among the workers.
    """
    if config.batch_tokens % distributed.world_size():
        raise UserError(
            f"batch_tokens = {config.batch_tokens} is not a multiple of the {distributed.world_size()} workers"
        )
    corpus.check_tokenizer(lm)
    group = learners(config, lm, lm.device)
    folders = [_folder(out, learner, site) for learner in group for site in learner.trainee.sites]
    if _finished(folders):
        if distributed.rank() == 0:
            (out / "checkpoint.pt").unlink(missing_ok=True)
        return
    _Run(config, lm, corpus, out, events, group, cache).go()


def _finished(folders: list[Path]) -> bool:
    """Whether all SAEs exist and are intact.

    Raises:
        UserError: one is damaged, or the workers see different ones.
    """
    there = [folder for folder in folders if os.path.lexists(folder)]
    for folder in there:
        try:
            load_sae(folder)
        except UserError as error:
            raise UserError(f"{error}; move the folder away and run the same command to train again") from error
    distributed.check_agreement("finished SAEs", list(map(str, there)))
    return len(there) == len(folders)


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self,
        config: TrainConfig,
        lm: LanguageModel,
        corpus: Corpus,
        out: Path,
        events: Events,
        group: list[OptimizedSAEs],
        cache: Path | None,
    ) -> None:
        self.config, self.corpus, self.out, self.events, self.group = config, corpus, out, events, group
        special = lm.special_ids(config.special)
        reads = sorted({read for learner in group for read in learner.trainee.reads}, key=str)
        prompts = windows(corpus.train, config.context, corpus.name, corpus.start)
        stream = ActivationStream(lm, prompts, reads, config.buffer_tokens, config.seed, special=special)
        self.stream = CachedStream(stream, cache, _buffers(config, stream.tokens_per_buffer)) if cache else stream
        self.all_text = stream.windows_per_buffer == len(prompts)
        self.special = left_out(prompts, special)
        say_special(prompts, special, "positions of the training text")
        self.validation = (
            Validation(lm, text_to_choose_on(corpus, config.context).to(lm.device), reads, special)
            if config.validations
            else None
        )
        self.n_layers, self.device, self.about_lm = lm.n_layers, lm.device, lm.describe()
        one_each = {learner.method.name: learner.trainee for learner in reversed(group)}
        self.costs = {name: cost(trainee, lm.d_model) for name, trainee in reversed(one_each.items())}
        self._announce()

    def _announce(self) -> None:
        """Report what the run will cost: parameters and floating-point operations."""
        for name, each in self.costs.items():
            mine = [learner.trainee for learner in self.group if learner.method.name == name]
            parameters, flop = len(mine) * each.parameters, len(mine) * each.flop_per_token
            saes = sum(len(trainee.sites) for trainee in mine)
            say(f"{name}: {saes} SAEs, {parameters:,} parameters, {flop / 1e6:,.2f} MFLOP a token to train")
        self.events("start", special=self.special, cost={name: one._asdict() for name, one in self.costs.items()})

    def go(self) -> None:
        """Train to the end, or until a signal arrives."""
        checkpoint = self.out / "checkpoint.pt"
        run = {"train": self.config.model_dump(mode="json"), "data": self.corpus.describe()}
        at, saved_at = resume(checkpoint, self.group, self.device, run), time.monotonic()
        with noted() as signals, Bar("train SAEs", self.config.steps, done=at.step) as bar:
            for buffer in self.stream.buffers(at.buffer):
                _check_finite(buffer, at.step)
                if at.step == 0:
                    self._each("prepare", buffer)
                batches = _batches(buffer, self.config.batch_tokens, self.all_text)
                for number in range(at.batch, len(batches)):
                    losses = self._step(batches[number], at.step)
                    at = Position(at.step + 1, at.buffer, number + 1)
                    last = at.step == self.config.steps
                    bar.step(note=self._report(losses, at.step) if last or at.step % 50 == 0 else None)
                    if self._due(at.step):
                        self._validate(at.step)
                    if last:
                        self._finish(at.step, buffer)
                        if received := distributed.all_max([signals.received or 0])[0]:
                            say("stopped after the last step; the SAEs are written")
                            raise SystemExit(128 + received)
                        return
                    due = time.monotonic() - saved_at > CHECKPOINT_SECONDS
                    received, due = distributed.all_max([signals.received or 0, int(due)])
                    if received or due:
                        self._report(losses, at.step)
                        if distributed.rank() == 0:
                            save(checkpoint, at, self.group, run)
                        distributed.barrier()
                        saved_at = time.monotonic()
                    if received:
                        say(f"stopped after step {at.step:,}; the same command goes on from there")
                        raise SystemExit(128 + received)
                at = Position(at.step, at.buffer + 1, 0)
                del buffer, batches  # free memory before the next buffer is made

    def _each(self, hook: str, buffer: Buffer) -> None:
        for learner in self.group:
            getattr(learner.trainee, hook)(buffer)

    def _step(self, batch: Buffer, step: int) -> dict[str, Tensor]:
        return {
            f"{learner.method.name}/{site}": loss
            for learner in self.group
            for site, loss in learner.step(batch, step).items()
        }

    def _report(self, losses: dict[str, Tensor], step: int) -> str:
        values = dict(zip(losses, distributed.all_mean(torch.stack(list(losses.values()))).tolist(), strict=True))
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(f"{name}: the loss is not finite at step {step}; look for bad activations or lower lr")
        for learner in self.group:
            if not bool(learner.finite):
                name = f"{learner.method.name}/{'+'.join(map(str, learner.trainee.sites))}"
                raise UserError(f"{name}: the gradient is not finite by step {step}; lower lr")
        self.events("train", step=step, loss={name: round(value, 5) for name, value in values.items()})
        return f"loss {sum(values.values()) / len(values):.3f}"

    def _due(self, step: int) -> bool:
        """Whether to validate now: validations are evenly spaced, and one follows the last step."""
        n = self.config.validations
        return self.validation is not None and step * n % self.config.steps < n

    @freed_memory_handed_back()
    def _validate(self, step: int) -> None:
        """Judge all trainees. Before the last step, also measure their SAEs."""
        assert self.validation is not None
        found = [learner.best.judge(learner.trainee, step, self.validation.loss) for learner in self.group]
        if step < self.config.steps:
            self._measure(step, dict(zip(self.group, found, strict=True)))

    def _measure(self, step: int, val_loss: dict[OptimizedSAEs, float]) -> None:
        """Measure the SAEs with their current weights and log the result."""
        assert self.validation is not None
        for name in self.costs:
            group = [learner for learner in self.group if learner.method.name == name]
            blocks = group[0].method.blocks(self.n_layers)
            found = self.validation.measure([learner.trainee for learner in group], blocks)
            for learner in group:
                more = {"val_loss": val_loss[learner], "kept_step": learner.best.step}
                for site, dead_latents in zip(learner.trainee.sites, learner.dead_latents, strict=True):
                    found["saes"][str(site)] |= more | {"dead_in_training": dead_latents.mask().float().mean().item()}
            self.events("validate", step=step, name=name, **rounded(found))

    @freed_memory_handed_back()
    def _finish(self, step: int, buffer: Buffer) -> None:
        """Measure and write the best weights of every trainee. Without validations these are the last ones."""
        for learner in self.group:
            learner.best.restore(learner.trainee)
        self._each("calibrate", buffer)
        if self.validation is not None:
            self._measure(step, {learner: learner.best.loss for learner in self.group})
        if distributed.rank() == 0:
            text = TrainingText(self.corpus.fingerprint, sketch(self.corpus.train))
            for learner in self.group:
                self._write(learner, buffer, text)
            (self.out / "checkpoint.pt").unlink(missing_ok=True)
        distributed.barrier()

    def _write(self, learner: OptimizedSAEs, buffer: Buffer, text: TrainingText) -> None:
        recipe = {
            "config": self.config.model_dump(mode="json"), "data": self.corpus.describe(), "lm": self.about_lm,
            "bos": bool(self.corpus.start), "versions": versions(),
            "kept": learner.best.remark() or {"step": self.config.steps},
            "seen": {"steps": self.config.steps, "tokens": self.config.steps * self.config.batch_tokens},
            "special": self.special, "cost": self.costs[learner.method.name]._asdict(),
        }  # fmt: skip
        for position, site in enumerate(learner.trainee.sites):
            sae, target = learner.trainee.sae(site), learner.trainee.target(site)
            found = recipe | learner.trainee.found() | _l0(learner, position, sae, buffer)
            sae = replace(sae.to("cpu"), writes=None if target == site else target, text=text)
            card = SaeCard.of(sae, learner.method.method, learner.method.name, site, found)
            save_sae(sae, card, _folder(self.out, learner, site))


def text_to_choose_on(corpus: Corpus, context: int) -> Int[Tensor, "prompt token"]:
    """The text on which the best weights are chosen: the start of the half that is neither scored nor measured."""
    rows = windows(corpus.halves[0], context, f"{corpus.name}, text to choose weights on", corpus.start)
    return rows[: max(1, VALIDATION_TOKENS // context)].clone()  # a copy, so that the rest is freed


@torch.no_grad()
def _l0(learner: OptimizedSAEs, position: int, sae: SAE, buffer: Buffer) -> dict[str, Any]:
    """The requested L0 and the L0 of the finished SAE on training text, for its card.

    The user is told if they differ by more than L0_TOLERANCE.
    """
    wanted, site = learner.method.wanted_l0(position), learner.trainee.sites[position]
    if wanted is None:
        return {}
    parts = buffer[site][:L0_TOKENS].split(CALIBRATION_TOKENS)
    l0 = sum(int((sae.encode(x) > 0).sum()) for x in parts) / sum(len(x) for x in parts)
    if abs(l0 - wanted) > L0_TOLERANCE * wanted:
        say(
            f"{learner.method.name} {site}: {l0:.1f} latents are active a token where the config asks for {wanted:g}; "
            "train longer, or change the weight of the penalty"
        )
    return {"l0": {"wanted": wanted, "reached": l0}}


def _batches(buffer: Buffer, batch_tokens: int, all_text: bool) -> list[Buffer]:
    """This worker's part of each whole batch in a buffer. `all_text` says whether the buffer holds all the text."""
    n = next(iter(buffer.values())).shape[0]
    if n < batch_tokens:
        what, remedy = ("the text", "lower batch_tokens") if all_text else ("a buffer", "raise buffer_tokens")
        raise UserError(f"{what} holds {n} tokens, fewer than one batch of {batch_tokens}; {remedy}")
    starts = range(0, n // batch_tokens * batch_tokens, batch_tokens)
    return [
        {read: distributed.shard_batch(acts[i : i + batch_tokens]) for read, acts in buffer.items()} for i in starts
    ]


def _buffers(config: TrainConfig, tokens_per_buffer: int) -> int:
    """Number of buffers that a run uses, since only whole batches are taken from each. With special tokens left out it
    uses more.
    """
    return math.ceil(config.steps / max(1, tokens_per_buffer // config.batch_tokens))


def _check_finite(buffer: Buffer, step: int) -> None:
    for read, acts in buffer.items():
        if not all(math.isfinite(end) for end in torch.aminmax(acts)):  # aminmax propagates NaN and makes no copy
            raise UserError(f"{read}: activations are not finite at step {step}; check the language model's weights")


def _folder(out: Path, learner: OptimizedSAEs, site: Site) -> Path:
    return out / "saes" / learner.method.name / str(site)
