"""Train any number of SAEs in one pass over the language model.

Each trainee (one SAE, or SAEs that share weights) has its own optimiser, gradient clip and schedule. A checkpoint is
written about once a minute and on SIGINT and SIGTERM; a run that was killed goes on from it and ends with the same
bytes.
"""

import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from scalar_sae.activations.cache import CachedStream
from scalar_sae.activations.stream import ActivationStream, Buffer
from scalar_sae.corpora import Corpus, windows
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.runs import Bar, Events, say, versions
from scalar_sae.saes.store import SaeCard, save_sae
from scalar_sae.sites import Site
from scalar_sae.training.checkpoint import Position, noted, resume, save
from scalar_sae.training.config import TrainConfig
from scalar_sae.training.learner import Learner, learners
from scalar_sae.training.validation import Validation, rounded

CHECKPOINT_SECONDS = 60.0
VALIDATION_WINDOWS = 64


def train(
    config: TrainConfig, lm: LanguageModel, corpus: Corpus, out: Path, events: Events, cache: Path | None = None
) -> None:
    """Train the SAEs of a config and write them to `out/saes/<name>/<site>/`.

    Does nothing if they are there already; goes on from `out/checkpoint.pt` if that is there.

    Args:
        config: what to train.
        lm: the language model to read.
        corpus: its text.
        out: run directory.
        events: log.
        cache: folder in which activations are kept for later runs.

    Raises:
        UserError: a site the model lacks, k above d_sae, too short a text, or activations that are not finite.
    """
    group = learners(config, lm)
    folders = [_folder(out, learner, site) for learner in group for site in learner.trainee.sites]
    if all((folder / "sae.json").exists() for folder in folders):
        (out / "checkpoint.pt").unlink(missing_ok=True)
        return
    _Run(config, lm, corpus, out, events, group, cache).go()


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        config: TrainConfig,
        lm: LanguageModel,
        corpus: Corpus,
        out: Path,
        events: Events,
        group: list[Learner],
        cache: Path | None,
    ) -> None:
        self.config, self.corpus, self.out, self.events, self.group = config, corpus, out, events, group
        exclude = special_tokens(lm)
        reads = sorted({read for learner in group for read in learner.trainee.reads}, key=str)
        prompts = windows(corpus.train, config.context, corpus.name, corpus.bos)
        stream = ActivationStream(lm, prompts, reads, config.buffer_tokens, config.seed, exclude=exclude)
        self.stream = CachedStream(stream, cache) if cache else stream
        held_out = windows(corpus.val, config.context, corpus.name, corpus.bos)[:VALIDATION_WINDOWS]
        sites = sorted(read for read in reads if isinstance(read, Site))
        self.validation = Validation(lm, held_out, sites, exclude) if config.validations else None
        weights = sum(learner.n_bytes() for learner in group) / 2**20
        buffer = 4 * lm.d_model * stream.tokens_per_buffer * len(reads) / 2**20
        n_saes = sum(len(learner.trainee.sites) for learner in group)
        say(f"{n_saes} SAEs: {weights:,.0f} MiB of weights, gradients and moments, {buffer:,.0f} MiB of buffer")

    def go(self) -> None:
        """Train to the end, or to a signal."""
        checkpoint = self.out / "checkpoint.pt"
        at, saved_at = resume(checkpoint, self.group), time.monotonic()
        with noted() as signals, Bar("train SAEs", self.config.steps, done=at.step) as bar:
            for index, buffer in enumerate(self.stream.buffers(at.buffer), start=at.buffer):
                _check_finite(buffer, at.step)
                if at.step == 0:
                    self._each("prepare", buffer)
                batches = _batches(buffer, self.config.batch_tokens)
                for number in range(at.batch, len(batches)):
                    losses = self._step(batches[number], at.step)
                    at = Position(at.step + 1, index, number + 1)
                    last = at.step == self.config.steps
                    bar.step(note=self._report(losses, at.step) if last or at.step % 50 == 0 else None)
                    if last:
                        self._each("calibrate", buffer)
                    self._validate(at.step)
                    if last:
                        self._write()
                        checkpoint.unlink(missing_ok=True)
                        return
                    if signals.received or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                        self._report(losses, at.step)
                        save(checkpoint, at, self.group)
                        saved_at = time.monotonic()
                    if signals.received:
                        say(f"stopped after step {at.step:,}; the same command goes on from there")
                        raise SystemExit(128 + signals.received)
                at = Position(at.step, index + 1, 0)

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
        values = {name: loss.item() for name, loss in losses.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(f"{name}: the loss is not finite at step {step}; look for bad activations or lower lr")
        self.events("train", step=step, loss={name: round(value, 5) for name, value in values.items()})
        return f"loss {sum(values.values()) / len(values):.3f}"

    def _validate(self, step: int) -> None:
        """Measure all SAEs at evenly spaced steps, the last among them."""
        if self.validation is None or step * self.config.validations % self.config.steps >= self.config.validations:
            return
        for name in dict.fromkeys(learner.method.name for learner in self.group):
            trainees = [learner.trainee for learner in self.group if learner.method.name == name]
            saes = {
                place: measures for trainee in trainees for place, measures in self.validation.measure(trainee).items()
            }
            together = self.validation.spliced(trainees)
            self.events("validate", step=step, name=name, saes=rounded(saes), ce_increase_all=together)

    def _write(self) -> None:
        recipe = {"config": self.config.model_dump(mode="json"), "data": self.corpus.describe(), "versions": versions()}
        for learner in self.group:
            for site in learner.trainee.sites:
                sae, target = learner.trainee.sae(site), learner.trainee.target(site)
                sae = sae if target == site else replace(sae, writes=target)
                card = SaeCard.of(sae, learner.method.method, learner.method.name, site, recipe)
                save_sae(sae, card, _folder(self.out, learner, site))


def special_tokens(lm: LanguageModel) -> tuple[int, ...]:
    """Ids that mark beginnings and ends of text or padding: no SAE is trained on them."""
    named = (getattr(lm.hf.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id"))
    return tuple(sorted({token for token in named if isinstance(token, int)}))


def _batches(buffer: Buffer, batch_tokens: int) -> list[Buffer]:
    """Whole batches of a buffer."""
    n_batches = next(iter(buffer.values())).shape[0] // batch_tokens
    if n_batches == 0:
        raise UserError(f"the text holds fewer tokens than one batch of {batch_tokens}; lower batch_tokens")
    parts = {read: acts.split(batch_tokens) for read, acts in buffer.items()}
    return [{read: parts[read][i] for read in parts} for i in range(n_batches)]


def _check_finite(buffer: Buffer, step: int) -> None:
    for read, acts in buffer.items():
        if not bool(torch.isfinite(acts).all()):
            raise UserError(f"{read}: activations are not finite at step {step}; check the language model's weights")


def _folder(out: Path, learner: Learner, site: Site) -> Path:
    return out / "saes" / learner.method.name / str(site)
